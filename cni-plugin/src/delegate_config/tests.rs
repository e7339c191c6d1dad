//! The contract's section 6, row by row, and upstream's cases for `ipam`.
// A `json!` literal is handed over, not lent.
#![allow(clippy::needless_pass_by_value)]

use super::*;
use proptest::prelude::*;

const V4: &str =
    "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const V6: &str =
    "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const TWO: &str = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

fn both() -> String {
    format!("{V4}{V6}")
}

fn build(config: Value, env: &str) -> Value {
    Value::Object(from_bytes(config.to_string().as_bytes(), env.as_bytes()).unwrap().0)
}

fn refused(config: Value) -> String {
    let error = from_bytes(config.to_string().as_bytes(), V4.as_bytes()).unwrap_err();
    assert_eq!(error.code(), 7, "{error}");
    error.to_string()
}

fn with_delegate(delegate: Value) -> Value {
    build(json!({"name": "net", "delegate": delegate}), V4)
}

fn with_ipam(ipam: Value, env: &str) -> Value {
    build(json!({"name": "net", "ipam": ipam}), env)["ipam"].clone()
}

#[test]
fn the_worked_example_of_the_contract() {
    let env = "FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.17.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let conf = json!({"name": "cni0", "cniVersion": "0.3.1", "type": "flannel",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true}});
    let expected: Value = serde_json::from_str(
        r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.200.17.0/24"}]],"routes":[{"dst":"10.200.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cni0","type":"bridge"}"#,
    )
    .unwrap();
    assert_eq!(build(conf, env), expected);
}

#[test]
fn defaults_for_an_empty_delegate() {
    assert_eq!(
        build(json!({"name": "net"}), V4),
        json!({"name": "net", "type": "bridge", "ipMasq": false, "mtu": 1472, "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.17.0/24"}]], "routes": [{"dst": "10.1.0.0/16"}]}})
    );
}

#[test]
fn ip_masq_is_the_inverse_of_flanneld_s() {
    assert_eq!(with_delegate(json!({}))["ipMasq"], false);
    let env = V4.replace("IPMASQ=true", "IPMASQ=false");
    assert_eq!(build(json!({"name": "net"}), &env)["ipMasq"], true);
}

#[test]
fn the_user_s_values_win_one_by_one_whatever_they_are() {
    for (key, value) in [
        ("type", json!("macvlan")),
        ("type", json!("")),
        ("ipMasq", json!(true)),
        ("ipMasq", Value::Null),
        ("mtu", json!(0)),
        ("mtu", Value::Null),
        ("mtu", json!("x")),
        ("isGateway", json!(false)),
        ("isGateway", Value::Null),
        ("hairpinMode", json!(true)),
        ("forceAddress", json!(true)),
        ("bridge", json!("br9")),
        ("dns", json!({"nameservers": ["1.1.1.1"]})),
        ("args", json!({"cni": {"ips": ["10.1.17.9"]}})),
    ] {
        assert_eq!(with_delegate(json!({key: value.clone()}))[key], value, "{key}");
    }
}

#[test]
fn only_a_bridge_becomes_a_gateway() {
    let macvlan = with_delegate(json!({"type": "macvlan", "master": "eth0"}));
    assert_eq!(macvlan.get("isGateway"), None);
    assert_eq!((&macvlan["mtu"], &macvlan["ipMasq"]), (&json!(1472), &json!(false)));
    assert_eq!(with_delegate(json!({"type": "bridge"}))["isGateway"], true);
}

#[test]
fn the_runtime_config_is_copied_whole_and_replaces_one_written_there() {
    let given = json!({"portMappings": [{"hostPort": 1}], "mac": "x"});
    let conf = json!({"name": "net", "runtimeConfig": given, "delegate": {"runtimeConfig": {"old": 1}}});
    assert_eq!(build(conf, V4)["runtimeConfig"], given);
    assert_eq!(build(json!({"name": "net", "runtimeConfig": {}}), V4)["runtimeConfig"], json!({}));
    assert_eq!(with_delegate(json!({"runtimeConfig": {"old": 1}}))["runtimeConfig"], json!({"old": 1}));
    assert_eq!(with_delegate(json!({})).get("runtimeConfig"), None);
}

#[test]
fn the_version_is_copied_only_when_stated() {
    let version = |conf: Value| build(conf, V4).get("cniVersion").cloned();
    assert_eq!(version(json!({"name": "n", "cniVersion": "0.4.0"})), Some(json!("0.4.0")));
    assert_eq!(
        version(json!({"name": "n", "cniVersion": "0.4.0", "delegate": {"cniVersion": "0.1.0"}})),
        Some(json!("0.4.0"))
    );
    assert_eq!(version(json!({"name": "n"})), None);
    assert_eq!(
        version(json!({"name": "n", "cniVersion": "", "delegate": {"cniVersion": "0.2.0"}})),
        Some(json!("0.2.0"))
    );
}

#[test]
fn nothing_else_of_the_config_is_passed_on() {
    let built = build(
        json!({"name": "net", "capabilities": {"x": true}, "prevResult": {}, "dns": {}, "args": {}, "other": 1,
            "subnetFile": "/s", "dataDir": "/d", "subnetFileWaitSeconds": 1, "repairBridgeAddress": true,
            "cni.dev/valid-attachments": []}),
        V4,
    );
    let mut keys: Vec<_> = built.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["ipMasq", "ipam", "isGateway", "mtu", "name", "type"]);
}

#[test]
fn rules_on_the_delegate_in_their_order() {
    let delegate = |value: Value| refused(json!({"name": "net", "delegate": value}));
    assert!(delegate(json!({"type": 7, "name": "x", "ipam": {}})).contains("delegate.type"));
    assert!(delegate(json!({"type": null})).contains("delegate.type"));
    assert!(delegate(json!({"name": null, "ipam": {}})).contains("delegate.name"));
    assert!(delegate(json!({"ipam": null})).contains("delegate.ipam"));
    assert!(delegate(json!({"type": "flannel"})).contains("itself"));
    assert!(
        refused(json!({"name": "n", "delegate": {"ipam": {}}, "ipam": {"routes": 1}}))
            .contains("delegate.ipam")
    );
}

#[test]
fn the_config_s_errors_come_before_subnet_env_s() {
    let conf = json!({"name": "net", "delegate": {"name": "x"}}).to_string();
    assert_eq!(from_bytes(conf.as_bytes(), b"").unwrap_err().code(), 7);
    assert_eq!(from_bytes(br#"{"name":"net"}"#, b"").unwrap_err().code(), 11);
}

#[test]
fn upstream_s_ipam_with_a_type_a_parameter_and_routes() {
    let user = json!({"type": "my-ipam", "param": {"a": [1]}, "routes": [{"dst": "10.9.0.0/16"}, {"dst": "10.8.0.0/16", "gw": "10.1.17.3"}]});
    for (env, ranges, networks) in [
        (V4.to_owned(), json!([[{"subnet": "10.1.17.0/24"}]]), vec!["10.1.0.0/16"]),
        (V6.to_owned(), json!([[{"subnet": "fc00::/64"}]]), vec!["fc00::/48"]),
        (
            both(),
            json!([[{"subnet": "10.1.17.0/24"}], [{"subnet": "fc00::/64"}]]),
            vec!["10.1.0.0/16", "fc00::/48"],
        ),
    ] {
        for with_type in [true, false] {
            let mut given = user.clone();
            if !with_type {
                given.as_object_mut().unwrap().remove("type");
            }
            let mut routes = user["routes"].as_array().unwrap().clone();
            routes.extend(networks.iter().map(|network| json!({"dst": network})));
            let name = if with_type { "my-ipam" } else { "host-local" };
            assert_eq!(
                with_ipam(given, &env),
                json!({"type": name, "param": {"a": [1]}, "ranges": ranges, "routes": routes})
            );
        }
    }
}

#[test]
fn two_networks_give_two_routes() {
    assert_eq!(
        with_ipam(json!({"routes": []}), TWO)["routes"],
        json!([{"dst": "10.1.0.0/16"}, {"dst": "192.168.0.0/16"}])
    );
}

#[test]
fn ipam_keeps_unknown_keys_and_overwrites_ranges() {
    let ipam = with_ipam(
        json!({"dataDir": "/run/x", "resolvConf": "/r", "ranges": [[{"subnet": "1.0.0.0/8"}]], "routes": null}),
        V4,
    );
    assert_eq!((&ipam["dataDir"], &ipam["resolvConf"]), (&json!("/run/x"), &json!("/r")));
    assert_eq!(ipam["ranges"], json!([[{"subnet": "10.1.17.0/24"}]]));
    assert_eq!(ipam["routes"], json!([{"dst": "10.1.0.0/16"}]));
}

#[test]
fn user_routes_stay_as_written_but_for_host_bits() {
    let routes = json!([
        {"dst": "10.96.0.1/12", "unknown": [1], "priority": 5, "table": 7, "scope": 0, "mtu": 1, "advmss": 2},
        {"dst": "::/0", "gw": null},
        {"gw": "", "dst": "0.0.0.0/0"},
    ]);
    let built = with_ipam(json!({"routes": routes}), V4);
    assert_eq!(
        built["routes"][0],
        json!({"dst": "10.96.0.0/12", "unknown": [1], "priority": 5, "table": 7, "scope": 0, "mtu": 1, "advmss": 2})
    );
    assert_eq!(built["routes"][1], routes[1]);
    assert_eq!(built["routes"][2], routes[2]);
}

#[test]
fn routes_that_are_none() {
    for routes in [
        json!("x"),
        json!({}),
        json!(["10.0.0.0/8"]),
        json!([{}]),
        json!([{"gw": "10.0.0.1"}]),
        json!([{"dst": 7}]),
        json!([{"dst": ""}]),
        json!([{"dst": "10.0.0.0"}]),
        json!([{"dst": null}]),
        json!([{"dst": "10.0.0.0/8", "gw": "x"}]),
        json!([{"dst": "10.0.0.0/8", "gw": 7}]),
        json!([{"dst": "10.0.0.0/8", "mtu": "1"}]),
        json!([{"dst": "10.0.0.0/8", "advmss": []}]),
        json!([{"dst": "10.0.0.0/8", "priority": true}]),
        json!([{"dst": "10.0.0.0/8", "table": {}}]),
        json!([{"dst": "10.0.0.0/8", "scope": "link"}]),
    ] {
        assert!(
            refused(json!({"name": "n", "ipam": {"routes": routes}})).contains("ipam.routes"),
            "{routes}"
        );
    }
}

#[test]
fn numbers_and_strings_pass_through_exactly() {
    let text = r#"{"name":"n","delegate":{"a":12345678901234567890123,"b":1.10,"c":1e400,"d":-0.0,"e":"<é\u0001>"},"ipam":{"x":0.1000}}"#;
    let built = from_bytes(text.as_bytes(), V4.as_bytes()).unwrap();
    let out = String::from_utf8(built.to_bytes()).unwrap();
    for exact in [
        r#""a":12345678901234567890123"#,
        r#""b":1.10"#,
        r#""d":-0.0"#,
        r#""e":"<é\u0001>""#,
        r#""x":0.1000"#,
    ] {
        assert!(out.contains(exact), "{exact} in {out}");
    }
    assert!(out.contains("1e400") || out.contains("1e+400"), "{out}");
}

#[test]
fn old_style_ipam_is_warned_about_for_host_local_only() {
    let conf = |ipam: Value| {
        let document = Document::parse(json!({"name": "n", "ipam": ipam}).to_string().as_bytes()).unwrap();
        document.into_netconf(crate::version::CniVersion::V0_1_0).unwrap()
    };
    let old = json!({"subnet": "a", "rangeStart": "a", "rangeEnd": "a", "gateway": "a", "ranges": [], "dataDir": "/x"});
    assert_eq!(warnings(&conf(old.clone())).len(), 5);
    let mut other = old;
    other["type"] = json!("dhcp");
    assert!(warnings(&conf(other)).is_empty());
}

proptest! {
    #[test]
    fn never_panics(stdin in "\\{\"name\":\"n\",\"(delegate|ipam)\":.{0,60}\\}", env in "(FLANNEL_[A-Z0-9_]{3,12}=.{0,20}\n){0,7}") {
        let _ = from_bytes(stdin.as_bytes(), env.as_bytes());
    }
}
