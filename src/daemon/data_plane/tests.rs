//! The data plane over a fake kernel: what is written, what is left alone, what is repaired.

use super::*;
use crate::kernel::fake::FakeKernel;
use crate::model::fights::BURST;
use crate::model::lease_set::{Own, RawLease, Source};
use crate::model::{IfName, Vni};

const NOW: Duration = Duration::from_secs(100);

fn wanted() -> Wanted {
    let vtep = Vtep {
        name: IfName::of_vtep(Vni::DEFAULT),
        mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        vni: Vni::DEFAULT,
        parent: "wg0".parse().unwrap(),
        local: Ipv4Addr::new(10, 8, 0, 1),
        port: None,
        mtu: Mtu::try_from(1370).unwrap(),
        learning: false,
        gbp: false,
        tx_checksum: None,
    };
    let network = "10.200.0.0/16".parse().unwrap();
    Wanted { vtep, address: Ipv4Addr::new(10, 200, 1, 0), network, direct_routing: false, blackhole: false }
}

fn own() -> Own {
    Own {
        network: wanted().network,
        subnet: "10.200.1.0/24".parse().unwrap(),
        public_ip: Ipv4Addr::new(10, 8, 0, 1),
        mac: wanted().vtep.mac,
        vni: Vni::DEFAULT,
        underlay: Vec::new(),
    }
}

fn lease(slot: u8, station: u8) -> (String, String) {
    let value = format!(
        r#"{{"PublicIP":"10.8.0.{station}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{station:02x}"}}}}"#
    );
    (format!("10.200.{slot}.0-24"), value)
}

fn put(plane: &mut DataPlane<FakeKernel>, slot: u8, station: u8) -> Report {
    let (name, value) = lease(slot, station);
    let touched =
        plane.leases.put(&RawLease { name: &name, value: value.as_bytes(), created: 1, modified: 1 });
    plane.on_leases(&touched, NOW)
}

fn started(wanted: Wanted, kernel: FakeKernel) -> DataPlane<FakeKernel> {
    let mut plane = DataPlane::new(kernel, LeaseSet::new(own()), wanted);
    plane.resync(None).unwrap();
    plane
}

fn desired(plane: &DataPlane<FakeKernel>) -> Entries {
    Entries::of(&plane.desired())
}

#[test]
fn a_start_on_a_right_kernel_writes_nothing() {
    let mut first = started(wanted(), FakeKernel::default());
    put(&mut first, 2, 2);
    let state = first.kernel.state.clone();
    let mut second = DataPlane::new(FakeKernel { state, ..FakeKernel::default() }, first.leases, wanted());
    assert!(second.resync(None).unwrap().is_empty());
    assert_eq!((second.kernel.operations.len(), second.kernel.steps.len()), (0, 0));
}

#[test]
fn what_is_undone_while_it_is_repaired_is_repaired_again_and_not_forgotten() {
    let mut plane = started(wanted(), FakeKernel::default());
    plane.kernel.undoing = 5;
    put(&mut plane, 2, 2);
    assert_ne!(plane.kernel.state.entries, desired(&plane), "somebody was quicker so far");
    let now = plane.due().expect("its turn comes again");
    plane.correct_what_is_fought_over(now).unwrap();
    assert_eq!((plane.kernel.state.entries.clone(), plane.due()), (desired(&plane), None));
}

#[test]
fn one_lease_event_costs_no_dump_and_only_its_own_operations() {
    let mut plane = started(wanted(), FakeKernel::default());
    let dumps = plane.kernel.dumps;
    put(&mut plane, 2, 2);
    put(&mut plane, 3, 3);
    assert_eq!((plane.kernel.operations.len(), plane.kernel.dumps), (6, dumps));
    put(&mut plane, 3, 3);
    assert_eq!(plane.kernel.operations.len(), 6, "an unchanged lease writes nothing");
    let touched = plane.leases.delete("10.200.3.0-24");
    plane.on_leases(&touched, NOW);
    assert_eq!((plane.kernel.operations.len(), plane.kernel.state.entries == desired(&plane)), (9, true));
}

#[test]
fn a_peer_that_left_while_we_were_down_is_removed_and_foreign_things_stay() {
    let mut kernel = FakeKernel::default();
    let gone = Route::overlay("10.200.9.0/24".parse().unwrap());
    let foreign = Route { device: crate::model::state::RouteDevice::Other, onlink: false, ..gone };
    kernel.state.entries.routes.extend([gone, Route { metric: 9, ..foreign }]);
    kernel.state.entries.neighbors.insert(Ipv4Addr::new(10, 200, 9, 0), MacAddr::new([2; 6]));
    let plane = started(wanted(), kernel);
    let left: Vec<u32> = plane.kernel.state.entries.routes.iter().map(|route| route.metric).collect();
    assert_eq!((left, plane.kernel.state.entries.neighbors.len()), (vec![9], 0));
}

#[test]
fn nothing_is_removed_while_a_part_of_the_store_is_unknown() {
    let mut kernel = FakeKernel::default();
    let unknown = Route::overlay("10.200.9.0/24".parse().unwrap());
    kernel.state.entries.routes.insert(unknown);
    let mut plane = DataPlane::new(kernel, LeaseSet::new(own()), wanted());
    plane.keep_unknown = true;
    plane.resync(None).unwrap();
    put(&mut plane, 2, 2);
    assert!(plane.kernel.state.entries.routes.contains(&unknown));
    // A peer that was known may go.
    let touched = plane.leases.delete("10.200.2.0-24");
    plane.on_leases(&touched, NOW);
    assert_eq!(plane.kernel.state.entries.routes.len(), 1);
    plane.keep_unknown = false;
    plane.resync(None).unwrap();
    assert_eq!(plane.kernel.state.entries, Entries::default());
}

#[test]
fn what_somebody_else_changes_is_put_right() {
    let mut plane = started(wanted(), FakeKernel::default());
    put(&mut plane, 2, 2);
    let route = Route::overlay("10.200.2.0/24".parse().unwrap());
    let mac = MacAddr::new([2, 0, 0, 0, 0, 2]);
    let interferences = [
        Operation::DeleteRoute(route),
        Operation::PutRoute(Route { onlink: false, ..route }),
        Operation::DeleteNeighbor(Ipv4Addr::new(10, 200, 2, 0), mac),
        Operation::PutNeighbor(Ipv4Addr::new(10, 200, 2, 0), MacAddr::new([4; 6])),
        Operation::PutNeighbor(Ipv4Addr::new(10, 200, 44, 0), MacAddr::new([4; 6])),
        Operation::DeleteFdb(mac, Ipv4Addr::new(10, 8, 0, 2)),
        Operation::PutFdb(mac, Ipv4Addr::new(10, 8, 0, 77)),
        Operation::PutFdb(MacAddr::new([4; 6]), Ipv4Addr::new(10, 8, 0, 77)),
    ];
    for interference in interferences {
        plane.kernel.interfere(&interference);
        let changes = plane.kernel.queued();
        let report = plane.on_changes(&changes, NOW).unwrap();
        assert_eq!(report.done.sum(), 1, "{interference:?}");
        assert_eq!(plane.kernel.state.entries, desired(&plane), "{interference:?}");
    }
}

#[tokio::test]
async fn a_change_of_the_device_that_is_read_while_entries_are_put_is_not_forgotten() {
    let mut plane = started(wanted(), FakeKernel::default());
    plane.kernel.state = Observed::default();
    plane.kernel.queue.extend([Change::Device, Change::Underlay]);
    put(&mut plane, 2, 2);
    let changes = plane.leases_and_changes().1.await;
    assert_eq!(changes, [Change::Device, Change::Underlay]);
    plane.on_changes(&changes, NOW).unwrap();
    assert!(plane.kernel.state.vtep.is_some());
    assert_eq!(plane.kernel.state.entries, desired(&plane));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_taken_away_while_it_is_corrected_is_made_again_at_once() {
    let mut plane = started(wanted(), FakeKernel::default());
    put(&mut plane, 2, 2);
    let before = plane.kernel.state.clone();
    plane.kernel.vanishing = 1;
    plane.kernel.delete_device();
    for still_there in [false, true] {
        let changes =
            tokio::time::timeout(NOW, plane.leases_and_changes().1).await.expect("it is looked at again");
        plane.on_changes(&changes, NOW).unwrap();
        assert_eq!(plane.kernel.state.vtep.is_some(), still_there);
    }
    assert_eq!(plane.kernel.state, before);
}

#[test]
fn a_new_underlay_makes_the_device_anew_and_a_new_mtu_does_not() {
    let mut plane = started(wanted(), FakeKernel::default());
    put(&mut plane, 2, 2);
    let mut external = ExternalInterface {
        name: "wg0".parse().unwrap(),
        address: Ipv4Addr::new(10, 8, 0, 1),
        mtu: Mtu::try_from(1400).unwrap(),
        reason: crate::model::ext_iface::Selector::DefaultRoute,
    };
    plane.kernel.steps.clear();
    plane.set_underlay(&external, Mtu::try_from(1350).unwrap());
    plane.resync(None).unwrap();
    assert_eq!(plane.kernel.steps, [DeviceStep::SetMtu(Mtu::try_from(1350).unwrap())]);
    external.address = Ipv4Addr::new(10, 8, 0, 7);
    plane.set_underlay(&external, Mtu::try_from(1350).unwrap());
    plane.resync(None).unwrap();
    let device = plane.kernel.state.vtep.clone().unwrap();
    assert_eq!((device.vxlan.unwrap().local, device.mac), (Some(external.address), wanted().vtep.mac));
    assert_eq!(plane.kernel.state.entries, desired(&plane));
}

#[test]
fn a_refused_entry_is_counted_tried_again_and_delays_nobody() {
    let mut plane = started(wanted(), FakeKernel::default());
    let key = EntryKey::Routes("10.200.2.0/24".parse().unwrap());
    plane.kernel.refused.insert(key);
    put(&mut plane, 2, 2);
    put(&mut plane, 3, 3);
    assert_eq!((plane.failed_peers(), plane.has_failures()), (1, true));
    let problems: Vec<bool> = plane.peers().iter().map(|peer| peer.problem.is_some()).collect();
    assert_eq!(problems, [true, false]);
    assert_eq!(plane.kernel.state.entries.routes.len(), 1);
    plane.kernel.refused.clear();
    plane.retry(NOW);
    assert_eq!((plane.failed_peers(), plane.kernel.state.entries == desired(&plane)), (0, true));
}

#[test]
fn a_deleted_device_comes_back_with_its_mac_and_all_entries() {
    let mut plane = started(wanted(), FakeKernel::default());
    put(&mut plane, 2, 2);
    let before = plane.kernel.state.clone();
    plane.kernel.state = Observed::default();
    plane.on_changes(&[Change::Device], NOW).unwrap();
    assert_eq!(plane.kernel.state, before);
}

fn tx_checksum(plane: &DataPlane<FakeKernel>) -> Option<bool> {
    plane.kernel.state.vtep.as_ref().and_then(|device| device.tx_checksum)
}

/// Whatever was ordered at start: what is set later stays, and a device made anew gets it too.
#[test]
fn the_tx_checksum_somebody_sets_later_stays_and_is_restored() {
    for (order, at_start) in [(None, true), (Some(true), true), (Some(false), false)] {
        let vtep = Vtep { tx_checksum: order, ..wanted().vtep };
        let mut plane = started(Wanted { vtep, ..wanted() }, FakeKernel::default());
        assert_eq!(tx_checksum(&plane), Some(at_start));
        for by_somebody in [!at_start, at_start, !at_start] {
            plane.kernel.state.vtep.as_mut().unwrap().tx_checksum = Some(by_somebody);
            plane.on_changes(&[Change::Device], NOW).unwrap();
            assert_eq!(tx_checksum(&plane), Some(by_somebody), "{order:?}");
            plane.kernel.state = Observed::default();
            plane.on_changes(&[Change::Device], NOW).unwrap();
            assert_eq!(tx_checksum(&plane), Some(by_somebody), "{order:?}");
        }
    }
}

/// Left alone means as it was before we came, also for the device that follows.
#[test]
fn the_tx_checksum_of_a_device_that_was_there_is_restored() {
    let mut kernel = started(wanted(), FakeKernel::default()).kernel;
    kernel.state.vtep.as_mut().unwrap().tx_checksum = Some(false);
    let mut plane = started(wanted(), kernel);
    assert_eq!((tx_checksum(&plane), plane.kernel.steps.len()), (Some(false), 3));
    plane.kernel.state = Observed::default();
    plane.on_changes(&[Change::Device], NOW).unwrap();
    assert_eq!(tx_checksum(&plane), Some(false));
}

#[test]
fn a_fight_over_the_device_or_an_entry_is_given_pauses_and_others_are_not_delayed() {
    let mut plane = started(wanted(), FakeKernel::default());
    put(&mut plane, 2, 2);
    let route = |slot| Route::overlay(format!("10.200.{slot}.0/24").parse().unwrap());
    let undo = |plane: &mut DataPlane<FakeKernel>, slot| {
        plane.kernel.interfere(&Operation::DeleteRoute(route(slot)));
        plane.kernel.state.vtep.as_mut().unwrap().mtu = 1300;
        let changes = plane.kernel.queued();
        let entries = plane.on_changes(&changes, NOW).unwrap();
        (entries, plane.on_changes(&[Change::Device], NOW).unwrap())
    };
    for _ in 0..BURST {
        let (entries, device) = undo(&mut plane, 2);
        assert_eq!((entries.begun.len(), device.begun.len(), plane.due()), (0, 0, None));
    }
    let (entries, device) = undo(&mut plane, 2);
    assert!(entries.begun.is_empty(), "a flush deletes an entry ten times, and may be typed again");
    assert_eq!(device.begun, [("MTU", "the device's MTU".to_owned())].into());
    assert_eq!(plane.kernel.state.vtep.as_ref().unwrap().mtu, 1300);
    let begun = (0..3 * BURST).find_map(|_| undo(&mut plane, 2).0.begun.into_iter().next());
    assert_eq!(begun, Some(("route", "10.200.2.0/24".to_owned())));
    put(&mut plane, 3, 3);
    assert!(plane.kernel.state.entries.routes.contains(&route(3)));
    let due = plane.due().unwrap();
    let report = plane.correct_what_is_fought_over(due).unwrap();
    assert!(report.begun.is_empty(), "told once: {report:?}");
    assert_eq!(plane.kernel.state.vtep.as_ref().unwrap().mtu, 1370);
    assert_eq!((plane.kernel.state.entries == desired(&plane), plane.due()), (true, None));
}

#[test]
fn a_device_that_cannot_be_made_is_an_error_and_nothing_else_is_touched() {
    let kernel = FakeKernel { device_refused: true, ..FakeKernel::default() };
    let mut plane = DataPlane::new(kernel, LeaseSet::new(own()), wanted());
    assert!(plane.resync(None).is_err());
    assert_eq!(plane.kernel.operations, []);
}

#[test]
fn an_mtu_that_does_not_fit_below_keeps_no_peer_away() {
    let mut plane = started(wanted(), FakeKernel::default());
    plane.kernel.mtu_refused = true;
    plane.kernel.state.vtep.as_mut().unwrap().mtu = 1300;
    put(&mut plane, 2, 2);
    plane.kernel.state.entries = Entries::default();
    plane.resync(None).unwrap();
    assert_eq!((plane.kernel.state.entries.clone(), plane.mtu_refused), (desired(&plane), true));
    plane.kernel.mtu_refused = false;
    plane.resync(None).unwrap();
    assert_eq!((plane.kernel.state.vtep.as_ref().unwrap().mtu, plane.mtu_refused), (1370, false));
}

#[test]
fn direct_routing_follows_the_link() {
    let mut plane = started(Wanted { direct_routing: true, ..wanted() }, FakeKernel::default());
    plane.kernel.on_link.insert(Ipv4Addr::new(10, 8, 0, 2));
    put(&mut plane, 2, 2);
    put(&mut plane, 3, 3);
    let subnets = ["10.200.2.0/24", "10.200.3.0/24"].map(|text| text.parse().unwrap());
    let expected = [Route::overlay(subnets[1]), Route::direct(subnets[0], Ipv4Addr::new(10, 8, 0, 2))];
    assert_eq!(plane.kernel.state.entries.routes, expected.into());
    plane.kernel.on_link.clear();
    plane.resync(None).unwrap();
    assert_eq!(plane.kernel.state.entries.routes, subnets.map(Route::overlay).into());
    assert_eq!(plane.kernel.state.entries.fdb.len(), 2);
}

#[test]
fn a_round_of_entries_says_nothing_of_the_device() {
    let mut plane = started(wanted(), FakeKernel::default());
    assert!(plane.resync(None).unwrap().device_is_right);
    let subnets = vec!["10.200.2.0/24".parse().unwrap()];
    let touched = Touched { subnets, ..Touched::default() };
    assert!(!plane.on_leases(&touched, NOW).device_is_right);
    assert!(!plane.on_changes(&[], NOW).unwrap().device_is_right);
    assert!(plane.on_changes(&[Change::Device], NOW).unwrap().device_is_right);
}

#[test]
fn the_blackhole_of_our_subnet_follows_it_and_is_put_back() {
    let mut plane = started(Wanted { blackhole: true, ..wanted() }, FakeKernel::default());
    let routes = |plane: &DataPlane<FakeKernel>| Vec::from_iter(plane.kernel.state.entries.routes.clone());
    let first = Route::blackhole(own().subnet);
    assert_eq!(routes(&plane), [first]);
    plane.kernel.interfere(&Operation::DeleteRoute(first));
    let changes = plane.kernel.queued();
    assert_eq!(plane.on_changes(&changes, NOW).unwrap().done.sum(), 1);
    assert_eq!(routes(&plane), [first]);
    let other = Own { subnet: "10.200.7.0/24".parse().unwrap(), ..own() };
    plane.leases.set_own(other.clone(), &[], Source { cluster: 1, revision: 1 }, NOW);
    plane.resync(None).unwrap();
    assert_eq!(routes(&plane), [Route::blackhole(other.subnet)]);
    plane.blackhole = false;
    plane.resync(None).unwrap();
    assert_eq!(routes(&plane), []);
}
