//! The decisions: what is claimed, what is in the way, who still uses it, and what the error says.
// A `json!` literal is handed over, not lent.
#![allow(clippy::needless_pass_by_value)]

use super::*;
use serde_json::json;

const ENV: &[u8] =
    b"FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn claimed(conf: Value) -> Option<Claim> {
    let config = crate::delegate_config::from_bytes(conf.to_string().as_bytes(), ENV).unwrap();
    claim(&config, &crate::subnet_env::parse(ENV).unwrap())
}

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn config(value: Value) -> DelegateConfig {
    DelegateConfig::from_object(value.as_object().unwrap().clone())
}

#[test]
fn a_gateway_bridge_claims_the_first_address_of_each_subnet() {
    let expected = Claim { bridge: "cni0".into(), gateways: cidrs(&["10.200.17.1/24", "fc00:0:0:7::1/64"]) };
    assert_eq!(claimed(json!({"name": "n"})), Some(expected));
    let named = claimed(
        json!({"name": "n", "delegate": {"bridge": "br9", "isGateway": false, "isDefaultGateway": true, "vlan": 0}}),
    );
    assert_eq!(named.unwrap().bridge, "br9");
}

#[test]
fn nothing_is_claimed_where_the_address_cannot_be_foretold_or_does_not_matter() {
    for conf in [
        json!({"name": "n", "delegate": {"type": "macvlan"}}),
        json!({"name": "n", "delegate": {"isGateway": false}}),
        json!({"name": "n", "delegate": {"forceAddress": true}}),
        json!({"name": "n", "delegate": {"vlan": 7}}),
        json!({"name": "n", "ipam": {"type": "dhcp"}}),
        json!({"name": "n", "ipam": {"subnet": "10.200.17.0/24"}}),
    ] {
        assert_eq!(claimed(conf.clone()), None, "{conf}");
    }
}

#[test]
fn conflicts_follow_the_bridge_plugin_s_rule() {
    let claim = claimed(json!({"name": "n"})).unwrap();
    let found = |addresses: &[&str]| conflict(&claim, &cidrs(addresses)).map(|(old, _)| old.to_string());
    assert_eq!(found(&[]), None);
    assert_eq!(found(&["10.200.17.1/24", "fc00:0:0:7::1/64", "fe80::1/64"]), None);
    assert_eq!(found(&["10.200.5.1/24"]), Some("10.200.5.1/24".into()));
    assert_eq!(found(&["10.200.17.1/25"]), Some("10.200.17.1/25".into()), "the prefix counts");
    assert_eq!(found(&["10.200.17.1/24", "192.168.0.1/24"]), None, "the wanted one comes first");
    assert_eq!(found(&["192.168.0.1/24", "10.200.17.1/24"]), Some("192.168.0.1/24".into()));
    assert_eq!(found(&["fc00:0:0:8::1/64"]), None, "IPv6 subnets may stand side by side");
    assert_eq!(found(&["fc00::1/48"]), Some("fc00::1/48".into()), "unless they overlap");
}

#[test]
fn saved_attachments_of_the_old_subnet_on_the_same_bridge_are_users() {
    let old = "10.200.5.0/24".parse().unwrap();
    let with = |subnet: &str| json!({"type": "bridge", "ipam": {"ranges": [[{"subnet": "fc00::/64"}], [{"subnet": subnet}]]}});
    assert!(uses(&config(with("10.200.5.0/24")), "cni0", old));
    assert!(!uses(&config(with("10.200.17.0/24")), "cni0", old));
    assert!(!uses(&config(with("10.200.5.0/24")), "br9", old));
    assert!(uses(&config(with("nonsense")), "cni0", old), "what cannot be understood counts");
    assert!(uses(&config(json!({"type": "bridge"})), "cni0", old));
    assert!(!uses(&config(json!({"type": "macvlan"})), "cni0", old));
}

#[test]
fn the_error_names_both_subnets_and_the_cure() {
    let mut error = StaleBridge {
        bridge: "cni0".into(),
        address: "10.200.5.1/24".parse().unwrap(),
        wanted: "10.200.17.1/24".parse().unwrap(),
        users: vec![],
        repair_allowed: false,
    };
    assert_eq!(
        error.to_string(),
        "bridge \"cni0\" still carries 10.200.5.1/24 of subnet 10.200.5.0/24, but this node's subnet is now \
         10.200.17.0/24 (gateway 10.200.17.1/24)"
    );
    for part in ["ip addr del 10.200.5.1/24 dev cni0", "repairBridgeAddress", "forceAddress"] {
        assert!(error.cure().contains(part), "{part}");
    }
    error.repair_allowed = true;
    error.users = vec!["interfaces attached to the bridge: 2".into(), "container a".into()];
    assert!(error.cure().starts_with("not repaired: interfaces attached to the bridge: 2, container a. "));
}
