//! Contract, section 9.5.

use crate::common::{Bench, Outcome};
use serde_json::{Value, json};

const LIST: &str = "cni.dev/valid-attachments";
const OLD_LIST: &str = "cni.dev/attachments";

fn gc(bench: &Bench, extra: Value) -> Outcome {
    let mut conf = bench.conf(extra);
    conf["cniVersion"] = json!("1.1.0");
    let call = bench.call("GC").without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME");
    call.conf(&conf).run()
}

fn attach(bench: &Bench, id: &str, ifname: &str) {
    let conf = bench.conf(json!({"cniVersion": "1.1.0"}));
    bench.call("ADD").env("CNI_CONTAINERID", id).env("CNI_IFNAME", ifname).conf(&conf).run().result();
}

fn valid(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect()
}

/// The DELs the delegate was asked for, as `id:ifname`.
fn deleted(bench: &Bench) -> Vec<String> {
    let dels = bench.asked().into_iter().filter(|asked| asked.command() == "DEL");
    dels.map(|asked| {
        assert_eq!(asked.env("CNI_NETNS").unwrap(), "");
        format!("{}:{}", asked.env("CNI_CONTAINERID").unwrap(), asked.env("CNI_IFNAME").unwrap())
    })
    .collect()
}

#[test]
fn attachments_outside_the_list_are_undone_and_gc_is_forwarded_with_the_list() {
    let bench = Bench::new();
    for (id, ifname) in [("a", "eth0"), ("b", "eth0"), ("b", "net1"), ("c", "eth0")] {
        attach(&bench, id, ifname);
    }
    let list = valid(&[("a", "eth0"), ("b", "eth0")]);
    bench.behave(json!({"*": {"stdout": "chatter"}}));
    gc(&bench, json!({LIST: list, OLD_LIST: list})).silent();
    assert_eq!(deleted(&bench), ["b:net1", "c:eth0"]);
    assert_eq!(bench.state_names(), ["a", "b"]);
    let last = bench.asked().pop().unwrap();
    assert_eq!(last.command(), "GC");
    assert_eq!((&last.config()[LIST], &last.config()[OLD_LIST]), (&list, &list));
    assert_eq!(last.config()["ipam"]["type"], "host-local");
}

#[test]
fn a_reservation_that_a_killed_host_local_left_empty_is_freed() {
    let bench = Bench::new();
    let network = bench.path("leases/cni-flannel");
    std::fs::create_dir_all(&network).unwrap();
    for (name, text) in [("lock", ""), ("10.1.17.2", "other\r\neth0"), ("10.1.17.3", "")] {
        std::fs::write(network.join(name), text).unwrap();
    }
    gc(&bench, json!({"ipam": {"dataDir": bench.path("leases")}})).silent();
    assert_eq!((network.join("10.1.17.2").exists(), network.join("10.1.17.3").exists()), (true, false));
}

#[test]
fn without_a_list_it_only_forwards() {
    let bench = Bench::new();
    attach(&bench, "a", "eth0");
    bench.write_state("bad", "");
    gc(&bench, json!({})).silent();
    assert_eq!(bench.commands(), "ADD GC");
    assert_eq!(bench.state_names(), ["a", "bad"]);
    assert_eq!(bench.asked()[1].config().get(LIST), None);
}

#[test]
fn null_and_an_empty_list_mean_that_nothing_is_valid() {
    for list in [Value::Null, json!([])] {
        let bench = Bench::new();
        attach(&bench, "a", "eth0");
        gc(&bench, json!({LIST: list})).silent();
        assert_eq!((deleted(&bench), bench.state_names().len()), (vec!["a:eth0".to_owned()], 0));
        assert_eq!(bench.asked()[2].config()[LIST], list);
    }
}

#[test]
fn files_of_other_networks_and_hidden_files_are_left_alone() {
    let bench = Bench::new();
    bench.write_state("other", r#"{"name":"other-net","type":"bridge"}"#);
    bench.write_state(".hidden", r#"{"name":"cni-flannel","type":"bridge"}"#);
    gc(&bench, json!({LIST: []})).silent();
    assert_eq!(bench.state_names(), [".hidden", "other"]);
    assert_eq!(bench.commands(), "GC");
}

#[test]
fn a_file_of_the_go_plugin_counts_as_eth0_but_stays_while_its_container_is_valid() {
    let go = r#"{"name":"cni-flannel","type":"bridge"}"#;
    let bench = Bench::new();
    bench.write_state("live", go);
    bench.write_state("gone", go);
    gc(&bench, json!({LIST: valid(&[("live", "net1")])})).silent();
    assert_eq!(
        (deleted(&bench), bench.state_names()),
        (vec!["gone:eth0".to_owned()], vec!["live".to_owned()])
    );
    assert_eq!(bench.asked()[0].stdin(), go);
}

#[test]
fn unusable_state_of_unknown_containers_is_removed() {
    let bench = Bench::new();
    bench.write_state("live", "");
    bench.write_state("gone", "");
    gc(&bench, json!({LIST: valid(&[("live", "eth0")])})).silent();
    assert_eq!(
        (deleted(&bench), bench.state_names()),
        (vec!["gone:eth0".to_owned()], vec!["live".to_owned()])
    );
}

#[test]
fn it_goes_on_after_errors_and_reports_them_together() {
    let bench = Bench::new();
    attach(&bench, "a", "eth0");
    attach(&bench, "b", "eth0");
    bench.behave(json!({
        "DEL": {"stdout": r#"{"code":100,"msg":"first"}"#, "exit": 1},
        "GC": {"stdout": r#"{"code":101,"msg":"last"}"#, "exit": 1},
    }));
    let error = gc(&bench, json!({LIST: []})).error(100);
    assert_eq!((&error["msg"], &error["details"]), (&json!("first"), &json!("first; first; last")));
    assert_eq!(bench.commands(), "ADD ADD DEL DEL GC");
    assert_eq!(bench.state_names(), ["a", "b"], "kept for the next time");
}

#[test]
fn without_subnet_env_a_saved_configuration_carries_the_gc() {
    let bench = Bench::new();
    attach(&bench, "a", "eth0");
    bench.no_subnet_env();
    gc(&bench, json!({LIST: valid(&[("a", "eth0")])})).silent();
    let asked = bench.asked();
    assert_eq!(asked[1].command(), "GC");
    assert_eq!(asked[1].config()["ipam"], asked[0].config()["ipam"]);
}

#[test]
fn without_either_it_is_code_50_after_the_other_work() {
    let bench = Bench::new();
    attach(&bench, "a", "eth0");
    bench.no_subnet_env();
    assert!(gc(&bench, json!({LIST: []})).refused(50).contains("subnet.env"));
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("ADD DEL", 0));
}
