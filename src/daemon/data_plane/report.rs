//! What the data plane tells others: what a round did, what there is now, and what the kernel refused. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tracing::info;

use super::DataPlane;
use crate::daemon::contest::Begun;
use crate::kernel::Kernel;
use crate::metrics::OperationKind;
use crate::model::lease_set::Peer;
use crate::model::state::{EntryKey, Operation};
use crate::status::{Device, PeerState};

/// What one round changed in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Report {
    /// What succeeded, by kind: steps on the device, operations on entries.
    pub(in crate::daemon) done: BTreeMap<OperationKind, u64>,
    /// Operations that failed.
    pub(in crate::daemon) failed: BTreeMap<OperationKind, u64>,
    /// What somebody else keeps undoing from now on.
    pub(in crate::daemon) begun: Begun,
}

impl Report {
    pub(super) fn count(&mut self, operation: &Operation, ok: bool) {
        let counts = if ok { &mut self.done } else { &mut self.failed };
        *counts.entry(OperationKind::from(operation)).or_default() += 1;
    }

    /// Nothing was done and nothing failed.
    #[must_use]
    pub(in crate::daemon) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One line for the log about what a round did, if it did anything.
pub(in crate::daemon) fn log_report(cause: &'static str, report: &Report, took: Duration) {
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

impl<K: Kernel> DataPlane<K> {
    /// How many peers have an entry that could not be programmed.
    pub(in crate::daemon) fn failed_peers(&self) -> usize {
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

    /// The device as it should be, with what belongs on it.
    pub(in crate::daemon) fn device(&self) -> Device {
        Device { vtep: self.vtep.clone(), address: self.address, network: self.network }
    }

    /// Every peer, and why the kernel does not hold it whole.
    pub(in crate::daemon) fn peers(&self) -> Vec<PeerState> {
        let peers = self.leases.peers().map(|(subnet, peer)| PeerState {
            subnet,
            public_ip: peer.public_ip,
            mac: peer.mac,
            direct: self.direct.contains(&peer.public_ip),
            problem: self.problem_of(subnet, peer),
        });
        peers.collect()
    }

    fn problem_of(&self, subnet: Ipv4Network, peer: Peer) -> Option<String> {
        if let Some(theirs) = self.conflicts.get(&subnet) {
            let theirs = crate::kernel::route_in_words(theirs);
            return Some(format!("a route that is not ours stands in its place: {theirs}"));
        }
        let keys = [EntryKey::Routes(subnet), EntryKey::Neighbor(subnet.network()), EntryKey::Fdb(peer.mac)];
        keys.iter().find_map(|key| self.failed.get(key)).cloned()
    }

    /// Whether something is left to try again.
    pub(in crate::daemon) fn has_failures(&self) -> bool {
        !self.failed.is_empty() || !self.conflicts.is_empty()
    }

    /// Whether somebody else's route stands where ours belongs.
    pub(in crate::daemon) fn has_conflicts(&self) -> bool {
        !self.conflicts.is_empty()
    }
}
