//! What the pure parts cost: reading leases, choosing a subnet, comparing desired with present state, writing messages.
//!
//! `cargo bench --bench pure`. Whole daemons, kernel and etcd are measured by `cargo lab bench`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark says what is wrong by failing")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use divan::Bencher;
use flanneld::kernel::encoded;
use flanneld::model::allocate::free_subnets;
use flanneld::model::diff::{diff, diff_of};
use flanneld::model::lease_set::{LeaseSet, Own, RawLease};
use flanneld::model::overlay::{Overlay, keys_of};
use flanneld::model::state::Entries;
use flanneld::model::{LeaseAttrs, MacAddr, NetworkConfig, Vni, VxlanData, lease};
use ipnetwork::Ipv4Network;

const PEERS: [u32; 3] = [255, 4_000, 16_000];
/// Bytes; the last level of a large server's processor has less.
const LARGER_THAN_CACHES: usize = 128 << 20;

fn main() {
    divan::main();
}

/// Keys and values as etcd lists them.
fn listing(peers: u32) -> Vec<(String, String)> {
    let of = |number: u32| {
        let subnet = subnet(number);
        let [_, b, c, d] = number.to_be_bytes();
        let data = VxlanData { vni: 1, mac: MacAddr::new([2, 0, 0x5e, b, c, d]) };
        let public_ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 1, 1)) + number);
        (lease::key_of(subnet), LeaseAttrs::vxlan(public_ip, data, None).to_json())
    };
    (1..=peers).map(of).collect()
}

fn subnet(number: u32) -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + (number << 8)), 24).unwrap()
}

fn raw(listing: &[(String, String)]) -> Vec<RawLease<'_>> {
    listing
        .iter()
        .map(|(name, value)| RawLease { name, value: value.as_bytes(), created: 1, modified: 1 })
        .collect()
}

fn empty() -> LeaseSet {
    LeaseSet::new(Own {
        network: "100.64.0.0/10".parse().unwrap(),
        subnet: subnet(0),
        public_ip: Ipv4Addr::new(10, 8, 0, 1),
        mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        vni: Vni::DEFAULT,
        underlay: Vec::new(),
    })
}

fn filled(peers: u32) -> LeaseSet {
    let mut leases = empty();
    leases.replace(&raw(&listing(peers)));
    assert_eq!(leases.usable(), usize::try_from(peers).unwrap());
    leases
}

const NO_PEER_IS_DIRECT: &BTreeSet<Ipv4Addr> = &BTreeSet::new();

fn overlay(leases: &LeaseSet) -> Overlay<'_> {
    Overlay { leases, direct: NO_PEER_IS_DIRECT, blackhole: false }
}

/// A listing is read and judged.
#[divan::bench(args = PEERS)]
fn read_a_listing(bencher: Bencher, peers: u32) {
    let listing = listing(peers);
    bencher.with_inputs(empty).bench_local_refs(|leases| leases.replace(&raw(&listing)));
}

/// The desired entries of all peers are compared with a kernel that holds them already.
#[divan::bench(args = PEERS)]
fn compare_everything(bencher: Bencher, peers: u32) {
    let leases = filled(peers);
    let present = Entries::of(&overlay(&leases));
    bencher.bench_local(|| diff(&overlay(&leases), &present));
}

/// One lease changes among many: what it touches is found and compared.
#[divan::bench(args = PEERS)]
fn follow_one_change(bencher: Bencher, peers: u32) {
    bencher.bench_local(one_change(peers));
}

/// The same as a daemon meets it that had nothing to do for a while: no cache holds its code or data.
#[divan::bench(args = PEERS, sample_size = 1)]
fn follow_one_change_with_cold_caches(bencher: Bencher, peers: u32) {
    let (mut follow, mut others) = (one_change(peers), vec![0_u8; LARGER_THAN_CACHES]);
    let of_others = || others.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
    bencher.with_inputs(of_others).bench_local_values(|()| follow());
}

/// Reads a changed lease, compares what it touches and writes the messages; each time another MAC.
fn one_change(peers: u32) -> impl FnMut() -> Vec<u8> {
    let mut leases = filled(peers);
    let present = Entries::of(&overlay(&leases));
    let listing = listing(peers);
    let values = ["02:00:5e:01:00:01", "02:00:5e:02:00:01"].map(|mac| {
        let attrs = LeaseAttrs::from_json(listing[0].1.as_bytes()).unwrap();
        let data = VxlanData { vni: 1, mac: mac.parse().unwrap() };
        LeaseAttrs::vxlan(attrs.public_ip, data, None).to_json()
    });
    let mut turn = 0;
    move || {
        turn += 1;
        let value = values[turn % 2].as_bytes();
        let lease = RawLease { name: &listing[0].0, value, created: 1, modified: 2 };
        let keys = keys_of(&leases.put(&lease));
        encoded(7, &diff_of(keys, &overlay(&leases), &present).operations)
    }
}

/// The netlink messages of all peers' entries are written: three a peer.
#[divan::bench(args = PEERS)]
fn encode_everything(bencher: Bencher, peers: u32) {
    let plan = diff(&overlay(&filled(peers)), &Entries::default());
    assert_eq!(plan.operations.len(), 3 * usize::try_from(peers).unwrap());
    bencher.bench_local(|| encoded(7, &plan.operations));
}

/// Candidates for a new lease are looked for.
#[divan::bench(args = PEERS)]
fn find_free_subnets(bencher: Bencher, peers: u32) {
    let text = br#"{"Network":"100.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    let config = NetworkConfig::from_json(text).unwrap();
    let leased: Vec<Ipv4Network> = (1..=peers).map(subnet).collect();
    bencher.bench_local(|| free_subnets(&config, &leased));
}
