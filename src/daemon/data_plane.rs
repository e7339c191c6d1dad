//! Keeps the kernel equal to what the leases ask for: device first, then neighbours, FDB entries and routes.
//!
//! Holds the mirror of our entries, so that one lease event costs no dump. It knows nothing of the store, and everything it
//! does to the kernel is the outcome of a comparison in `model`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tracing::{debug, info, warn};

use crate::kernel::{Change, Kernel, KernelError, Scope};
use crate::metrics::OperationKind;
use crate::model::device::{self, DeviceStep};
use crate::model::diff::{Plan, diff};
use crate::model::lease_set::{LeaseSet, Touched};
use crate::model::overlay::{Overlay, keys_of};
use crate::model::state::{Entries, EntryKey, Observed, Operation, Route, Vtep};

/// How many operations go to the kernel before the echo of our own changes is read: the notification socket must not overflow.
const CHUNK: usize = 900;

/// How often a change by somebody else that arrives while we repair is answered at once; afterwards it waits its turn.
const ROUNDS: usize = 3;

/// Our device and everything on it.
#[derive(Debug)]
pub(super) struct DataPlane<K> {
    /// The kernel.
    pub(super) kernel: K,
    /// All leases, judged from our point of view.
    pub(super) leases: LeaseSet,
    /// A part of the store was never read: entries that belong to no known lease may be those of its peers.
    pub(super) keep_unknown: bool,
    vtep: Vtep,
    address: Ipv4Addr,
    network: Ipv4Network,
    direct_routing: bool,
    direct: BTreeSet<Ipv4Addr>,
    blackhole: bool,
    mirror: Entries,
    /// The device was right; what somebody sets on it since then is theirs to decide.
    settled: bool,
    failed: BTreeMap<EntryKey, String>,
    conflicts: BTreeMap<Ipv4Network, Route>,
}

/// What the data plane is made of.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The device.
    pub(super) vtep: Vtep,
    /// Its address: the network address of our subnet.
    pub(super) address: Ipv4Addr,
    /// The overlay network.
    pub(super) network: Ipv4Network,
    /// Reach peers on the same link without the tunnel.
    pub(super) direct_routing: bool,
    /// Drop what is sent to our own subnet while no pod bridge has it (`ip-blackhole-route`).
    pub(super) blackhole: bool,
}

/// What one round changed in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// What succeeded, by kind: steps on the device, operations on entries.
    pub(super) done: BTreeMap<OperationKind, u64>,
    /// Operations that failed.
    pub(super) failed: BTreeMap<OperationKind, u64>,
}

impl Report {
    fn count(&mut self, operation: &Operation, ok: bool) {
        let counts = if ok { &mut self.done } else { &mut self.failed };
        *counts.entry(OperationKind::from(operation)).or_default() += 1;
    }

    /// Nothing was done and nothing failed.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl<K: Kernel> DataPlane<K> {
    /// A data plane that has not looked at the kernel yet.
    pub(super) fn new(kernel: K, leases: LeaseSet, wanted: Wanted) -> Self {
        Self {
            kernel,
            leases,
            keep_unknown: false,
            vtep: wanted.vtep,
            address: wanted.address,
            network: wanted.network,
            direct_routing: wanted.direct_routing,
            direct: BTreeSet::new(),
            blackhole: wanted.blackhole,
            mirror: Entries::default(),
            settled: false,
            failed: BTreeMap::new(),
            conflicts: BTreeMap::new(),
        }
    }

    /// The device as it should be.
    pub(super) fn vtep(&self) -> &Vtep {
        &self.vtep
    }

    /// What is watched and observed.
    pub(super) fn scope(&self) -> Scope {
        Scope { vtep: self.vtep.name.clone(), parent: self.vtep.parent.clone(), network: self.network }
    }

    /// Gives the device another address; takes effect with the next `resync`.
    pub(super) fn set_address(&mut self, address: Ipv4Addr) {
        self.address = address;
    }

    fn desired(&self) -> Overlay<'_> {
        Overlay { leases: &self.leases, direct: &self.direct, blackhole: self.blackhole }
    }

    /// How many peers have an entry that could not be programmed.
    pub(super) fn failed_peers(&self) -> usize {
        let is_peer = |subnet: &Ipv4Network| self.leases.peer(*subnet).is_some();
        let mut peers: BTreeSet<Ipv4Network> = self.conflicts.keys().copied().filter(is_peer).collect();
        for key in self.failed.keys() {
            match *key {
                EntryKey::Neighbor(ip) => peers.extend(self.leases.peer_at(ip).map(|(subnet, _)| subnet)),
                EntryKey::Fdb(mac) => peers.extend(self.leases.peers_with_mac(mac).map(|(subnet, _)| subnet)),
                EntryKey::Routes(subnet) => peers.extend(self.leases.peer(subnet).map(|_| subnet)),
            }
        }
        peers.len()
    }

    /// Whether something is left to try again.
    pub(super) fn has_failures(&self) -> bool {
        !self.failed.is_empty() || !self.conflicts.is_empty()
    }

    /// Reads the kernel, corrects the device, then every entry.
    ///
    /// # Errors
    /// When the kernel cannot be read or the device cannot be made right. Failing entries are no error: they are counted,
    /// and tried again by `retry`.
    pub(super) fn resync(&mut self) -> Result<Report, KernelError> {
        let scope = self.scope();
        let mut observed = self.kernel.observe(&scope)?;
        if self.settled {
            self.heed_tx_checksum(&observed);
        }
        self.settled = false;
        let steps = device::steps(&self.vtep, self.address, self.network, observed.vtep.as_ref());
        if !steps.is_empty() {
            self.correct_device(&scope, &steps, &observed)?;
            self.kernel.queued();
            observed = self.kernel.observe(&scope)?;
        }
        self.vtep.tx_checksum = device::settled_tx_checksum(&self.vtep, observed.vtep.as_ref());
        self.settled = true;
        self.mirror = observed.entries;
        self.failed.clear();
        self.conflicts.clear();
        self.find_direct(self.leases.peers().map(|(subnet, _)| subnet).collect());
        let desired = self.desired().entries();
        let mut plan = diff(&desired, &self.mirror);
        if self.keep_unknown {
            plan.operations.retain(|operation| !operation.removes());
        }
        let mut report = self.carry_out(plan);
        if !steps.is_empty() {
            report.done.insert(OperationKind::Device, u64::try_from(steps.len()).unwrap_or(u64::MAX));
        }
        Ok(report)
    }

    /// Takes over what an operator or a unit's `ExecStartPost` did with `ethtool -K`.
    fn heed_tx_checksum(&mut self, observed: &Observed) {
        let found = device::settled_tx_checksum(&self.vtep, observed.vtep.as_ref());
        if found != self.vtep.tx_checksum {
            info!(device = %self.vtep.name, tx_checksum = found,
                "somebody switched TX checksum offload; it stays like that, also when the device has to be made anew");
            self.vtep.tx_checksum = found;
        }
    }

    fn correct_device(
        &mut self,
        scope: &Scope,
        steps: &[DeviceStep],
        observed: &Observed,
    ) -> Result<(), KernelError> {
        let incompatible =
            observed.vtep.as_ref().and_then(|found| device::incompatibility(&self.vtep, found));
        if let Some(mismatch) = incompatible {
            let device::Incompatible { what, expected, found } = mismatch;
            warn!(device = %scope.vtep, attribute = what, %expected, %found, "device does not fit and is made anew");
        }
        for step in steps {
            debug!(device = %scope.vtep, ?step, "device step");
            self.kernel.step(scope, step)?;
        }
        Ok(())
    }

    /// Programs what a change of leases concerns.
    pub(super) fn on_leases(&mut self, touched: &Touched) -> Report {
        self.find_direct(touched.subnets.clone());
        self.make_right(&keys_of(touched))
    }

    /// Takes over what was changed in the kernel and repairs what is not as it should be.
    ///
    /// # Errors
    /// When the device had to be looked at again and could not be made right.
    pub(super) fn on_changes(&mut self, changes: &[Change]) -> Result<Report, KernelError> {
        if changes.iter().any(|change| change.key().is_none()) {
            return self.resync();
        }
        let keys = self.take_over(changes);
        Ok(self.make_right(&keys))
    }

    /// Tries what failed once more.
    pub(super) fn retry(&mut self) -> Report {
        let mut keys: BTreeSet<EntryKey> = std::mem::take(&mut self.failed).into_keys().collect();
        keys.extend(std::mem::take(&mut self.conflicts).into_keys().map(EntryKey::Routes));
        self.make_right(&keys)
    }

    fn make_right(&mut self, keys: &BTreeSet<EntryKey>) -> Report {
        for key in keys {
            self.failed.remove(key);
            if let EntryKey::Routes(subnet) = key {
                self.conflicts.remove(subnet);
            }
        }
        let desired = self.desired().entries_of(keys);
        self.carry_out(diff(&desired, &self.mirror.restricted_to(keys)))
    }

    /// Applies a plan, then whatever somebody else changed in the meantime.
    fn carry_out(&mut self, mut plan: Plan) -> Report {
        let mut report = Report::default();
        for _ in 0..ROUNDS {
            let changes = self.apply(&plan, &mut report);
            if changes.iter().any(|change| change.key().is_none()) {
                // Seen again by `changed()`: a device change needs the caller's error handling.
                self.failed.extend(plan.operations.iter().map(|operation| (operation.key(), String::new())));
                break;
            }
            let keys = self.take_over(&changes);
            let desired = self.desired().entries_of(&keys);
            let rest = diff(&desired, &self.mirror.restricted_to(&keys));
            let failing: Vec<Operation> = rest
                .operations
                .into_iter()
                .filter(|operation| !self.failed.contains_key(&operation.key()))
                .collect();
            if failing.is_empty() {
                break;
            }
            plan = Plan { operations: failing, ..Plan::default() };
        }
        report
    }

    fn apply(&mut self, plan: &Plan, report: &mut Report) -> Vec<Change> {
        let scope = self.scope();
        for (ours, theirs) in &plan.conflicts {
            warn!(subnet = %ours.dst, gateway = ?theirs.gateway, protocol = theirs.protocol,
                "a route that is not ours stands where the peer's route belongs; remove it (ip route del) to reach the peer");
            self.conflicts.insert(ours.dst, *theirs);
        }
        for route in &plan.adopted {
            self.mirror.routes.remove(route);
            self.mirror.routes.insert(Route { protocol: crate::model::state::PROTOCOL_FLANNELD, ..*route });
        }
        let mut changes = Vec::new();
        for chunk in plan.operations.chunks(CHUNK) {
            let results = self.kernel.apply(&scope, chunk);
            for (operation, result) in chunk.iter().zip(results) {
                report.count(operation, result.is_ok());
                match result {
                    Ok(()) => self.mirror.apply(operation),
                    Err(error) => self.note_failure(operation, &error),
                }
            }
            changes.append(&mut self.kernel.queued());
        }
        changes
    }

    fn note_failure(&mut self, operation: &Operation, error: &KernelError) {
        debug!(?operation, %error, "kernel refused");
        let first = self.failed.is_empty();
        self.failed.insert(operation.key(), error.to_string());
        if first {
            warn!(%error, "kernel refused an entry; it is tried again, others go on");
        }
    }

    /// Brings the mirror up to date and says which entries were changed.
    fn take_over(&mut self, changes: &[Change]) -> BTreeSet<EntryKey> {
        for change in changes {
            match change {
                Change::Neighbor(ip, Some(mac)) => {
                    self.mirror.neighbors.insert(*ip, *mac);
                }
                Change::Neighbor(ip, None) => {
                    self.mirror.neighbors.remove(ip);
                }
                Change::Fdb(mac, Some(target)) => {
                    self.mirror.fdb.insert(*mac, *target);
                }
                Change::Fdb(mac, None) => {
                    self.mirror.fdb.remove(mac);
                }
                Change::RouteAdded { route, replaced: true } => self.mirror.put_route(*route),
                Change::RouteAdded { route, replaced: false } => {
                    self.mirror.routes.insert(*route);
                }
                Change::RouteRemoved(route) => {
                    self.mirror.routes.retain(|known| known.dst != route.dst || !known.same_way(route));
                }
                Change::Device | Change::Underlay | Change::Lost => {}
            }
        }
        changes.iter().filter_map(Change::key).collect()
    }

    /// Asks the kernel which of these peers are on the same link, if direct routing is on.
    fn find_direct(&mut self, subnets: BTreeSet<Ipv4Network>) {
        if !self.direct_routing {
            return;
        }
        for peer in subnets.into_iter().filter_map(|subnet| self.leases.peer(subnet)) {
            let on_link = self
                .kernel
                .route_to(peer.public_ip)
                .is_ok_and(|route| route.gateway.is_none() && route.device != self.vtep.name);
            if on_link {
                self.direct.insert(peer.public_ip);
            } else {
                self.direct.remove(&peer.public_ip);
            }
        }
    }
}

/// One line for the log about what a round did, if it did anything.
pub(super) fn log_report(cause: &'static str, report: &Report, took: Duration) {
    if !report.is_empty() {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let sum = |counts: &BTreeMap<OperationKind, u64>| counts.values().sum::<u64>();
        info!(
            cause,
            changed = sum(&report.done),
            failed = sum(&report.failed),
            ms,
            "kernel brought up to date"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::FakeKernel;
    use crate::model::lease_set::{Own, RawLease};
    use crate::model::{IfName, MacAddr, Mtu, Vni};

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
        Wanted {
            vtep,
            address: Ipv4Addr::new(10, 200, 1, 0),
            network,
            direct_routing: false,
            blackhole: false,
        }
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
        plane.on_leases(&touched)
    }

    fn started(wanted: Wanted, kernel: FakeKernel) -> DataPlane<FakeKernel> {
        let mut plane = DataPlane::new(kernel, LeaseSet::new(own()), wanted);
        plane.resync().unwrap();
        plane
    }

    fn desired(plane: &DataPlane<FakeKernel>) -> Entries {
        plane.desired().entries()
    }

    #[test]
    fn a_start_on_a_right_kernel_writes_nothing() {
        let mut first = started(wanted(), FakeKernel::default());
        put(&mut first, 2, 2);
        let state = first.kernel.state.clone();
        let mut second =
            DataPlane::new(FakeKernel { state, ..FakeKernel::default() }, first.leases, wanted());
        assert_eq!(second.resync().unwrap(), Report::default());
        assert_eq!((second.kernel.operations.len(), second.kernel.steps.len()), (0, 0));
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
        plane.on_leases(&touched);
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
        plane.resync().unwrap();
        put(&mut plane, 2, 2);
        assert!(plane.kernel.state.entries.routes.contains(&unknown));
        // A peer that was known may go.
        let touched = plane.leases.delete("10.200.2.0-24");
        plane.on_leases(&touched);
        assert_eq!(plane.kernel.state.entries.routes.len(), 1);
        plane.keep_unknown = false;
        plane.resync().unwrap();
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
            let report = plane.on_changes(&changes).unwrap();
            assert_eq!(report.done.values().sum::<u64>(), 1, "{interference:?}");
            assert_eq!(plane.kernel.state.entries, desired(&plane), "{interference:?}");
        }
    }

    #[test]
    fn a_refused_entry_is_counted_tried_again_and_delays_nobody() {
        let mut plane = started(wanted(), FakeKernel::default());
        let key = EntryKey::Routes("10.200.2.0/24".parse().unwrap());
        plane.kernel.refused.insert(key);
        put(&mut plane, 2, 2);
        put(&mut plane, 3, 3);
        assert_eq!((plane.failed_peers(), plane.has_failures()), (1, true));
        assert_eq!(plane.kernel.state.entries.routes.len(), 1);
        plane.kernel.refused.clear();
        plane.retry();
        assert_eq!((plane.failed_peers(), plane.kernel.state.entries == desired(&plane)), (0, true));
    }

    #[test]
    fn a_deleted_device_comes_back_with_its_mac_and_all_entries() {
        let mut plane = started(wanted(), FakeKernel::default());
        put(&mut plane, 2, 2);
        let before = plane.kernel.state.clone();
        plane.kernel.state = Observed::default();
        plane.on_changes(&[Change::Device]).unwrap();
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
                plane.on_changes(&[Change::Device]).unwrap();
                assert_eq!(tx_checksum(&plane), Some(by_somebody), "{order:?}");
                plane.kernel.state = Observed::default();
                plane.on_changes(&[Change::Device]).unwrap();
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
        plane.on_changes(&[Change::Device]).unwrap();
        assert_eq!(tx_checksum(&plane), Some(false));
    }

    #[test]
    fn a_device_that_cannot_be_made_is_an_error_and_nothing_else_is_touched() {
        let kernel = FakeKernel { device_refused: true, ..FakeKernel::default() };
        let mut plane = DataPlane::new(kernel, LeaseSet::new(own()), wanted());
        assert!(plane.resync().is_err());
        assert_eq!(plane.kernel.operations, []);
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
        plane.resync().unwrap();
        assert_eq!(plane.kernel.state.entries.routes, subnets.map(Route::overlay).into());
        assert_eq!(plane.kernel.state.entries.fdb.len(), 2);
    }
    #[test]
    fn the_blackhole_of_our_subnet_follows_it_and_is_put_back() {
        let mut plane = started(Wanted { blackhole: true, ..wanted() }, FakeKernel::default());
        let routes =
            |plane: &DataPlane<FakeKernel>| Vec::from_iter(plane.kernel.state.entries.routes.clone());
        let first = Route::blackhole(own().subnet);
        assert_eq!(routes(&plane), [first]);
        plane.kernel.interfere(&Operation::DeleteRoute(first));
        let changes = plane.kernel.queued();
        assert_eq!(plane.on_changes(&changes).unwrap().done.values().sum::<u64>(), 1);
        assert_eq!(routes(&plane), [first]);
        let other = Own { subnet: "10.200.7.0/24".parse().unwrap(), ..own() };
        plane.leases.set_own(other.clone(), &[]);
        plane.resync().unwrap();
        assert_eq!(routes(&plane), [Route::blackhole(other.subnet)]);
        plane.blackhole = false;
        plane.resync().unwrap();
        assert_eq!(routes(&plane), []);
    }
}
