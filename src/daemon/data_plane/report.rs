//! What the data plane tells others: what a round did, what there is now, and what the kernel refused. Changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tracing::info;

use super::DataPlane;
use crate::clock::BootTime;
use crate::daemon::contest::Begun;
use crate::kernel::Kernel;
use crate::metrics::{Counts, OperationKind};
use crate::model::lease_set::Peer;
use crate::model::state::{EntryKey, Operation};
use crate::status::{Device, PeerState};

/// What one round changed in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Report {
    /// What succeeded, by kind: steps on the device, operations on entries.
    pub(in crate::daemon) done: Counts,
    /// Operations that failed.
    pub(in crate::daemon) failed: Counts,
    /// What somebody else keeps undoing from now on.
    pub(in crate::daemon) begun: Begun,
    /// The device was looked at and is as it should be. A round of entries says nothing of it.
    pub(in crate::daemon) device_is_right: bool,
}

impl Report {
    pub(super) fn count(&mut self, operation: &Operation, ok: bool) {
        let counts = if ok { &mut self.done } else { &mut self.failed };
        counts.add(OperationKind::from(operation), 1);
    }

    /// Nothing was done and nothing failed.
    #[must_use]
    pub(in crate::daemon) fn is_empty(&self) -> bool {
        self.done.sum() == 0 && self.failed.sum() == 0 && self.begun.is_empty()
    }
}

/// Says what rounds did: each in a line of its own, unless there are many. A lease that is written a hundred times a second shall
/// not fill the log.
#[derive(Debug, Default)]
pub(in crate::daemon) struct RoundLog {
    since: BootTime,
    lines: u32,
    unsaid: u64,
}

impl RoundLog {
    /// So many lines in this time.
    const LIMIT: (u32, Duration) = (20, Duration::from_secs(10));

    /// One line about a round that did anything, now or in the next one's.
    pub(in crate::daemon) fn say(
        &mut self,
        cause: &'static str,
        report: &Report,
        took: Duration,
        now: BootTime,
    ) {
        if report.is_empty() {
            return;
        }
        let (lines, span) = Self::LIMIT;
        if now.since(self.since) >= span {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines == lines {
            self.unsaid += 1;
            return;
        }
        self.lines += 1;
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let unsaid = Some(std::mem::take(&mut self.unsaid)).filter(|rounds| *rounds > 0);
        info!(
            cause,
            changed = report.done.sum(),
            failed = report.failed.sum(),
            ms,
            rounds_not_told_before = unsaid,
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
    pub(in crate::daemon) fn device(&self) -> &Device {
        &self.device
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rounds_are_told_in_few_lines_and_none_is_forgotten() {
        let mut log = RoundLog::default();
        let mut report = Report::default();
        report.done.add(OperationKind::Route, 1);
        let mut say = |seconds: u64, report: &Report| {
            log.say("leases", report, Duration::ZERO, BootTime(Duration::from_secs(seconds)));
            (log.lines, log.unsaid)
        };
        for line in 1..=20 {
            assert_eq!(say(100, &report), (line, 0));
        }
        assert_eq!((say(101, &report), say(109, &report)), ((20, 1), (20, 2)));
        assert_eq!(say(110, &Report::default()), (20, 2), "nothing to tell");
        assert_eq!(say(110, &report), (1, 0), "told with this one");
    }
}
