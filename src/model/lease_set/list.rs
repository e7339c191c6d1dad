//! Whole lists of the store: the first one, later ones, and those of another point of view.

use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::skip::{Skipped, bad_key};
use super::{Known, LeaseSet, Own, Peer, RawLease, Source, Touched, fingerprint};
use crate::model::lease::parse_key;

impl LeaseSet {
    /// Judges everything again from another point of view (new subnet, new MAC …).
    pub fn set_own(&mut self, own: Own, leases: &[RawLease<'_>], source: Source, now: Duration) -> Touched {
        self.own = own;
        self.list(leases, source, now)
    }

    /// Fills an empty set with the first list, after which everything is programmed anyway. Returns what is skipped.
    pub fn begin(&mut self, leases: &[RawLease<'_>], source: Source) -> Vec<Skipped> {
        self.source = Some(source);
        self.take(leases, Vec::new()).0
    }

    /// Takes `leases` for the whole content of the store, or, if it looks replaced, for what it knows so far.
    pub fn list(&mut self, leases: &[RawLease<'_>], source: Source, now: Duration) -> Touched {
        let replaced = self.looks_replaced(leases, source);
        let until = now.saturating_add(self.grace);
        let kept: Vec<(Ipv4Network, Peer, Duration)> = self
            .leases
            .iter()
            .filter_map(|(subnet, known)| {
                let until = known.kept.or(replaced.map(|_| until)).filter(|until| *until > now)?;
                Some((*subnet, known.verdict?.ok()?, until))
            })
            .collect();
        let touched = self.replace_and_keep(leases, kept);
        self.source = Some(source);
        Touched { replaced, ..touched }
    }

    /// Takes `leases` for the whole content of the store, without any doubt.
    pub fn replace(&mut self, leases: &[RawLease<'_>]) -> Touched {
        self.replace_and_keep(leases, Vec::new())
    }

    fn replace_and_keep(
        &mut self,
        leases: &[RawLease<'_>],
        kept: Vec<(Ipv4Network, Peer, Duration)>,
    ) -> Touched {
        let (skipped, before) = self.take(leases, kept);
        let subnets = self.leases.keys().copied().chain(before.peers().map(|(subnet, _)| subnet)).collect();
        let macs = self.peers().chain(before.peers()).map(|(_, peer)| peer.mac).collect();
        Touched { subnets, macs, skipped, replaced: None }
    }

    /// Returns what is skipped now and was not, and the leases there were.
    fn take(
        &mut self,
        leases: &[RawLease<'_>],
        kept: Vec<(Ipv4Network, Peer, Duration)>,
    ) -> (Vec<Skipped>, Self) {
        let empty = Self { source: self.source, ..Self::new(self.own.clone()).with_grace(self.grace) };
        let before = std::mem::replace(self, empty);
        let (mut touched, mut listed) = (Touched::default(), Vec::with_capacity(leases.len()));
        for lease in leases {
            match parse_key(lease.name) {
                Ok(subnet) => listed
                    .extend(self.read(subnet, lease, fingerprint(lease.value)).map(|known| (subnet, known))),
                Err(_) => {
                    if self.insert_bad_key(lease.name) && !before.knows_bad_key(lease.name) {
                        touched.skipped.push(bad_key(lease.name));
                    }
                }
            }
        }
        self.fill(listed);
        for (subnet, peer, until) in kept {
            self.keep(subnet, peer, until);
        }
        self.judge_list(&mut touched);
        touched.skipped.retain(|skipped| before.skip_of(&skipped.name) != Some(skipped.skip));
        (touched.skipped, before)
    }

    /// Judges all leases, of which none has a verdict yet. Most of thousands concern no other one, and are peers as they are.
    fn judge_list(&mut self, touched: &mut Touched) {
        let doubtful = self.doubtful();
        for (_, known) in self.leases.iter_mut().filter(|(subnet, _)| !doubtful.contains(subnet)) {
            known.verdict = Some(known.alone);
            self.usable += 1;
        }
        for subnet in doubtful {
            self.judge(subnet, true, touched);
        }
    }

    /// Puts the leases of a list into an empty set: the trees are built at once, which takes less than so many insertions.
    fn fill(&mut self, listed: Vec<(Ipv4Network, Known)>) {
        for (subnet, _) in &listed {
            self.count_length(*subnet, 1);
        }
        let macs = listed.iter().filter_map(|(subnet, known)| Some((known.alone.ok()?.mac, *subnet)));
        self.by_mac = macs.collect();
        self.leases = listed.into_iter().collect();
    }
}
