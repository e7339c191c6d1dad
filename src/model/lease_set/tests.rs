//! Which leases are usable peers, why the others are not, and what a change touches.

use super::*;
use crate::model::diff::{Plan, diff, diff_of};
use crate::model::overlay::{Overlay, keys_of};
use crate::model::state::Entries;
use proptest::prelude::*;

fn own() -> Own {
    Own {
        network: "10.200.0.0/16".parse().unwrap(),
        subnet: "10.200.1.0/24".parse().unwrap(),
        public_ip: Ipv4Addr::new(10, 8, 0, 1),
        mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        vni: Vni::DEFAULT,
        underlay: vec![Ipv4Addr::new(10, 8, 0, 1), Ipv4Addr::new(10, 200, 77, 7)],
    }
}

fn value(public_ip: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

fn put(set: &mut LeaseSet, name: &str, value: &str, revision: u64) -> Touched {
    set.put(&RawLease { name, value: value.as_bytes(), created: revision, modified: revision })
}

fn skips(touched: &Touched) -> Vec<(&str, Skip)> {
    touched.skipped.iter().map(|skipped| (skipped.name.as_str(), skipped.skip)).collect()
}

fn peers(set: &LeaseSet) -> Vec<String> {
    set.peers().map(|(subnet, peer)| format!("{subnet} {}", peer.public_ip)).collect()
}

#[test]
fn each_reason_to_skip_leaves_the_other_peers_alone() {
    let good = value("10.8.0.2", "02:00:00:00:00:02");
    let cases = [
        ("junk", good.clone(), Skip::BadKey),
        ("10.200.9.0-24", "{junk".to_owned(), Skip::BadValue),
        ("10.200.9.0-24", value("10.8.0.9", "junk"), Skip::BadValue),
        (
            "10.200.9.0-24",
            r#"{"PublicIP":"10.8.0.9","BackendType":"host-gw"}"#.to_owned(),
            Skip::OtherBackend,
        ),
        ("10.200.9.0-24", value("10.8.0.9", "02:00:00:00:00:09").replace(":1,", ":2,"), Skip::OtherVni),
        ("10.201.9.0-24", value("10.8.0.9", "02:00:00:00:00:09"), Skip::OutsideNetwork),
        ("10.0.0.0-8", value("10.8.0.9", "02:00:00:00:00:09"), Skip::OutsideNetwork),
        ("10.200.1.0-24", value("10.8.0.9", "02:00:00:00:00:09"), Skip::OwnSubnet),
        ("10.200.1.128-25", value("10.8.0.9", "02:00:00:00:00:09"), Skip::Overlap),
        ("10.200.2.128-25", value("10.8.0.9", "02:00:00:00:00:09"), Skip::Overlap),
        ("10.200.2.0-23", value("10.8.0.9", "02:00:00:00:00:09"), Skip::Overlap),
        ("10.200.77.0-24", value("10.8.0.9", "02:00:00:00:00:09"), Skip::CoversUnderlay),
        ("10.200.9.0-24", value("0.0.0.0", "02:00:00:00:00:09"), Skip::BadPublicIp),
        ("10.200.9.0-24", value("127.0.0.1", "02:00:00:00:00:09"), Skip::BadPublicIp),
        ("10.200.9.0-24", value("224.0.0.1", "02:00:00:00:00:09"), Skip::BadPublicIp),
        ("10.200.9.0-24", value("255.255.255.255", "02:00:00:00:00:09"), Skip::BadPublicIp),
        ("10.200.9.0-24", value("10.200.5.5", "02:00:00:00:00:09"), Skip::BadPublicIp),
        ("10.200.9.0-24", value("10.8.0.1", "02:00:00:00:00:09"), Skip::OwnPublicIp),
        ("10.200.9.0-24", value("10.8.0.9", "01:00:5e:00:00:01"), Skip::BadMac),
        ("10.200.9.0-24", value("10.8.0.9", "00:00:00:00:00:00"), Skip::BadMac),
        ("10.200.9.0-24", value("10.8.0.9", "02:00:00:00:00:01"), Skip::OwnMac),
    ];
    for (name, value, skip) in cases {
        let mut set = LeaseSet::new(own());
        put(&mut set, "10.200.2.0-24", &good, 5);
        let touched = put(&mut set, name, &value, 6);
        assert_eq!(skips(&touched), [(name, skip)], "{value}");
        assert!(!touched.subnets.contains(&"10.200.2.0/24".parse().unwrap()), "{name} touches the good peer");
        assert_eq!(set.skipped().get(&skip), Some(&1));
        assert_eq!(peers(&set), ["10.200.2.0/24 10.8.0.2"], "{name} {value}");
        assert_eq!(put(&mut set, name, &value, 7).skipped, [], "reported once");
        set.delete(name);
        assert_eq!(set.skipped().get(&skip), Some(&0));
    }
}

#[test]
fn our_own_lease_is_no_peer_and_nothing_to_report() {
    let mut set = LeaseSet::new(own());
    let touched = put(&mut set, "10.200.1.0-24", &value("10.8.0.1", "02:00:00:00:00:01"), 3);
    assert_eq!((touched.skipped.len(), set.usable(), set.skipped().len()), (0, 0, 0));
}

#[test]
fn a_lease_that_was_covered_becomes_usable_when_the_older_one_goes() {
    let mut set = LeaseSet::new(own());
    put(&mut set, "10.200.8.0-22", &value("10.8.0.2", "02:00:00:00:00:02"), 5);
    put(&mut set, "10.200.9.0-24", &value("10.8.0.3", "02:00:00:00:00:03"), 6);
    assert_eq!(peers(&set), ["10.200.8.0/22 10.8.0.2"]);
    let touched = set.delete("10.200.8.0-22");
    assert_eq!(peers(&set), ["10.200.9.0/24 10.8.0.3"]);
    assert_eq!(touched.subnets.len(), 2);
}

#[test]
fn of_two_leases_with_one_mac_the_one_written_last_counts() {
    let mut set = LeaseSet::new(own());
    let mac = "02:00:00:00:00:02";
    put(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 5);
    let touched = put(&mut set, "10.200.3.0-24", &value("10.8.0.3", mac), 6);
    assert_eq!(peers(&set), ["10.200.3.0/24 10.8.0.3"]);
    assert_eq!(skips(&touched), [("10.200.2.0-24", Skip::DuplicateMac)]);
    set.delete("10.200.3.0-24");
    assert_eq!(peers(&set), ["10.200.2.0/24 10.8.0.2"]);
}

#[test]
fn a_lease_that_is_only_written_again_touches_nothing() {
    let mut set = LeaseSet::new(own());
    let (mac, other) = ("02:00:00:00:00:02", "02:00:00:00:00:03");
    let renew = |set: &mut LeaseSet, name, value: &str, modified| {
        set.put(&RawLease { name, value: value.as_bytes(), created: 5, modified })
    };
    put(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 5);
    assert_eq!(renew(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 6), Touched::default());
    assert!(!renew(&mut set, "10.200.2.0-24", &value("10.8.0.2", other), 7).is_empty(), "another value");
    assert!(!put(&mut set, "10.200.2.0-24", &value("10.8.0.2", other), 8).is_empty(), "created anew");
    // Its revision was taken over: the lease with the same MAC that was written in between does not count.
    renew(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 9);
    put(&mut set, "10.200.3.0-24", &value("10.8.0.3", mac), 10);
    renew(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 11);
    assert_eq!(peers(&set), ["10.200.2.0/24 10.8.0.2"]);
}

#[test]
fn only_what_is_nothing_but_a_renewal_is_taken_over_as_one() {
    let (mac, other) = ("02:00:00:00:00:02", "02:00:00:00:00:03");
    let (own_subnet, overlapping) = ("10.200.1.0-24", "10.200.2.0-25");
    let mut set = LeaseSet::new(own());
    for (name, value) in [
        ("10.200.2.0-24", value("10.8.0.2", mac)),
        ("10.200.3.0-24", "{junk".to_owned()),
        (own_subnet, value("10.8.0.9", "02:00:00:00:00:09")),
    ] {
        put(&mut set, name, &value, 5);
    }
    let mut revision = 5;
    let mut renews = |set: &mut LeaseSet, name: &str, value: &str, created| {
        revision += 1;
        let (before, lease) =
            (format!("{set:?}"), RawLease { name, value: value.as_bytes(), created, modified: revision });
        let renews = set.put_renewal(&lease);
        assert_eq!(renews, format!("{set:?}") != before, "its revision is taken over, or nothing is done");
        renews
    };
    assert!(renews(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 5));
    assert!(renews(&mut set, "10.200.3.0-24", "{junk", 5), "it stays as bad as it was");
    assert!(!renews(&mut set, "10.200.2.0-24", &value("10.8.0.2", other), 5), "another value");
    assert!(!renews(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 6), "created anew");
    assert!(!renews(&mut set, "10.200.4.0-24", &value("10.8.0.4", other), 5), "not known");
    assert!(!renews(&mut set, "junk", "junk", 5), "no key of a lease");
    assert!(
        !renews(&mut set, own_subnet, &value("10.8.0.9", "02:00:00:00:00:09"), 5),
        "that it stands there is news"
    );
    put(&mut set, overlapping, &value("10.8.0.2", mac), 20);
    assert!(!renews(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 5), "who wrote last has the MAC");
}

#[test]
fn an_overlapping_lease_cannot_take_a_peers_mac() {
    let mut set = LeaseSet::new(own());
    put(&mut set, "10.200.2.0-24", &value("10.8.0.2", "02:00:00:00:00:02"), 5);
    put(&mut set, "10.200.2.0-25", &value("10.8.0.9", "02:00:00:00:00:02"), 6);
    assert_eq!(peers(&set), ["10.200.2.0/24 10.8.0.2"]);
}

#[test]
fn two_subnets_of_one_node_are_both_usable() {
    let mut set = LeaseSet::new(own());
    put(&mut set, "10.200.2.0-24", &value("10.8.0.2", "02:00:00:00:00:02"), 5);
    put(&mut set, "10.200.3.0-24", &value("10.8.0.2", "02:00:00:00:00:02"), 6);
    assert_eq!(set.usable(), 2);
}

#[test]
fn a_skipped_lease_names_who_wrote_it() {
    let mut set = LeaseSet::new(own());
    let node = NodeId::from_machine_id("clone");
    let value = value("10.8.0.9", "02:00:00:00:00:01");
    let value = format!("{},\"NodeID\":\"{node}\"}}", value.trim_end_matches('}').to_owned() + "}");
    let touched = put(&mut set, "10.200.9.0-24", &value, 6);
    let expected = Skipped {
        name: "10.200.9.0-24".to_owned(),
        skip: Skip::OwnMac,
        writer: Some(Writer { public_ip: Some(Ipv4Addr::new(10, 8, 0, 9)), node: Some(node), revision: 6 }),
        rival: None,
    };
    assert_eq!(touched.skipped, [expected]);
}

#[test]
fn of_two_leases_that_collide_the_skipped_one_names_the_other() {
    let mut set = LeaseSet::new(own());
    let node = NodeId::from_machine_id("clone");
    let with_node = |value: String| format!("{},\"NodeID\":\"{node}\"}}", value.strip_suffix('}').unwrap());
    put(&mut set, "10.200.8.0-24", &value("10.8.0.8", "02:00:00:00:00:08"), 5);
    let twin = with_node(value("10.8.0.9", "02:00:00:00:00:08"));
    let of_mac = put(&mut set, "10.200.9.0-24", &twin, 6).skipped;
    let within = put(&mut set, "10.200.9.128-25", &value("10.8.0.7", "02:00:00:00:00:07"), 7).skipped;
    let told = |skipped: &[Skipped]| {
        let lines = skipped.iter().map(|it| format!("{} {}", it.name, it.rival.as_ref().unwrap()));
        lines.collect::<Vec<_>>()
    };
    let winner = format!("10.200.9.0-24 (public IP 10.8.0.9, node {node}, revision 6)");
    assert_eq!(told(&of_mac), [format!("10.200.8.0-24 {winner}")]);
    assert_eq!(told(&within), [format!("10.200.9.128-25 {winner}")]);
}

const GRACE: Duration = Duration::from_secs(3600);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn three_peers() -> (Vec<(String, String)>, LeaseSet) {
    let leases: Vec<_> = (2..5)
        .map(|number| {
            let value = value(&format!("10.8.0.{number}"), &format!("02:00:00:00:00:0{number}"));
            (format!("10.200.{number}.0-24"), value)
        })
        .collect();
    let mut set = LeaseSet::new(own()).with_grace(GRACE);
    let touched = list(&mut set, &leases, (7, 100), 0);
    assert_eq!((touched.replaced, set.usable()), (None, 3));
    (leases, set)
}

fn list(
    set: &mut LeaseSet,
    leases: &[(String, String)],
    (cluster, revision): (u64, u64),
    now: u64,
) -> Touched {
    let raw: Vec<RawLease<'_>> = (1..)
        .zip(leases)
        .map(|(created, (name, value))| RawLease {
            name,
            value: value.as_bytes(),
            created,
            modified: created,
        })
        .collect();
    set.list(&raw, Source { cluster, revision }, at(now))
}

#[test]
fn a_replaced_store_takes_no_peer_away_until_the_grace_period_is_over() {
    let cases = [
        (vec![], (8, 100), "another cluster id"),
        (vec![0], (7, 99), "its revision is below one seen before"),
        (vec![], (7, 101), "it is empty"),
    ];
    for (present, source, reason) in cases {
        let (leases, mut set) = three_peers();
        let left: Vec<_> = present.iter().map(|index: &usize| leases[*index].clone()).collect();
        let touched = list(&mut set, &left, source, 10);
        assert_eq!(touched.replaced, Some(reason));
        assert_eq!((set.usable(), set.kept()), (3, 3 - left.len()), "{reason}");
        // The same store again: what it does not list is still kept, not for longer.
        assert_eq!(list(&mut set, &left, (source.0, source.1 + 5), 20).replaced, None);
        assert_eq!((set.usable(), set.due()), (3, Some(at(3610))), "{reason}");
        set.end_grace(at(3609));
        assert_eq!(set.usable(), 3, "{reason}");
        let touched = set.end_grace(at(3610));
        assert_eq!((set.usable(), touched.subnets.len(), set.due()), (left.len(), 3 - left.len(), None));
    }
}

#[test]
fn an_ordinary_list_is_authoritative() {
    let (leases, mut set) = three_peers();
    assert_eq!(list(&mut set, &leases[1..], (7, 101), 10).replaced, None);
    assert_eq!((set.usable(), set.kept()), (2, 0));
}

#[test]
fn a_kept_peer_that_registers_again_is_a_real_one_and_can_leave() {
    let (leases, mut set) = three_peers();
    list(&mut set, &[], (8, 1), 10);
    let touched = put(&mut set, &leases[0].0, &leases[0].1, 2);
    assert_eq!((touched.skipped.len(), set.kept(), set.usable()), (0, 2, 3));
    set.delete(&leases[0].0);
    assert_eq!((set.kept(), set.usable()), (2, 2));
}

#[test]
fn a_kept_peer_gives_way_to_whoever_leases_its_addresses_and_not_to_junk() {
    for name in ["10.200.2.0-24", "10.200.2.0-23", "10.200.2.64-26"] {
        let (_, mut set) = three_peers();
        list(&mut set, &[], (8, 1), 10);
        put(&mut set, "10.200.2.0-25", "{junk", 2);
        assert_eq!(set.kept(), 3);
        put(&mut set, name, &value("10.8.0.99", "02:00:00:00:00:99"), 3);
        assert!(peers(&set).iter().any(|peer| peer.ends_with(" 10.8.0.99")), "{name}: {:?}", peers(&set));
        assert!(!peers(&set).iter().any(|peer| peer.ends_with(" 10.8.0.2")), "{name}: {:?}", peers(&set));
        set.delete(name);
        assert!(!peers(&set).iter().any(|peer| peer.ends_with(" 10.8.0.2")), "it does not come back");
    }
}

#[test]
fn a_kept_peer_loses_its_mac_to_a_real_lease_and_its_place_to_ourselves() {
    let (leases, mut set) = three_peers();
    list(&mut set, &[], (8, 1), 10);
    put(&mut set, "10.200.9.0-24", &value("10.8.0.99", "02:00:00:00:00:02"), 2);
    assert!(!peers(&set).contains(&"10.200.2.0/24 10.8.0.2".to_owned()));
    let moved = Own { subnet: "10.200.3.0/24".parse().unwrap(), ..own() };
    set.set_own(moved, &[], Source { cluster: 8, revision: 3 }, at(20));
    assert_eq!((set.kept(), set.usable()), (2, 2), "{:?} of {leases:?}", peers(&set));
}

#[test]
fn a_list_is_as_old_as_the_question_for_it_and_events_may_overtake_it() {
    let (leases, mut set) = three_peers();
    let (asked, last) = (set.revision(), set.revision() + 1);
    put(&mut set, "10.200.9.0-24", &value("10.8.0.99", "02:00:00:00:00:09"), last);
    assert_eq!((asked, set.revision()), (100, 101));
    set.expect_list_since(asked);
    let touched = list(&mut set, &leases, (7, asked), 10);
    assert_eq!((touched.replaced, set.kept(), set.revision()), (None, 0, asked));
    set.expect_list_since(last);
    assert!(list(&mut set, &leases, (7, asked - 1), 10).replaced.is_some(), "older than the question");
}

#[test]
fn a_key_of_one_of_two_stores_does_not_make_the_next_list_an_old_one() {
    let (mut leases, mut set) = three_peers();
    let (name, value) = ("10.200.9.0-24", value("10.8.0.9", "02:00:00:00:00:09"));
    let written = |modified| RawLease {
        name,
        value: value.as_bytes(),
        created: Origin::V2.created(101),
        modified: Origin::V2.modified(modified),
    };
    set.put(&written(101));
    assert!(set.put_renewal(&written(102)));
    assert_eq!(set.revision(), 102);
    leases.push((name.to_owned(), value.clone()));
    assert_eq!(list(&mut set, &leases, (7, 202), 10).replaced, None);
}

#[derive(Debug, Clone)]
enum Step {
    Put { slot: u32, length: u8, ip: u8, mac: u8, junk: bool },
    Delete { slot: u32, length: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let put = (0_u32..6, 22_u8..=25, 0_u8..5, 0_u8..4, any::<bool>());
    prop_oneof![
        3 => put.prop_map(|(slot, length, ip, mac, junk)| Step::Put { slot, length, ip, mac, junk: junk && ip == 0 }),
        1 => (0_u32..6, 22_u8..=25).prop_map(|(slot, length)| Step::Delete { slot, length }),
    ]
}

fn name(slot: u32, length: u8) -> String {
    let subnet = Ipv4Network::new((0x0ac8_0000 + slot * 256).into(), length).unwrap();
    format!("{}-{length}", subnet.network())
}

proptest! {
    #[test]
    fn events_one_by_one_and_the_whole_list_end_in_the_same_state(steps in prop::collection::vec(step(), 0..40)) {
        let mut set = LeaseSet::new(own());
        let mut store: BTreeMap<String, (String, u64, u64)> = BTreeMap::new();
        let direct = BTreeSet::from([Ipv4Addr::new(10, 8, 0, 2)]);
        let mut kernel = Entries::of(&Overlay { leases: &set, direct: &direct, blackhole: true });
        for (revision, step) in (10..).zip(steps) {
            let touched = match step {
                Step::Put { slot, length, ip, mac, junk } => {
                    let name = name(slot, length);
                    let value = if junk { "{".to_owned() } else { value(&format!("10.8.0.{ip}"), &format!("02:00:00:00:00:0{mac}")) };
                    let created = store.get(&name).map_or(revision, |known| known.1);
                    store.insert(name.clone(), (value.clone(), created, revision));
                    set.put(&RawLease { name: &name, value: value.as_bytes(), created, modified: revision })
                }
                Step::Delete { slot, length } => {
                    store.remove(&name(slot, length));
                    set.delete(&name(slot, length))
                }
            };
            let overlay = Overlay { leases: &set, direct: &direct, blackhole: true };
            diff_of(keys_of(&touched), &overlay, &kernel).operations.iter().for_each(|operation| kernel.apply(operation));
            prop_assert_eq!(&kernel, &Entries::of(&overlay), "what is touched is all that has to be looked at");
            prop_assert_eq!(diff(&overlay, &kernel), Plan::default());
            let list: Vec<RawLease<'_>> = store.iter()
                .map(|(name, (value, created, modified))| RawLease { name, value: value.as_bytes(), created: *created, modified: *modified })
                .collect();
            let mut fresh = LeaseSet::new(own());
            fresh.replace(&list);
            prop_assert_eq!(peers(&set), peers(&fresh));
            prop_assert_eq!(set.usable(), fresh.usable());
            let counts = |set: &LeaseSet| set.skipped().iter().filter(|(_, count)| **count > 0).map(|(skip, count)| (*skip, *count)).collect::<Vec<_>>();
            prop_assert_eq!(counts(&set), counts(&fresh));
        }
    }

    #[test]
    fn usable_peers_never_overlap(steps in prop::collection::vec((0_u32..64, 20_u8..=26, 0_u8..5), 0..60)) {
        let mut set = LeaseSet::new(own());
        for (revision, (slot, length, ip)) in (1..).zip(steps) {
            put(&mut set, &name(slot, length), &value(&format!("10.8.1.{ip}"), &format!("02:00:00:00:01:0{ip}")), revision);
        }
        let usable: Vec<Ipv4Network> = set.peers().map(|(subnet, _)| subnet).collect();
        for (index, a) in usable.iter().enumerate() {
            for b in &usable[index + 1..] {
                prop_assert!(!crate::model::allocate::overlap(*a, *b));
            }
        }
    }
}
