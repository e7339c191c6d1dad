//! A store that was replaced: how it is told, and the peers of the former one, kept until their grace period is over or their
//! addresses are leased anew.

use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::skip::judge_alone;
use super::{Known, LeaseSet, Peer, RawLease, Source, Touched};
use crate::model::{LeaseAttrs, VxlanData};

impl LeaseSet {
    pub(super) fn looks_replaced(&self, leases: &[RawLease<'_>], source: Source) -> Option<&'static str> {
        let former = self.source?;
        if former.cluster != source.cluster {
            Some("another cluster id")
        } else if source.revision < former.revision {
            Some("its revision is below one seen before")
        } else if leases.is_empty() && self.has_real_peers() {
            Some("it is empty")
        } else {
            None
        }
    }

    /// Some peer stands in the present store.
    fn has_real_peers(&self) -> bool {
        self.leases.values().any(|known| known.kept.is_none() && matches!(known.verdict, Some(Ok(_))))
    }

    /// Keeps a peer that the present store does not list, unless its subnet was leased anew or it cannot be a peer any more.
    /// Its revisions are those of another store: here every real lease is older and was written later.
    pub(super) fn keep(&mut self, subnet: Ipv4Network, peer: Peer, until: Duration) {
        let vxlan = VxlanData { vni: self.own.vni.get(), mac: peer.mac };
        let attrs = LeaseAttrs::vxlan(peer.public_ip, vxlan, None);
        let alone = judge_alone(&self.own, subnet, &attrs);
        if alone.is_err() || self.leases.contains_key(&subnet) || self.is_leased(subnet) {
            return;
        }
        let known = Known {
            created: u64::MAX,
            modified: 0,
            value: 0,
            public_ip: Some(peer.public_ip),
            node: None,
            kept: Some(until),
            alone,
            verdict: None,
        };
        self.exchange(subnet, Some(known));
    }

    /// Whether a usable lease of the present store shares addresses with `subnet`.
    fn is_leased(&self, subnet: Ipv4Network) -> bool {
        let real = |known: &Known| known.kept.is_none() && known.alone.is_ok();
        self.overlapping(subnet).any(|other| self.leases.get(&other).is_some_and(real))
    }

    /// How many peers of a former store are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// When the grace period of some kept peer is over.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.kept.first().map(|(until, _)| *until)
    }

    /// Drops kept peers whose grace period is over.
    pub fn end_grace(&mut self, now: Duration) -> Touched {
        let over = self.kept.iter().take_while(|(until, _)| *until <= now);
        let over: Vec<Ipv4Network> = over.map(|(_, subnet)| *subnet).collect();
        self.drop_all(&over)
    }

    fn drop_all(&mut self, subnets: &[Ipv4Network]) -> Touched {
        let mut touched = Touched::default();
        for subnet in subnets {
            self.remove(*subnet, &mut touched);
        }
        touched
    }

    /// Kept peers whose addresses were leased anew go for good.
    pub(super) fn give_way(&mut self, subnet: Ipv4Network) -> Touched {
        if self.kept.is_empty() || self.leases.get(&subnet).is_none_or(|known| known.alone.is_err()) {
            return Touched::default();
        }
        let is_kept = |other: &Ipv4Network| self.leases.get(other).is_some_and(|known| known.kept.is_some());
        let kept: Vec<Ipv4Network> = self.overlapping(subnet).filter(is_kept).collect();
        self.drop_all(&kept)
    }
}
