//! From what the kernel holds to what it should hold: the shortest list of operations, in an order that
//! never takes away what stays.
//!
//! Additions come first, from the far end to the near one (FDB, neighbour, route), so that a route never points
//! at nothing; removals come last and in reverse.

use std::collections::BTreeMap;

use super::state::{Entries, Operation, PROTOCOL_BOOT, PROTOCOL_FLANNELD, Route, RouteDevice};

/// What has to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they have to be carried out.
    pub operations: Vec<Operation>,
    /// Desired routes whose place is taken by somebody else's route, which is left alone: (ours, theirs).
    pub conflicts: Vec<(Route, Route)>,
    /// Direct routes that are right but were installed by the Go daemon: from now on they count as ours.
    pub adopted: Vec<Route>,
}

/// Compares `desired` with `observed`. Both may be restricted to the same keys.
///
/// Ours are all neighbours and FDB entries of our device, its routes into the network, and other routes that carry our
/// protocol number. Routes of others are never touched.
#[must_use]
pub fn diff(desired: &Entries, observed: &Entries) -> Plan {
    let mut plan = Plan::default();
    let mut deletions = Vec::new();
    let fdb = lacking(&desired.fdb, &observed.fdb, PartialEq::eq);
    plan.operations.extend(fdb.map(|(mac, target)| Operation::PutFdb(*mac, target.dst)));
    let neighbors = lacking(&desired.neighbors, &observed.neighbors, PartialEq::eq);
    plan.operations.extend(neighbors.map(|(ip, mac)| Operation::PutNeighbor(*ip, *mac)));
    routes(desired, observed, &mut plan, &mut deletions);
    let neighbors = lacking(&observed.neighbors, &desired.neighbors, |_, _| true);
    deletions.extend(neighbors.map(|(ip, mac)| Operation::DeleteNeighbor(*ip, *mac)));
    let fdb = lacking(&observed.fdb, &desired.fdb, |_, _| true);
    deletions.extend(fdb.map(|(mac, target)| Operation::DeleteFdb(*mac, target.dst)));
    plan.operations.append(&mut deletions);
    plan
}

/// The entries of `these` that `those` lack, or have with a value that is not the `same`. Walks both once, side by side: at a
/// restart there are thousands, and nearly all are equal.
fn lacking<'a, K: Ord, V>(
    these: &'a BTreeMap<K, V>,
    those: &'a BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool + 'a,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let mut those = those.iter().peekable();
    these.iter().filter(move |(key, value)| {
        while those.next_if(|(other, _)| other < key).is_some() {}
        !those.peek().is_some_and(|(other, found)| other == key && same(value, found))
    })
}

fn routes(desired: &Entries, observed: &Entries, plan: &mut Plan, deletions: &mut Vec<Operation>) {
    let mut at = observed.routes.iter().peekable();
    for wanted in &desired.routes {
        while at.next_if(|route| route.dst < wanted.dst).is_some() {}
        // Mostly the right one stands alone, which a look at two tells.
        let mut next = at.clone();
        let alone = next.next() == Some(wanted) && next.peek().is_none_or(|route| route.dst != wanted.dst);
        if alone && is_ours(wanted) {
            continue;
        }
        let right = observed.routes_to(wanted.dst).find(|route| route.same_way(wanted));
        let in_slot = observed.routes_to(wanted.dst).find(|route| route.same_slot(wanted));
        let kept = match (right, in_slot) {
            (Some(right), _) => {
                plan.adopted.extend((!is_ours(right)).then_some(*right));
                right
            }
            (None, Some(other)) if !is_ours(other) => {
                plan.conflicts.push((*wanted, *other));
                continue;
            }
            (None, in_slot) => {
                plan.operations.push(Operation::PutRoute(*wanted));
                in_slot.unwrap_or(wanted)
            }
        };
        let goes = |route: &&Route| is_ours(route) || is_blackhole_of_go(wanted, route);
        let others = observed.routes_to(wanted.dst).filter(|route| goes(route) && *route != kept);
        deletions.extend(others.map(|route| Operation::DeleteRoute(*route)));
    }
    let mut wanted = desired.routes.iter().peekable();
    let unwanted = observed.routes.iter().filter(|route| {
        while wanted.next_if(|other| other.dst < route.dst).is_some() {}
        is_ours(route) && wanted.peek().is_none_or(|other| other.dst != route.dst)
    });
    deletions.extend(unwanted.map(|route| Operation::DeleteRoute(*route)));
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
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::MacAddr;
    use crate::model::state::{EntryKey, FdbTarget};
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
            let keys: BTreeSet<EntryKey> = (0..6)
                .flat_map(|n| [EntryKey::Routes(subnet(n)), EntryKey::Neighbor(subnet(n).network()), EntryKey::Fdb(mac(n))])
                .collect();
            let part = diff(&desired.restricted_to(&keys), &observed.restricted_to(&keys));
            prop_assert_eq!(part, diff(&desired, &observed));
        }
    }
}
