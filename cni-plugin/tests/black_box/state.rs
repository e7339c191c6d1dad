//! Contract, section 7, through the executable: names, modes, second interfaces, kills.

use crate::common::{Bench, Outcome, eventually};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn call(bench: &Bench, command: &str, ifname: &str, network: &str) -> Outcome {
    bench.call(command).env("CNI_IFNAME", ifname).conf(&bench.conf(json!({"name": network}))).run()
}

#[test]
fn the_file_is_named_after_the_container_private_and_holds_the_delegate_s_configuration() {
    let bench = Bench::new();
    bench.add().result();
    assert_eq!(bench.state_names(), ["pod"]);
    assert_eq!(bench.saved("pod"), bench.asked()[0].config());
    let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("state"), mode("state/pod")), (0o700, 0o600));
}

#[test]
fn the_file_records_interface_and_namespace_under_one_key() {
    let bench = Bench::new();
    bench.add().result();
    let raw: Value = serde_json::from_slice(&fs::read(bench.state("pod")).unwrap()).unwrap();
    assert_eq!(raw["flannelAttachment"], json!({"ifname": "eth0", "netns": "/run/netns/nowhere"}));
    assert_eq!(bench.asked()[0].config().get("flannelAttachment"), None);
}

#[test]
fn two_interfaces_of_one_container_have_state_of_their_own() {
    for order in [["eth0", "net1"], ["net1", "eth0"]] {
        let bench = Bench::new();
        call(&bench, "ADD", "eth0", "one").result();
        call(&bench, "ADD", "net1", "two").result();
        assert_eq!(bench.state_names(), ["pod", "pod:net1"]);
        for ifname in order {
            call(&bench, "DEL", ifname, "whatever").silent();
        }
        assert_eq!(bench.state_names(), [""; 0]);
        let deleted: Vec<_> = bench
            .asked()
            .iter()
            .skip(2)
            .map(|asked| (asked.env("CNI_IFNAME").unwrap(), asked.config()["name"].clone()))
            .collect();
        let network = |ifname: &str| json!(if ifname == "eth0" { "one" } else { "two" });
        assert_eq!(deleted, order.map(|ifname| (ifname.to_owned(), network(ifname))));
    }
}

#[test]
fn the_first_interface_s_del_leaves_the_second_s_state_and_the_plain_name_is_free_again() {
    let bench = Bench::new();
    call(&bench, "ADD", "eth0", "one").result();
    call(&bench, "ADD", "net1", "two").result();
    call(&bench, "DEL", "eth0", "one").silent();
    assert_eq!(bench.state_names(), ["pod:net1"]);
    call(&bench, "ADD", "net2", "three").result();
    assert_eq!(bench.state_names(), ["pod", "pod:net1"]);
    call(&bench, "DEL", "eth0", "one").silent();
    assert_eq!(
        bench.state_names(),
        ["pod", "pod:net1"],
        "a repeated DEL finds another interface's file and leaves it"
    );
}

#[test]
fn a_second_interface_beside_a_file_of_the_go_plugin_gets_its_own() {
    let bench = Bench::new();
    let go = r#"{"name":"one","type":"bridge","marker":"go"}"#;
    bench.write_state("pod", go);
    call(&bench, "ADD", "net1", "two").result();
    assert_eq!(bench.state_names(), ["pod", "pod:net1"]);
    call(&bench, "DEL", "net1", "two").silent();
    call(&bench, "DEL", "eth0", "one").silent();
    assert_eq!(bench.asked()[2].stdin(), go);
    assert_eq!(bench.state_names(), [""; 0]);
}

#[test]
fn the_go_plugin_could_read_what_we_write() {
    let bench = Bench::new();
    bench.add().result();
    let raw: Value = serde_json::from_slice(&fs::read(bench.state("pod")).unwrap()).unwrap();
    assert_eq!(raw["type"], "bridge", "it needs an object with a string type, and passes the rest on");
}

#[test]
fn an_add_killed_while_the_delegate_runs_can_be_undone() {
    let bench = Bench::new();
    bench.behave(json!({"ADD": {"wait": true}}));
    let mut child = bench.call("ADD").start();
    eventually("the delegate starts", || (!bench.asked().is_empty()).then_some(()));
    killpg(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    assert_eq!(bench.state_names(), ["pod"]);
    bench.del().silent();
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("ADD DEL", 0));
}

#[test]
fn a_del_killed_while_the_delegate_runs_can_be_repeated() {
    let bench = Bench::new();
    bench.add().result();
    bench.behave(json!({"DEL": {"wait": true}}));
    let mut child = bench.call("DEL").start();
    eventually("the delegate starts", || (bench.asked().len() == 2).then_some(()));
    killpg(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    assert_eq!(bench.state_names(), ["pod"]);
    bench.behave(json!({}));
    bench.del().silent();
    assert_eq!(bench.state_names(), [""; 0]);
}

#[test]
fn hidden_names_are_never_state() {
    let bench = Bench::new();
    bench.write_state(".pod", r#"{"name":"cni-flannel","type":"bridge"}"#);
    bench.call("DEL").env("CNI_CONTAINERID", ".pod").run().error(4);
    bench.no_subnet_env();
    bench.del().silent();
    assert_eq!(bench.commands(), "");
}
