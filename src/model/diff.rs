//! From what the kernel holds to what it should hold: the shortest list of operations, in an order that
//! never takes away what stays.
//!
//! Additions come first, from the far end to the near one (FDB, neighbour, route), so that a route never points
//! at nothing; removals come last and in reverse.

use std::net::Ipv4Addr;

use super::MacAddr;
use super::state::{
    Desired, Entries, EntryKey, FdbTarget, Operation, PROTOCOL_BOOT, PROTOCOL_FLANNELD, Route, RouteDevice,
};

/// What has to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they have to be carried out, which is that of [`Operation`].
    pub operations: Vec<Operation>,
    /// Desired routes whose place is taken by somebody else's route, which is left alone: (ours, theirs).
    pub conflicts: Vec<(Route, Route)>,
    /// Direct routes that are right but were installed by the Go daemon: from now on they count as ours.
    pub adopted: Vec<Route>,
}

/// Compares everything. Walks both sides once, side by side: at a restart there are thousands of entries, and nearly all are right.
///
/// Ours are all neighbours and FDB entries of our device, its routes into the network, and other routes that carry our
/// protocol number. Routes of others are never touched.
#[must_use]
pub fn diff(desired: &impl Desired, observed: &Entries) -> Plan {
    let mut plan = Plan::default();
    side_by_side(desired.fdb_entries(), &observed.fdb, |mac, wanted, found| plan.fdb(mac, wanted, found));
    side_by_side(desired.neighbors(), &observed.neighbors, |ip, wanted, found| {
        plan.neighbor(ip, wanted, found);
    });
    let (mut found, mut there) = (observed.routes.iter().peekable(), Vec::new());
    for wanted in desired.routes() {
        while let Some(other) = found.next_if(|route| route.dst < wanted.dst) {
            plan.unwanted_route(other);
        }
        there.clear();
        there.extend(std::iter::from_fn(|| found.next_if(|route| route.dst == wanted.dst)));
        plan.route(&wanted, &there);
    }
    found.for_each(|route| plan.unwanted_route(route));
    plan.in_order()
}

/// Compares the entries with these keys alone. The keys may be in any order, and repeated.
#[must_use]
pub fn diff_of(mut keys: Vec<EntryKey>, desired: &impl Desired, observed: &Entries) -> Plan {
    keys.sort_unstable();
    keys.dedup();
    let mut plan = Plan::default();
    for key in keys {
        match key {
            EntryKey::Neighbor(ip) => {
                plan.neighbor(ip, desired.neighbor(ip), observed.neighbors.get(&ip).copied());
            }
            EntryKey::Fdb(mac) => plan.fdb(mac, desired.fdb_entry(mac), observed.fdb.get(&mac).copied()),
            EntryKey::Routes(dst) => match desired.route(dst) {
                Some(wanted) => plan.route(&wanted, &observed.routes_to(dst).collect::<Vec<_>>()),
                None => observed.routes_to(dst).for_each(|route| plan.unwanted_route(route)),
            },
        }
    }
    plan.in_order()
}

/// Hands out each key that is on one of the sides, with its value there. Both are in order.
fn side_by_side<'a, K: Ord + Copy + 'a, V: Copy + 'a>(
    wanted: impl Iterator<Item = (K, V)>,
    found: impl IntoIterator<Item = (&'a K, &'a V)>,
    mut each: impl FnMut(K, Option<V>, Option<V>),
) {
    let mut found = found.into_iter().map(|(key, value)| (*key, *value)).peekable();
    for (key, value) in wanted {
        while let Some((other, there)) = found.next_if(|(other, _)| *other < key) {
            each(other, None, Some(there));
        }
        let there = found.next_if(|(other, _)| *other == key).map(|(_, there)| there);
        each(key, Some(value), there);
    }
    found.for_each(|(key, there)| each(key, None, Some(there)));
}

impl Plan {
    fn fdb(&mut self, mac: MacAddr, wanted: Option<FdbTarget>, found: Option<FdbTarget>) {
        self.operations.extend(match (wanted, found) {
            (Some(target), found) => (found != wanted).then_some(Operation::PutFdb(mac, target.dst)),
            (None, found) => found.map(|target| Operation::DeleteFdb(mac, target.dst)),
        });
    }

    fn neighbor(&mut self, ip: Ipv4Addr, wanted: Option<MacAddr>, found: Option<MacAddr>) {
        self.operations.extend(match (wanted, found) {
            (Some(mac), found) => (found != wanted).then_some(Operation::PutNeighbor(ip, mac)),
            (None, found) => found.map(|mac| Operation::DeleteNeighbor(ip, mac)),
        });
    }

    /// `there`: all routes to the same destination.
    fn route(&mut self, wanted: &Route, there: &[&Route]) {
        let right = there.iter().find(|route| route.same_way(wanted));
        let in_slot = there.iter().find(|route| route.same_slot(wanted));
        let kept = match (right, in_slot) {
            (Some(right), _) => {
                self.adopted.extend((!is_ours(right)).then_some(**right));
                *right
            }
            (None, Some(other)) if !is_ours(other) => {
                self.conflicts.push((*wanted, **other));
                return;
            }
            (None, in_slot) => {
                self.operations.push(Operation::PutRoute(*wanted));
                in_slot.copied().unwrap_or(wanted)
            }
        };
        let goes = |route: &Route| (is_ours(route) || is_blackhole_of_go(wanted, route)) && route != kept;
        self.operations
            .extend(there.iter().filter(|route| goes(route)).map(|route| Operation::DeleteRoute(**route)));
    }

    fn unwanted_route(&mut self, there: &Route) {
        self.operations.extend(is_ours(there).then_some(Operation::DeleteRoute(*there)));
    }

    fn in_order(mut self) -> Self {
        self.operations.sort_unstable();
        self
    }
}

fn is_ours(route: &Route) -> bool {
    route.device == RouteDevice::Vtep || route.protocol == PROTOCOL_FLANNELD
}

/// A blackhole as the Go daemon makes it is replaced by ours. Where none is wanted it may be an operator's and stays.
fn is_blackhole_of_go(wanted: &Route, route: &Route) -> bool {
    wanted.device == RouteDevice::Nowhere
        && *route == Route { metric: 0, protocol: PROTOCOL_BOOT, ..Route::blackhole(wanted.dst) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnetwork::Ipv4Network;
    use proptest::prelude::*;

    fn subnet(slot: u8) -> Ipv4Network {
        Ipv4Network::new(Ipv4Addr::new(10, 200, slot, 0), 24).unwrap()
    }

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last])
    }

    fn peer(entries: &mut Entries, slot: u8, station: u8, direct: bool) {
        let public_ip = Ipv4Addr::new(10, 8, 0, station);
        if direct {
            entries.routes.insert(Route::direct(subnet(slot), public_ip));
        } else {
            entries.neighbors.insert(subnet(slot).network(), mac(station));
            entries.fdb.insert(mac(station), FdbTarget { dst: public_ip, plain: true });
            entries.routes.insert(Route::overlay(subnet(slot)));
        }
    }

    fn converge(desired: &Entries, observed: &Entries) -> Entries {
        let mut state = observed.clone();
        for operation in diff(desired, observed).operations {
            state.apply(&operation);
        }
        state
    }

    #[test]
    fn a_new_peer_is_added_from_the_far_end_and_removed_in_reverse() {
        let mut desired = Entries::default();
        peer(&mut desired, 2, 2, false);
        let kinds = |desired: &Entries, observed: &Entries| -> Vec<&str> {
            diff(desired, observed).operations.iter().map(Operation::kind).collect()
        };
        assert_eq!(kinds(&desired, &Entries::default()), ["fdb", "neighbor", "route"]);
        assert_eq!(kinds(&Entries::default(), &desired), ["route", "neighbor", "fdb"]);
    }

    #[test]
    fn a_changed_mac_replaces_the_neighbour_between_the_new_and_the_old_fdb_entry() {
        let (mut before, mut after) = (Entries::default(), Entries::default());
        peer(&mut before, 2, 2, false);
        peer(&mut after, 2, 3, false);
        let expected = [
            Operation::PutFdb(mac(3), Ipv4Addr::new(10, 8, 0, 3)),
            Operation::PutNeighbor(subnet(2).network(), mac(3)),
            Operation::DeleteFdb(mac(2), Ipv4Addr::new(10, 8, 0, 2)),
        ];
        assert_eq!(diff(&after, &before).operations, expected);
    }

    #[test]
    fn routes_of_others_are_left_alone_and_named_when_they_are_in_the_way() {
        let mut desired = Entries::default();
        peer(&mut desired, 2, 2, false);
        let foreign = Route { device: RouteDevice::Other, onlink: false, ..Route::overlay(subnet(2)) };
        let elsewhere = Route { metric: 5, ..foreign };
        let observed = Entries { routes: [foreign, elsewhere].into(), ..Entries::default() };
        let plan = diff(&desired, &observed);
        assert_eq!(plan.conflicts, [(Route::overlay(subnet(2)), foreign)]);
        assert!(plan.operations.iter().all(|operation| operation.kind() != "route"));
        assert_eq!(diff(&Entries::default(), &observed), Plan::default());
    }

    #[test]
    fn a_blackhole_replaces_that_of_the_go_daemon_and_lets_a_bridge_be() {
        let desired = Entries { routes: [Route::blackhole(subnet(2))].into(), ..Entries::default() };
        let go = Route { metric: 0, protocol: PROTOCOL_BOOT, ..Route::blackhole(subnet(2)) };
        let bridge = Route { device: RouteDevice::Other, protocol: 2, plain: false, ..go };
        let observed = Entries { routes: [go, bridge].into(), ..Entries::default() };
        let plan = diff(&desired, &observed);
        let expected = [Operation::PutRoute(Route::blackhole(subnet(2))), Operation::DeleteRoute(go)];
        assert_eq!((plan.operations, plan.conflicts), (expected.to_vec(), vec![]));
        assert_eq!(diff(&Entries::default(), &observed), Plan::default(), "it may be an operator's");
        let plan = diff(&Entries::default(), &converge(&desired, &observed));
        assert_eq!(plan.operations, [Operation::DeleteRoute(Route::blackhole(subnet(2)))]);
    }

    #[test]
    fn a_direct_route_of_the_go_daemon_is_adopted() {
        let mut desired = Entries::default();
        peer(&mut desired, 2, 2, true);
        let go = Route { protocol: PROTOCOL_BOOT, ..Route::direct(subnet(2), Ipv4Addr::new(10, 8, 0, 2)) };
        let observed = Entries { routes: [go].into(), ..Entries::default() };
        let plan = diff(&desired, &observed);
        assert_eq!((plan.operations, plan.adopted), (vec![], vec![go]));
    }

    #[test]
    fn a_route_of_ours_with_a_wrong_attribute_is_replaced() {
        let mut desired = Entries::default();
        peer(&mut desired, 2, 2, false);
        let right = Route::overlay(subnet(2));
        let gateway = Some(Ipv4Addr::new(10, 200, 3, 0));
        for wrong in
            [Route { onlink: false, ..right }, Route { gateway, ..right }, Route { plain: false, ..right }]
        {
            let observed = Entries { routes: [wrong].into(), ..desired.clone() };
            assert_eq!(diff(&desired, &observed).operations, [Operation::PutRoute(right)]);
        }
        let moved = Route { metric: 7, ..right };
        let observed = Entries { routes: [moved].into(), ..desired.clone() };
        assert_eq!(
            diff(&desired, &observed).operations,
            [Operation::PutRoute(right), Operation::DeleteRoute(moved)]
        );
    }

    fn desired() -> impl Strategy<Value = Entries> {
        prop::collection::btree_map(0_u8..6, (0_u8..6, any::<bool>()), 0..6).prop_map(|peers| {
            let mut entries = Entries::default();
            for (slot, (station, direct)) in peers {
                peer(&mut entries, slot, station, direct);
            }
            entries
        })
    }

    fn observed() -> impl Strategy<Value = Entries> {
        let route = (0_u8..6, 0_u32..2, any::<bool>(), 0_u8..6, any::<bool>(), 0_u8..3, any::<bool>());
        let route = route.prop_map(|(slot, metric, vtep, gateway, onlink, protocol, plain)| Route {
            dst: subnet(slot),
            metric,
            device: if vtep { RouteDevice::Vtep } else { RouteDevice::Other },
            gateway: (gateway > 0).then(|| Ipv4Addr::new(10, 8, 0, gateway)),
            onlink,
            protocol: [PROTOCOL_BOOT, PROTOCOL_FLANNELD, 2][usize::from(protocol)],
            plain,
        });
        let fdb = (0_u8..6, any::<bool>())
            .prop_map(|(dst, plain)| FdbTarget { dst: Ipv4Addr::new(10, 8, 0, dst), plain });
        (
            desired(),
            prop::collection::btree_map(0_u8..6, 0_u8..6, 0..5),
            prop::collection::btree_map(0_u8..6, fdb, 0..5),
            prop::collection::btree_set(route, 0..8),
        )
            .prop_map(|(mut entries, neighbors, fdb, routes)| {
                entries.neighbors.extend(
                    neighbors.into_iter().map(|(slot, station)| (subnet(slot).network(), mac(station))),
                );
                entries.fdb.extend(fdb.into_iter().map(|(station, target)| (mac(station), target)));
                entries.routes.extend(routes);
                entries
            })
    }

    proptest! {
        #[test]
        fn one_plan_converges_and_then_nothing_is_left_to_do(desired in desired(), observed in observed()) {
            let after = converge(&desired, &observed);
            prop_assert_eq!(diff(&desired, &after).operations, vec![]);
        }

        #[test]
        fn what_is_right_needs_nothing(desired in desired()) {
            prop_assert_eq!(diff(&desired, &desired), Plan::default());
        }

        #[test]
        fn routes_of_others_survive(desired in desired(), observed in observed()) {
            let after = converge(&desired, &observed);
            for route in observed.routes.iter().filter(|route| !is_ours(route)) {
                prop_assert!(after.routes.contains(route));
            }
        }

        #[test]
        fn no_step_takes_away_what_stays(desired in desired(), observed in observed()) {
            let mut state = observed.clone();
            for operation in diff(&desired, &observed).operations {
                state.apply(&operation);
                for (ip, mac) in &desired.neighbors {
                    prop_assert!(observed.neighbors.get(ip) != Some(mac) || state.neighbors.get(ip) == Some(mac));
                }
                for (mac, target) in &desired.fdb {
                    prop_assert!(observed.fdb.get(mac) != Some(target) || state.fdb.get(mac) == Some(target));
                }
                for route in &desired.routes {
                    let there = |entries: &Entries| entries.routes_to(route.dst).any(|other| other.same_way(route));
                    prop_assert!(!there(&observed) || there(&state));
                    let any = |entries: &Entries| entries.routes_to(route.dst).next().is_some();
                    prop_assert!(!any(&observed) || any(&state), "a destination that stays was without a route");
                }
            }
        }

        #[test]
        fn a_part_is_planned_like_the_whole(desired in desired(), observed in observed()) {
            let keys = (0..6).flat_map(|n| {
                [EntryKey::Fdb(mac(n)), EntryKey::Routes(subnet(n)), EntryKey::Neighbor(subnet(n).network())]
            });
            let part = diff_of(keys.cycle().take(40).collect(), &desired, &observed);
            prop_assert_eq!(part, diff(&desired, &observed));
        }
    }
}
