//! Recorded notifications become the changes they stand for, and nothing else does.

use proptest::prelude::*;

use super::*;
use crate::kernel::recorded::kernel;
use crate::model::state::{FdbTarget, Route};

fn view() -> View {
    let scope = Scope {
        vtep: "flannel.1".parse().unwrap(),
        parent: "wg0".parse().unwrap(),
        network: "10.200.0.0/16".parse().unwrap(),
    };
    View { scope, vtep: Some(4), parent: Some(3), own_port: 0, author: None }
}

fn noticed_by(view: &mut View, command: &str) -> Vec<Change> {
    let mut batch = Batch::default();
    for bytes in kernel(command) {
        for message in messages(&bytes) {
            view.notice(&message.unwrap(), &mut batch);
        }
    }
    batch.into_changes()
}

fn noticed(command: &str) -> Vec<Change> {
    noticed_by(&mut view(), command)
}

#[test]
fn a_peers_entries_are_noticed() {
    let mac = "e2:f9:06:60:e7:6a".parse().unwrap();
    let subnet = "10.200.54.0/24".parse().unwrap();
    let target = FdbTarget { dst: [10, 8, 0, 112].into(), plain: true };
    assert_eq!(
        noticed("bridge fdb add e2:f9:06:60:e7:6a dev flannel.1 dst 10.8.0.112 self permanent"),
        [Change::Fdb(mac, Some(target))]
    );
    assert_eq!(
        noticed("ip neigh add 10.200.54.0 lladdr e2:f9:06:60:e7:6a dev flannel.1 nud permanent"),
        [Change::Neighbor([10, 200, 54, 0].into(), Some(mac))]
    );
    assert_eq!(
        noticed("ip route add 10.200.54.0/24 via 10.200.54.0 dev flannel.1 onlink"),
        [Change::RouteAdded { route: Route::overlay(subnet), replaced: false }]
    );
    let direct = Route::direct(subnet, [10, 8, 0, 112].into());
    assert_eq!(
        noticed("ip route replace 10.200.54.0/24 via 10.8.0.112 proto 149"),
        [Change::RouteAdded { route: direct, replaced: true }]
    );
    assert_eq!(noticed("ip route del 10.200.54.0/24"), [Change::RouteRemoved(direct)]);
    assert_eq!(
        noticed("bridge fdb del e2:f9:06:60:e7:6a dev flannel.1 dst 10.8.0.112 self"),
        [Change::Fdb(mac, None)]
    );
}

/// The kernel tells it twice, as failed and as deleted.
#[test]
fn a_deleted_neighbour_is_one_change() {
    let gone = Change::Neighbor([10, 200, 54, 0].into(), None);
    assert_eq!(noticed("ip neigh del 10.200.54.0 dev flannel.1"), [gone]);
}

#[test]
fn an_entry_with_a_port_of_its_own_is_not_plain_and_a_learned_one_is_none() {
    let odd = noticed(
        "bridge fdb add e2:f9:06:60:e7:6b dev flannel.1 dst 10.8.0.113 self permanent vni 5 port 9999",
    );
    let target = FdbTarget { dst: [10, 8, 0, 113].into(), plain: false };
    assert_eq!(odd, [Change::Fdb("e2:f9:06:60:e7:6b".parse().unwrap(), Some(target))]);
    let learned = noticed("bridge fdb add e2:f9:06:60:e7:6c dev flannel.1 dst 10.8.0.114 self dynamic");
    assert_eq!(learned, [Change::Fdb("e2:f9:06:60:e7:6c".parse().unwrap(), None)]);
}

#[test]
fn routes_that_are_not_plain_are_told_apart() {
    let multipath = noticed(
        "ip route add 10.200.55.0/24 metric 7 nexthop via 10.8.0.2 dev wg0 nexthop via 10.8.0.3 dev wg0",
    );
    let unreachable = noticed("ip route add unreachable 10.200.56.0/24");
    for (changes, metric) in [(multipath, 7), (unreachable, 0)] {
        let [Change::RouteAdded { route, .. }] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!((route.plain, route.metric, route.gateway), (false, metric, None));
    }
    assert_eq!(noticed("ip route add 10.200.57.0/24 dev wg0 table 100"), []);
}

#[test]
fn entries_of_other_devices_and_networks_are_left_out() {
    let mut other = View { vtep: Some(9), parent: Some(8), ..view() };
    let command = "ip neigh add 10.200.54.0 lladdr e2:f9:06:60:e7:6a dev flannel.1 nud permanent";
    assert_eq!(noticed_by(&mut other, command), []);
    other.scope.network = "10.201.0.0/16".parse().unwrap();
    let command = "ip route add 10.200.54.0/24 via 10.200.54.0 dev flannel.1 onlink";
    assert_eq!(noticed_by(&mut other, command), []);
    let address = "ip addr add 10.200.43.0/32 dev flannel.1";
    assert_eq!(noticed_by(&mut other, address), [Change::Underlay], "of some link, outside of this overlay");
    assert_eq!(noticed_by(&mut View { vtep: Some(9), ..view() }, address), [], "a pod's");
}

#[test]
fn a_device_is_followed_by_name_to_a_new_index() {
    let mut view = View { vtep: Some(77), ..view() };
    assert_eq!(noticed_by(&mut view, "ip link set flannel.1 up"), [Change::Device]);
    assert_eq!((view.vtep, view.parent), (Some(4), Some(3)));
    assert_eq!(noticed_by(&mut view, "ip addr add 10.200.43.0/32 dev flannel.1"), [Change::Device]);
}

#[test]
fn a_link_that_goes_or_takes_another_name_is_no_longer_ours() {
    let [ours, other] = ["flannel.1", "renamed0"].map(|name| name.parse::<IfName>().unwrap());
    let mut known = Some(4);
    assert!(!follow(&mut known, &ours, 5, Some(&other)));
    assert!(follow(&mut known, &ours, 4, Some(&other)));
    assert_eq!(known, None);
    assert!(follow(&mut known, &ours, 6, Some(&ours)));
    assert!(follow(&mut known, &ours, 6, None));
    assert_eq!(known, None);
}

#[test]
fn what_concerns_everything_stands_at_the_end_and_once() {
    let mut batch = Batch { device: true, lost: true, ..Batch::default() };
    let change = Change::Neighbor([10, 200, 54, 0].into(), None);
    batch.push(change.clone());
    batch.push(change.clone());
    assert_eq!(batch.into_changes(), [change, Change::Device, Change::Lost]);
}

proptest! {
    /// Recorded notifications with bytes changed at random.
    #[test]
    fn damaged_notifications_are_survived(
        which in 0_usize..4, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
    ) {
        let commands = [
            "ip link set flannel.1 up",
            "ip addr add 10.200.43.0/32 dev flannel.1",
            "bridge fdb add e2:f9:06:60:e7:6a dev flannel.1 dst 10.8.0.112 self permanent",
            "ip route add 10.200.55.0/24 metric 7 nexthop via 10.8.0.2 dev wg0 nexthop via 10.8.0.3 dev wg0",
        ];
        let mut bytes = kernel(commands[which]).concat();
        for (place, value) in damage {
            *place.get_mut(&mut bytes) = value;
        }
        let (mut view, mut batch) = (view(), Batch::default());
        for message in messages(&bytes).flatten() {
            view.notice(&message, &mut batch);
        }
    }
}
