//! Contract, section 9.2.

use crate::common::{Bench, Outcome, V4, eventually};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};

/// What the Go plugin leaves for the users' conflist.
const GO: &str = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.200.17.0/24"}]],"routes":[{"dst":"10.200.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cni0","type":"bridge"}"#;

#[test]
fn the_delegate_gets_what_add_used_and_the_file_goes() {
    let bench = Bench::new();
    bench.add().result();
    bench.del().silent();
    let asked = bench.asked();
    assert_eq!(asked[0].stdin(), asked[1].stdin(), "byte for byte, without the plugin's own key");
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("ADD DEL", 0));
}

#[test]
fn the_netns_may_be_empty_unset_or_gone() {
    let bench = Bench::new();
    for call in
        [bench.call("DEL").env("CNI_NETNS", ""), bench.call("DEL").without("CNI_NETNS"), bench.call("DEL")]
    {
        bench.add().result();
        call.run().silent();
        assert_eq!(bench.state_names(), [""; 0]);
    }
}

#[test]
fn subnet_env_may_be_gone_changed_or_broken() {
    for text in [None, Some(V4.replace("10.1.17.1", "10.1.18.1")), Some("FLANNEL_MTU".to_owned())] {
        let bench = Bench::new();
        bench.add().result();
        match &text {
            Some(text) => bench.subnet_env(text),
            None => bench.no_subnet_env(),
        }
        bench.del().silent();
        let asked = bench.asked();
        assert_eq!(asked[0].stdin(), asked[1].stdin(), "{text:?}");
    }
}

#[test]
fn a_failed_del_keeps_the_state_and_the_next_one_repeats() {
    let bench = Bench::new();
    bench.add().result();
    bench.behave(json!({"DEL": {"stdout": r#"{"code":100,"msg":"busy","details":"d"}"#, "exit": 1}}));
    let error = bench.del().error(100);
    assert_eq!((&error["msg"], &error["details"]), (&json!("busy"), &json!("d")));
    assert_eq!(bench.state_names(), ["pod"]);
    bench.del().error(100);
    bench.behave(json!({}));
    bench.del().silent();
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("ADD DEL DEL DEL", 0));
}

#[test]
fn a_delegate_that_is_gone_is_an_error_and_the_state_stays() {
    let bench = Bench::new();
    bench.add().result();
    bench.call("DEL").env("CNI_PATH", "/nonexistent").run().error(999);
    assert_eq!(bench.state_names(), ["pod"]);
}

/// A runtime whose patience is over kills the plugin, not what the plugin started.
#[test]
fn the_delegate_of_a_killed_add_is_waited_for() {
    let bench = Bench::new();
    let leases = bench.path("bin/bridge.leases");
    fs::create_dir(&leases).unwrap();
    bench.behave(json!({"ADD": {"wait": true, "leases": true}, "DEL": {"leases": true}}));
    let mut add = bench.call("ADD").start();
    eventually("the delegate starts", || (!bench.asked().is_empty()).then_some(()));
    add.kill().unwrap();
    add.wait().unwrap();
    let mut del = bench.call("DEL").start();
    // It says that it waits before it does.
    del.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(bench.commands(), "ADD");
    fs::write(bench.path("bin/bridge.go"), "").unwrap();
    let outcome = Outcome::new(&del.wait_with_output().unwrap());
    outcome.silent();
    assert!(outcome.stderr.contains("waiting for the delegate of an earlier run"), "{}", outcome.stderr);
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("ADD DEL", 0));
    assert_eq!(fs::read_dir(&leases).unwrap().count(), 0, "what the late ADD made is undone");
}

#[test]
fn a_reservation_that_a_killed_host_local_left_empty_is_freed_under_host_local_s_lock() {
    let bench = Bench::new();
    let network = bench.path("leases/cni-flannel");
    fs::create_dir_all(&network).unwrap();
    for (name, text) in [("lock", ""), ("10.1.17.2", "other\r\neth0"), ("10.1.17.3", "")] {
        fs::write(network.join(name), text).unwrap();
    }
    let conf = bench.conf(json!({"ipam": {"dataDir": bench.path("leases")}}));
    bench.call("ADD").conf(&conf).run().result();
    // Another pod's host-local: it has the lock, has made 10.1.17.4 and has not written its owner yet.
    let lock = fs::File::open(network.join("lock")).unwrap();
    lock.lock().unwrap();
    let mut reserved = fs::File::create(network.join("10.1.17.4")).unwrap();
    let mut del = bench.call("DEL").conf(&conf).start();
    // It says that it waits before it does.
    del.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert!(network.join("10.1.17.3").exists(), "nothing is touched while somebody reserves");
    assert_eq!(bench.state_names(), ["pod"], "so that a DEL killed now is repeated");
    reserved.write_all(b"third\r\neth0").unwrap();
    lock.unlock().unwrap();
    let outcome = Outcome::new(&del.wait_with_output().unwrap());
    outcome.silent();
    assert!(outcome.stderr.contains("10.1.17.3"), "{}", outcome.stderr);
    let left: Vec<bool> =
        ["10.1.17.2", "10.1.17.3", "10.1.17.4"].iter().map(|name| network.join(name).exists()).collect();
    assert_eq!((left, bench.state_names().len()), (vec![true, false, true], 0));
}

#[test]
fn every_repeat_succeeds() {
    let bench = Bench::new();
    bench.add().result();
    for _ in 0..3 {
        bench.del().silent();
    }
    bench.call("DEL").env("CNI_CONTAINERID", "x".repeat(300)).run().silent();
}

#[test]
fn absent_state_is_undone_with_the_present_configuration_ignoring_errors() {
    let bench = Bench::new();
    bench.behave(json!({"DEL": {"stdout": r#"{"code":100,"msg":"no"}"#, "exit": 1}}));
    bench.del().silent();
    assert_eq!(bench.commands(), "DEL");
    assert_eq!(bench.asked()[0].config()["ipam"]["ranges"], json!([[{"subnet": "10.1.17.0/24"}]]));
    bench.call("DEL").env("CNI_PATH", "/nonexistent").run().silent();
    bench.no_subnet_env();
    bench.del().silent();
    assert_eq!(bench.commands(), "DEL", "nothing is run without a usable subnet.env");
}

#[test]
fn unusable_state_never_fails_a_del_and_is_removed() {
    for text in ["", "{", "null", "[]", "{}", r#"{"type":""}"#, r#"{"type":7}"#, "\u{0}\u{0}"] {
        for usable in [true, false] {
            let bench = Bench::new();
            bench.behave(json!({"DEL": {"exit": 1}}));
            bench.write_state("pod", text);
            if !usable {
                bench.no_subnet_env();
            }
            bench.del().silent();
            assert_eq!(bench.state_names(), [""; 0], "{text:?}");
            assert_eq!(bench.commands(), if usable { "DEL" } else { "" }, "{text:?}");
        }
    }
}

#[test]
fn a_file_of_the_go_plugin_is_used_as_it_is_for_any_interface() {
    for ifname in ["eth0", "net1"] {
        let bench = Bench::new();
        bench.write_state("pod", GO);
        bench.call("DEL").env("CNI_IFNAME", ifname).run().silent();
        assert_eq!(bench.asked()[0].stdin(), GO);
        assert_eq!(bench.state_names(), [""; 0]);
    }
}

#[test]
fn a_prev_result_is_forwarded_when_both_speak_the_same_version_of_at_least_0_4_0() {
    for (at_add, at_del, expected) in [
        ("0.4.0", "0.4.0", true),
        ("1.1.0", "1.1.0", true),
        ("0.4.0", "1.0.0", false),
        ("0.3.1", "0.3.1", false),
    ] {
        let bench = Bench::new();
        bench.call("ADD").conf(&bench.conf(json!({"cniVersion": at_add}))).run().result();
        let prev = json!({"cniVersion": at_del, "ips": [{"address": "10.1.17.2/24"}]});
        bench.call("DEL").conf(&bench.conf(json!({"cniVersion": at_del, "prevResult": prev}))).run().silent();
        let config = bench.asked()[1].config();
        assert_eq!(config.get("prevResult"), expected.then_some(&prev), "{at_add} {at_del}");
    }
}

#[test]
fn state_that_cannot_be_read_is_code_5() {
    let bench = Bench::new();
    fs::create_dir_all(bench.state("pod")).unwrap();
    bench.del().error(5);
    assert_eq!(bench.commands(), "");
}

#[test]
fn the_delegate_s_stdout_is_discarded() {
    let bench = Bench::new();
    bench.add().result();
    bench.behave(json!({"DEL": {"stdout": "chatter"}}));
    bench.del().silent();
}
