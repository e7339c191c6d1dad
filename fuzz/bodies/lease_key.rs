//! Names of keys below `PREFIX/subnets/`, one a line. Whatever they are: what is read as a subnet is spelled in one way only, and
//! the set of leases comes out the same in whatever order they arrive.

use std::net::Ipv4Addr;

use crate::model::allocate::overlap;
use crate::model::lease::{key_of, parse_key};
use crate::model::lease_set::{LeaseSet, Own, RawLease};

/// More names than that are not looked at: every pair is compared.
const MOST: usize = 24;

/// The target.
pub fn check(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let mut names: Vec<&str> = text.split('\n').take(MOST).collect();
    names.sort_unstable();
    names.dedup();
    names.iter().for_each(|name| spelling(name));
    set(&names);
}

/// No two keys stand for one subnet: deleting one of them would take away what the other says.
fn spelling(name: &str) {
    match parse_key(name) {
        Ok(subnet) => assert_eq!(key_of(subnet), name),
        Err(error) => assert!(error.to_string().len() <= 10 * name.len() + 200),
    }
}

fn set(names: &[&str]) {
    let values: Vec<String> = (1..=names.len()).map(value).collect();
    let leases: Vec<RawLease<'_>> = names
        .iter()
        .zip(&values)
        .zip(1..)
        .map(|((name, value), at)| RawLease { name, value: value.as_bytes(), created: at, modified: at })
        .collect();
    let mut listed = LeaseSet::new(own());
    listed.replace(&leases);
    let (mut forwards, mut backwards) = (LeaseSet::new(own()), LeaseSet::new(own()));
    leases.iter().for_each(|lease| drop(forwards.put(lease)));
    leases.iter().rev().for_each(|lease| drop(backwards.put(lease)));
    for other in [&forwards, &backwards] {
        assert!(listed.peers().eq(other.peers()), "the order does not matter");
        assert_eq!(skipped(&listed), skipped(other));
    }
    peers(&listed);
    for lease in &leases {
        forwards.delete(lease.name);
        assert!(
            parse_key(lease.name).is_err()
                || forwards.peers().all(|(subnet, _)| key_of(subnet) != lease.name)
        );
    }
    assert_eq!((forwards.usable(), skipped(&forwards)), (0, 0));
}

fn peers(set: &LeaseSet) {
    let peers: Vec<_> = set.peers().map(|(subnet, _)| subnet).collect();
    assert_eq!(peers.len(), set.usable());
    for (at, subnet) in peers.iter().enumerate() {
        assert!(own().network.is_supernet_of(*subnet) && !overlap(*subnet, own().subnet));
        assert!(peers.iter().skip(at + 1).all(|other| !overlap(*subnet, *other)), "{subnet} is routed twice");
    }
}

fn skipped(set: &LeaseSet) -> u64 {
    set.skipped().values().sum()
}

fn own() -> Own {
    Own {
        network: "10.200.0.0/16".parse().unwrap(),
        subnet: "10.200.43.0/24".parse().unwrap(),
        public_ip: Ipv4Addr::new(10, 8, 0, 111),
        mac: "22:84:96:4b:66:c2".parse().unwrap(),
        vni: crate::model::Vni::DEFAULT,
        underlay: vec![Ipv4Addr::new(10, 8, 0, 111)],
    }
}

/// The lease of the node with this number.
fn value(number: usize) -> String {
    format!(
        r#"{{"PublicIP":"10.9.0.{number}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{number:02x}"}}}}"#
    )
}
