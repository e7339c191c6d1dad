//! Contract, section 9.2.

use crate::common::{Bench, V4};
use serde_json::json;

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
    std::fs::create_dir_all(bench.state("pod")).unwrap();
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
