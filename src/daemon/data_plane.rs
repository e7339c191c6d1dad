//! Keeps the kernel equal to what the leases ask for: device first, then neighbours, FDB entries and routes.
//!
//! Holds the mirror of our entries, so that one lease event costs no dump. It knows nothing of the store, and everything it
//! does to the kernel is the outcome of a comparison in `model`.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tracing::{debug, info, warn};

use super::contest::{Begun, Contest};
use crate::kernel::{Change, Kernel, KernelError, Scope};
use crate::metrics::OperationKind;
use crate::model::device::{self, DeviceStep};
use crate::model::diff::{Plan, diff, diff_of};
use crate::model::ext_iface::ExternalInterface;
use crate::model::lease_set::{LeaseSet, Touched};
use crate::model::overlay::{Overlay, keys_of};
use crate::model::state::{Entries, EntryKey, Observed, Operation, Route, Vtep};
use crate::model::{MacAddr, Mtu};
use crate::status::Device;
pub(super) use report::{Report, RoundLog};

/// How many operations go to the kernel before the echo of our own changes is read: the notification socket must not overflow. Nor
/// are the results of all operations to be held at once.
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
    /// The device as it should be.
    device: Device,
    /// What is watched and observed: the overlay network, and the names in `device`.
    scope: Scope,
    direct_routing: bool,
    direct: BTreeSet<Ipv4Addr>,
    blackhole: bool,
    mirror: Entries,
    /// The device was right; what somebody sets on it since then is theirs to decide.
    settled: bool,
    /// The kernel refused the device's MTU, and that was told.
    mtu_refused: bool,
    failed: BTreeMap<EntryKey, String>,
    conflicts: BTreeMap<Ipv4Network, Route>,
    /// Changes that were read while we worked and concern more than entries: still to be looked into.
    unseen: Vec<Change>,
    /// What somebody else keeps undoing.
    contest: Contest,
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

impl<K: Kernel> DataPlane<K> {
    /// A data plane that has not looked at the kernel yet.
    pub(super) fn new(kernel: K, leases: LeaseSet, wanted: Wanted) -> Self {
        let (name, parent) = (wanted.vtep.name.clone(), wanted.vtep.parent.clone());
        Self {
            kernel,
            leases,
            keep_unknown: false,
            device: Device { vtep: wanted.vtep, address: wanted.address, network: wanted.network },
            scope: Scope { vtep: name, parent, network: wanted.network },
            direct_routing: wanted.direct_routing,
            direct: BTreeSet::new(),
            blackhole: wanted.blackhole,
            mirror: Entries::default(),
            settled: false,
            mtu_refused: false,
            failed: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            unseen: Vec::new(),
            contest: Contest::default(),
        }
    }

    /// The leases, and the wait for changes of the kernel by others, apart: a lease may be taken over while that goes on.
    /// Cancel-safe.
    pub(super) fn leases_and_changes(&mut self) -> (&mut LeaseSet, impl Future<Output = Vec<Change>>) {
        let Self { leases, kernel, unseen, .. } = self;
        let changes =
            async { if unseen.is_empty() { kernel.changed().await } else { std::mem::take(unseen) } };
        (leases, changes)
    }

    /// The device as it should be.
    pub(super) fn vtep(&self) -> &Vtep {
        &self.device.vtep
    }

    /// Gives the device another address; takes effect with the next `resync`.
    pub(super) fn set_address(&mut self, address: Ipv4Addr) {
        self.device.address = address;
    }

    fn desired(&self) -> Overlay<'_> {
        Overlay { leases: &self.leases, direct: &self.direct, blackhole: self.blackhole }
    }

    /// Gives the device another MAC; takes effect with the next `resync`.
    pub(super) fn set_mac(&mut self, mac: MacAddr) {
        self.device.vtep.mac = mac;
    }

    /// Puts the device on another interface, or gives it another MTU; takes effect with the next `resync`.
    pub(super) fn set_underlay(&mut self, external: &ExternalInterface, mtu: Mtu) {
        self.device.vtep.parent.clone_from(&external.name);
        self.scope.parent.clone_from(&external.name);
        self.device.vtep.local = external.address;
        self.device.vtep.mtu = mtu;
    }

    /// When something that is fought over may be corrected.
    pub(super) fn due(&self) -> Option<Duration> {
        self.contest.due()
    }

    /// Reads the kernel, corrects the device, then every entry. With a time `undone`, what is wrong with the device was done by
    /// somebody else just now, and may be a fight.
    ///
    /// # Errors
    /// When the kernel cannot be read or the device cannot be made right. Failing entries are no error: they are counted,
    /// and tried again by `retry`.
    pub(super) fn resync(&mut self, undone: Option<Duration>) -> Result<Report, KernelError> {
        let (scope, mut begun) = (self.scope.clone(), Begun::new());
        let mut observed = self.kernel.observe(&scope)?;
        if self.settled {
            self.heed_tx_checksum(&observed);
        }
        self.settled = false;
        let mut steps =
            device::steps(&self.device.vtep, self.device.address, scope.network, observed.vtep.as_ref());
        if let Some(now) = undone {
            match self.contest.admit_steps(steps, now, &mut begun) {
                Some(admitted) => steps = admitted,
                None => return Ok(Report { begun, ..Report::default() }),
            }
        }
        if !steps.is_empty() {
            self.correct_device(&scope, &steps, &observed)?;
            // What concerns our device and entries is read again anyway.
            let echo = self.kernel.queued();
            self.unseen.extend(echo.into_iter().filter(|change| *change == Change::Underlay));
            observed = self.kernel.observe(&scope)?;
            if observed.vtep.is_none() {
                // Somebody took it away meanwhile, and the notification went with the echo of our own steps.
                self.unseen.push(Change::Device);
            }
        }
        self.device.vtep.tx_checksum = device::settled_tx_checksum(&self.device.vtep, observed.vtep.as_ref());
        self.settled = true;
        self.mirror = observed.entries;
        self.failed.clear();
        self.conflicts.clear();
        if self.direct_routing {
            self.find_direct(&self.leases.peers().map(|(subnet, _)| subnet).collect());
        }
        let mut plan = diff(&self.desired(), &self.mirror);
        if self.keep_unknown {
            plan.operations.retain(|operation| !operation.removes());
        }
        let mut report = self.carry_out(plan, undone);
        report.begun.append(&mut begun);
        if !steps.is_empty() {
            report.done.add(OperationKind::Device, u64::try_from(steps.len()).unwrap_or(u64::MAX));
        }
        report.device_is_right = true;
        Ok(report)
    }

    /// Takes over what an operator or a unit's `ExecStartPost` did with `ethtool -K`.
    fn heed_tx_checksum(&mut self, observed: &Observed) {
        let found = device::settled_tx_checksum(&self.device.vtep, observed.vtep.as_ref());
        if found != self.device.vtep.tx_checksum {
            info!(device = %self.device.vtep.name, tx_checksum = found,
                "somebody switched TX checksum offload; it stays like that, also when the device has to be made anew");
            self.device.vtep.tx_checksum = found;
        }
    }

    fn correct_device(
        &mut self,
        scope: &Scope,
        steps: &[DeviceStep],
        observed: &Observed,
    ) -> Result<(), KernelError> {
        let incompatible =
            observed.vtep.as_ref().and_then(|found| device::incompatibility(&self.device.vtep, found));
        if let Some(mismatch) = incompatible {
            let device::Incompatible { what, expected, found } = mismatch;
            warn!(device = %scope.vtep, attribute = what, %expected, %found, "device does not fit and is made anew");
        }
        for step in steps {
            debug!(device = %scope.vtep, ?step, "device step");
            match (step, self.kernel.step(scope, step)) {
                (DeviceStep::SetMtu(_), Err(error)) if error.is_invalid() => self.tell_mtu(&error),
                (DeviceStep::SetMtu(_), Ok(())) => self.mtu_refused = false,
                (_, result) => result?,
            }
        }
        Ok(())
    }

    /// A configured MTU may be more than the interface below carries. A new device gets as much as fits, and one that is there
    /// keeps what it has: smaller packets get through all the same.
    fn tell_mtu(&mut self, error: &KernelError) {
        if !std::mem::replace(&mut self.mtu_refused, true) {
            warn!(%error, parent = %self.device.vtep.parent,
                "the configured MTU is more than the interface below can carry; the device stays smaller. Remove MTU from the \
                 network config, or lower it");
        }
    }

    /// Programs what a change of leases concerns.
    pub(super) fn on_leases(&mut self, touched: &Touched, now: Duration) -> Report {
        if self.direct_routing {
            self.find_direct(&touched.subnets.iter().copied().collect());
        }
        self.make_right(keys_of(touched), now, false)
    }

    /// Takes over what was changed in the kernel and repairs what is not as it should be. The underlay is the caller's business.
    ///
    /// # Errors
    /// When the device had to be looked at again and could not be made right.
    pub(super) fn on_changes(&mut self, changes: &[Change], now: Duration) -> Result<Report, KernelError> {
        if changes.contains(&Change::Lost) {
            let mut begun = Begun::new();
            if !self.contest.admit_overrun(now, &mut begun) {
                return Ok(Report { begun, ..Report::default() });
            }
            return self.resync(Some(now));
        }
        if changes.contains(&Change::Device) {
            return self.resync(Some(now));
        }
        let keys = self.take_over(changes);
        Ok(self.make_right(keys, now, true))
    }

    /// Corrects what had to wait because somebody keeps undoing it.
    ///
    /// # Errors
    /// As [`DataPlane::resync`].
    pub(super) fn correct_what_is_fought_over(&mut self, now: Duration) -> Result<Report, KernelError> {
        let postponed = self.contest.take();
        if postponed.device {
            return self.resync(Some(now));
        }
        Ok(self.make_right(postponed.entries.into_iter().collect(), now, true))
    }

    /// Tries what failed once more.
    pub(super) fn retry(&mut self, now: Duration) -> Report {
        let mut keys: Vec<EntryKey> = std::mem::take(&mut self.failed).into_keys().collect();
        keys.extend(std::mem::take(&mut self.conflicts).into_keys().map(EntryKey::Routes));
        self.make_right(keys, now, false)
    }

    /// `undone`: somebody else changed these just now.
    fn make_right(&mut self, keys: Vec<EntryKey>, now: Duration, undone: bool) -> Report {
        for key in &keys {
            self.failed.remove(key);
            if let EntryKey::Routes(subnet) = key {
                self.conflicts.remove(subnet);
            }
        }
        let (mut plan, mut begun) = (diff_of(keys, &self.desired(), &self.mirror), Begun::new());
        if undone {
            self.contest.admit_operations(&mut plan, now, &mut begun);
        }
        let mut report = self.carry_out(plan, Some(now));
        report.begun.append(&mut begun);
        report
    }

    /// Applies a plan, then whatever somebody else changed in the meantime (at `now`, if that may be a fight).
    fn carry_out(&mut self, mut plan: Plan, now: Option<Duration>) -> Report {
        let mut report = Report::default();
        for round in 1..=ROUNDS {
            let changes = self.apply(&plan, &mut report);
            // A change of the device needs the caller's error handling.
            self.unseen.extend(changes.iter().filter(|change| change.key().is_none()).cloned());
            if self.unseen.iter().any(|change| matches!(change, Change::Device | Change::Lost)) {
                break;
            }
            let keys = self.take_over(&changes);
            let mut rest = diff_of(keys, &self.desired(), &self.mirror);
            rest.operations.retain(|operation| !self.failed.contains_key(&operation.key()));
            if rest == Plan::default() {
                break;
            }
            if round == ROUNDS {
                self.contest.put_off(rest.operations.iter().map(Operation::key), now.unwrap_or_default());
                break;
            }
            plan = rest;
            if let Some(now) = now {
                self.contest.admit_operations(&mut plan, now, &mut report.begun);
            }
        }
        report
    }

    fn apply(&mut self, plan: &Plan, report: &mut Report) -> Vec<Change> {
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
            let results = self.kernel.apply(&self.scope, chunk);
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

    /// Brings the mirror up to date and says which entries are to be looked at: not those of which it was known already, as it is
    /// when our own changes come back.
    fn take_over(&mut self, changes: &[Change]) -> Vec<EntryKey> {
        let mut keys = Vec::new();
        for change in changes {
            let news = match change {
                Change::Neighbor(ip, Some(mac)) => self.mirror.neighbors.insert(*ip, *mac) != Some(*mac),
                Change::Neighbor(ip, None) => self.mirror.neighbors.remove(ip).is_some(),
                Change::Fdb(mac, Some(target)) => self.mirror.fdb.insert(*mac, *target) != Some(*target),
                Change::Fdb(mac, None) => self.mirror.fdb.remove(mac).is_some(),
                Change::RouteAdded { route, replaced: true } => {
                    self.mirror.put_route(*route);
                    true
                }
                Change::RouteAdded { route, replaced: false } => self.mirror.routes.insert(*route),
                Change::RouteRemoved(route) => {
                    self.mirror.routes.retain(|known| known.dst != route.dst || !known.same_way(route));
                    true
                }
                Change::Device | Change::Underlay | Change::Lost => false,
            };
            if news {
                keys.extend(change.key());
            }
        }
        keys
    }

    /// Asks the kernel which of these peers are on the same link.
    fn find_direct(&mut self, subnets: &BTreeSet<Ipv4Network>) {
        for peer in subnets.iter().filter_map(|subnet| self.leases.peer(*subnet)) {
            let on_link = self
                .kernel
                .route_to(peer.public_ip)
                .is_ok_and(|route| route.gateway.is_none() && route.device != self.device.vtep.name);
            if on_link {
                self.direct.insert(peer.public_ip);
            } else {
                self.direct.remove(&peer.public_ip);
            }
        }
    }
}

#[cfg(test)]
mod tests;
