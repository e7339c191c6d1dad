//! JSON out of etcd, as lease and as network config. Whatever the bytes are: what is accepted makes sense, what is written reads
//! back the same, and no value takes another node's lease away.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::model::Vni;
use crate::model::allocate::free_subnets;
use crate::model::lease::{LeaseAttrs, key_of, parse_key};
use crate::model::lease_set::{LeaseSet, Own, Peer, RawLease};
use crate::model::network_config::NetworkConfig;
use crate::model::overlay::Overlay;
use crate::model::state::Entries;

const GOOD: &str = r#"{"PublicIP":"10.8.0.112","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"e2:f9:06:60:e7:6a"}}"#;

/// The target.
pub fn check(value: &[u8]) {
    attributes(value);
    beside_a_good_one(value);
    config(value);
}

fn attributes(value: &[u8]) {
    match LeaseAttrs::from_json(value) {
        Ok(attrs) => {
            let written = attrs.to_json();
            assert_eq!(LeaseAttrs::from_json(written.as_bytes()).as_ref(), Ok(&attrs), "{written}");
        }
        Err(error) => assert!(error.to_string().len() <= 10 * value.len() + 200, "{error}"),
    }
}

/// The value stands in one key, a good lease in another one.
fn beside_a_good_one(value: &[u8]) {
    let good = lease("10.200.54.0-24", GOOD.as_bytes(), 1);
    let strange = lease("10.200.55.0-24", value, 2);
    let mut set = LeaseSet::new(own());
    set.replace(&[good]);
    let (before, peer) = (entries(&set), set.peer(subnet(54)).unwrap());
    set.put(&strange);
    if let Some(stranger) = set.peer(subnet(55)) {
        usable(stranger);
        let (same_mac, same_ip) = (stranger.mac == peer.mac, stranger.public_ip == peer.public_ip);
        assert_eq!(set.peer(subnet(54)), (!same_mac || same_ip).then_some(peer));
        let own_entries = entries(&set);
        assert!(own_entries.routes.iter().all(|route| route.dst == subnet(54) || route.dst == subnet(55)));
    } else {
        assert_eq!(entries(&set), before);
        assert_eq!(set.skipped().values().sum::<u64>(), 1);
    }
    let mut listed = LeaseSet::new(own());
    listed.replace(&[strange, good]);
    assert_eq!(entries(&listed), entries(&set), "a list and events end in the same state");
    set.delete(strange.name);
    assert_eq!(entries(&set), before);
}

/// Where packets can be sent.
fn usable(peer: Peer) {
    assert!(peer.mac.is_unicast() && peer.mac != own().mac);
    assert!(!own().network.contains(peer.public_ip) && peer.public_ip != own().public_ip);
    assert!(
        !peer.public_ip.is_multicast() && !peer.public_ip.is_loopback() && !peer.public_ip.is_unspecified()
    );
}

fn config(value: &[u8]) {
    let config = match NetworkConfig::from_json(value) {
        Ok(config) => config,
        Err(error) => return assert!(error.to_string().len() <= 10 * value.len() + 200, "{error}"),
    };
    assert_eq!(config.network.ip(), config.network.network());
    assert!(config.subnet_len >= config.network.prefix() + 2 && config.subnet_len <= 30);
    assert!(config.subnet_min <= config.subnet_max);
    let free = free_subnets(&config, &[]);
    assert!(!free.is_empty() && free.len() <= 100);
    for subnet in free {
        assert!(config.allows(subnet) && config.network.is_supernet_of(subnet), "{subnet} of {config:?}");
        assert_eq!(parse_key(&key_of(subnet)), Ok(subnet));
    }
}

fn lease<'a>(name: &'a str, value: &'a [u8], revision: u64) -> RawLease<'a> {
    RawLease { name, value, created: revision, modified: revision }
}

fn entries(leases: &LeaseSet) -> Entries {
    Entries::of(&Overlay { leases, direct: &Default::default(), blackhole: false })
}

fn subnet(number: u8) -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::new(10, 200, number, 0), 24).unwrap()
}

fn own() -> Own {
    Own {
        network: "10.200.0.0/16".parse().unwrap(),
        subnet: subnet(43),
        public_ip: Ipv4Addr::new(10, 8, 0, 111),
        mac: "22:84:96:4b:66:c2".parse().unwrap(),
        vni: Vni::DEFAULT,
        underlay: vec![Ipv4Addr::new(10, 8, 0, 111)],
    }
}
