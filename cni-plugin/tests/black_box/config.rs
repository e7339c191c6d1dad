//! Contract, sections 4 and 6, as seen from outside: what is refused before anything happens, and
//! what the delegate reads.

use crate::common::{Bench, DUAL, TWO_NETWORKS, V4, V6};
use serde_json::{Value, json};

fn refused(extra: Value) -> String {
    let bench = Bench::new();
    let text = bench.call("ADD").conf(&bench.conf(extra)).run().refused(7);
    assert_eq!((bench.commands(), bench.state_names().len()), (String::new(), 0), "nothing was done");
    text
}

fn delegated(extra: Value) -> Value {
    let bench = Bench::new();
    bench.call("ADD").conf(&bench.conf(extra)).run().result();
    bench.asked().remove(0).config()
}

#[test]
fn a_wrong_type_in_any_field_is_code_7_on_every_command() {
    for (key, value) in [
        ("type", json!(7)),
        ("subnetFile", json!(7)),
        ("dataDir", json!(7)),
        ("delegate", json!([])),
        ("ipam", json!("x")),
        ("runtimeConfig", json!(7)),
        ("capabilities", json!({"a": 7})),
        ("prevResult", json!(7)),
        ("dns", json!({"search": "x"})),
        ("cni.dev/valid-attachments", json!({})),
        ("subnetFileWaitSeconds", json!("x")),
        ("repairBridgeAddress", json!(1)),
    ] {
        let bench = Bench::new();
        for (command, version) in
            [("ADD", "0.3.1"), ("DEL", "0.3.1"), ("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")]
        {
            let conf = bench.conf(json!({"cniVersion": version, key: value}));
            assert!(bench.call(command).conf(&conf).run().refused(7).contains(key), "{command} {key}");
        }
        assert_eq!(bench.commands(), "");
    }
}

#[test]
fn rules_on_the_delegate_come_in_order_and_before_any_side_effect() {
    assert!(refused(json!({"delegate": {"type": 7, "name": "x"}})).contains("delegate.type"));
    assert!(refused(json!({"delegate": {"name": null, "ipam": {}}})).contains("delegate.name"));
    assert!(refused(json!({"delegate": {"ipam": null}, "ipam": {"routes": 7}})).contains("delegate.ipam"));
    assert!(refused(json!({"delegate": {"type": "flannel"}})).contains("itself"));
    assert!(refused(json!({"ipam": {"routes": [{"dst": "x"}]}})).contains("ipam.routes"));
}

#[test]
fn the_config_s_errors_are_reported_before_a_missing_subnet_env() {
    assert!(
        refused(json!({"subnetFile": "/nonexistent", "delegate": {"name": "x"}})).contains("delegate.name")
    );
    assert!(refused(json!({"subnetFile": "/nonexistent", "ipam": {"routes": 7}})).contains("ipam.routes"));
}

#[test]
fn an_empty_or_relative_data_dir_is_refused() {
    for value in ["", "state"] {
        assert!(refused(json!({"dataDir": value})).contains("dataDir"));
    }
}

#[test]
fn an_empty_subnet_file_fails_like_a_missing_one() {
    let bench = Bench::new();
    bench.call("ADD").conf(&bench.conf(json!({"subnetFile": ""}))).run().error(11);
}

#[test]
fn the_delegate_reads_exactly_what_section_6_says() {
    for (env, ranges, routes) in [
        (V4, json!([[{"subnet": "10.1.17.0/24"}]]), json!([{"dst": "10.1.0.0/16"}])),
        (V6, json!([[{"subnet": "fc00::/64"}]]), json!([{"dst": "fc00::/48"}])),
        (
            DUAL,
            json!([[{"subnet": "10.1.17.0/24"}], [{"subnet": "fc00::/64"}]]),
            json!([{"dst": "10.1.0.0/16"}, {"dst": "fc00::/48"}]),
        ),
        (
            TWO_NETWORKS,
            json!([[{"subnet": "10.1.17.0/24"}]]),
            json!([{"dst": "10.1.0.0/16"}, {"dst": "192.168.0.0/16"}]),
        ),
    ] {
        let bench = Bench::new();
        bench.subnet_env(env);
        bench.add().result();
        let expected = json!({"cniVersion": "0.3.1", "name": "cni-flannel", "type": "bridge", "ipMasq": false, "mtu": 1472,
            "isGateway": true, "ipam": {"type": "host-local", "ranges": ranges, "routes": routes}});
        assert_eq!(bench.asked()[0].config(), expected);
        assert!(!bench.asked()[0].stdin().ends_with('\n'));
    }
}

#[test]
fn flanneld_and_the_delegate_never_both_masquerade() {
    let bench = Bench::new();
    for (value, expected) in [("true", false), ("false", true)] {
        bench.subnet_env(&V4.replace("IPMASQ=true", &format!("IPMASQ={value}")));
        bench.call("ADD").env("CNI_CONTAINERID", value).run().result();
        assert_eq!(bench.asked().pop().unwrap().config()["ipMasq"], expected);
    }
}

#[test]
fn the_user_s_values_win_and_unknown_keys_stay() {
    let config =
        delegated(json!({"delegate": {"ipMasq": true, "mtu": 9000, "isGateway": false, "hairpinMode": true,
        "isDefaultGateway": true, "bridge": "br7", "forceAddress": true, "unknown": [{"a": 1}]},
        "ipam": {"dataDir": "/run/leases"}}));
    for (key, value) in [
        ("ipMasq", json!(true)),
        ("mtu", json!(9000)),
        ("isGateway", json!(false)),
        ("hairpinMode", json!(true)),
        ("isDefaultGateway", json!(true)),
        ("bridge", json!("br7")),
        ("forceAddress", json!(true)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["unknown"], json!([{"a": 1}]));
    assert_eq!(config["ipam"]["dataDir"], "/run/leases");
}

#[test]
fn numbers_reach_the_delegate_as_they_were_written() {
    let bench = Bench::new();
    let conf = bench.conf(json!({})).to_string();
    let numbers = r#""a":12345678901234567890123,"b":1.50,"c":-0.0"#;
    let stdin = conf.replacen('{', &format!(r#"{{"delegate":{{{numbers}}},"#), 1);
    bench.call("ADD").stdin(stdin).run().result();
    assert!(bench.asked()[0].stdin().contains(numbers), "{}", bench.asked()[0].stdin());
}

#[test]
fn another_delegate_gets_no_is_gateway() {
    let bench = Bench::new();
    bench.link("macvlan");
    bench
        .call("ADD")
        .conf(&bench.conf(json!({"delegate": {"type": "macvlan", "master": "eth0"}})))
        .run()
        .result();
    let config = bench.asked_of("macvlan").remove(0).config();
    assert_eq!(config.get("isGateway"), None);
    assert_eq!(
        (&config["mtu"], &config["ipMasq"], &config["master"]),
        (&json!(1472), &json!(false), &json!("eth0"))
    );
    assert_eq!(bench.commands(), "");
}

#[test]
fn the_runtime_config_reaches_the_delegate_and_the_rest_does_not() {
    let runtime = json!({"portMappings": [{"hostPort": 8080}], "ips": ["10.1.17.9/24"]});
    let config =
        delegated(json!({"runtimeConfig": runtime, "capabilities": {"portMappings": true}, "args": {"a": 1},
        "dns": {"domain": "x"}, "prevResult": {"x": 1}, "other": 1}));
    assert_eq!(config["runtimeConfig"], runtime);
    for key in ["capabilities", "args", "dns", "prevResult", "other", "subnetFile", "dataDir"] {
        assert_eq!(config.get(key), None, "{key}");
    }
}

#[test]
fn no_version_is_sent_for_a_config_without_one() {
    let bench = Bench::new();
    for version in [Value::Null, json!("")] {
        let result = bench.call("ADD").conf(&bench.conf(json!({"cniVersion": version}))).run().result();
        assert_eq!(result["cniVersion"], "0.1.0");
        assert_eq!(bench.asked().pop().unwrap().config().get("cniVersion"), None);
        bench.del().silent();
    }
}

#[test]
fn old_style_ipam_is_passed_on_with_a_warning() {
    let bench = Bench::new();
    let outcome = bench.call("ADD").conf(&bench.conf(json!({"ipam": {"subnet": "10.9.0.0/24"}}))).run();
    outcome.result();
    assert!(outcome.stderr.contains("ipam.subnet"), "{}", outcome.stderr);
    assert_eq!(bench.asked()[0].config()["ipam"]["subnet"], "10.9.0.0/24");
}

#[test]
fn a_success_says_nothing_on_stderr() {
    assert_eq!(Bench::new().add().stderr, "");
}
