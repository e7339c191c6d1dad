//! Whether a lease can be a peer among all others, and which leases have a say in it: those that overlap it, and those with
//! the same VTEP MAC.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::{Known, LeaseSet, Peer, Rival, Skip};
use crate::model::MacAddr;
use crate::model::lease::key_of;

impl LeaseSet {
    pub(super) fn judge_among(&self, subnet: Ipv4Network, known: &Known, peer: Peer) -> Result<Peer, Skip> {
        if self.older_over(subnet, known).is_some() {
            return Err(Skip::Overlap);
        }
        match self.later_with_mac(subnet, known, peer) {
            Some(_) => Err(Skip::DuplicateMac),
            None => Ok(peer),
        }
    }

    /// The lease that is the reason for `skip`.
    pub(super) fn rival(&self, subnet: Ipv4Network, known: &Known, skip: Skip) -> Option<Rival> {
        let rival = match (skip, known.alone) {
            (Skip::Overlap, Ok(_)) => self.older_over(subnet, known),
            (Skip::DuplicateMac, Ok(peer)) => self.later_with_mac(subnet, known, peer),
            _ => None,
        }?;
        Some(Rival { name: key_of(rival), writer: self.leases.get(&rival)?.writer() })
    }

    /// Leases of other nodes that have our VTEP MAC.
    pub fn with_our_mac(&self) -> impl Iterator<Item = Rival> {
        let some = self.skipped.get(&Skip::OwnMac).is_some_and(|count| *count > 0);
        let leases = some.then_some(&self.leases).into_iter().flatten();
        let ours = leases.filter(|(_, known)| known.verdict == Some(Err(Skip::OwnMac)));
        ours.map(|(subnet, known)| Rival { name: key_of(*subnet), writer: known.writer() })
    }

    fn later_with_mac(&self, subnet: Ipv4Network, known: &Known, peer: Peer) -> Option<Ipv4Network> {
        self.subnets_with_mac(peer.mac).find(|other| {
            self.leases.get(other).is_some_and(|rival| {
                rival.alone.is_ok_and(|rival| rival.public_ip != peer.public_ip)
                    && (rival.modified, *other) > (known.modified, subnet)
                    && self.older_over(*other, rival).is_none()
            })
        })
    }

    fn older_over(&self, subnet: Ipv4Network, known: &Known) -> Option<Ipv4Network> {
        self.overlapping(subnet).find(|other| {
            self.leases
                .get(other)
                .is_some_and(|rival| rival.alone.is_ok() && (rival.created, *other) < (known.created, subnet))
        })
    }

    pub(super) fn subnets_with_mac(&self, mac: MacAddr) -> impl Iterator<Item = Ipv4Network> {
        let from = (mac, LOWEST);
        self.by_mac.range(from..).take_while(move |(other, _)| *other == mac).map(|(_, subnet)| *subnet)
    }

    /// Leases that share addresses with `subnet`, without itself.
    pub(super) fn overlapping(&self, subnet: Ipv4Network) -> impl Iterator<Item = Ipv4Network> {
        let shorter = self.lengths.iter().zip(0_u8..subnet.prefix()).filter(|(count, _)| **count > 0);
        let above = shorter.filter_map(move |(_, length)| {
            let above = Ipv4Network::new(subnet.ip(), length).ok()?;
            Ipv4Network::new(above.network(), length).ok()
        });
        let within = self.leases.range(subnet..).skip_while(move |(other, _)| **other == subnet);
        let within =
            within.take_while(move |(other, _)| subnet.contains(other.ip())).map(|(other, _)| *other);
        above.filter(|above| self.leases.contains_key(above)).chain(within)
    }

    /// Leases that are no peers by themselves, overlap another one or share its MAC: all others can be judged alone.
    pub(super) fn doubtful(&self) -> BTreeSet<Ipv4Network> {
        let bad = self.leases.iter().filter(|(_, known)| known.alone.is_err());
        let mut doubtful: BTreeSet<Ipv4Network> = bad.map(|(subnet, _)| *subnet).collect();
        let mut outer: Option<Ipv4Network> = None;
        for subnet in self.leases.keys() {
            // In order of address a subnet comes right before those that lie in it.
            match outer.filter(|outer| outer.contains(subnet.ip())) {
                Some(outer) => doubtful.extend([outer, *subnet]),
                None => outer = Some(*subnet),
            }
        }
        for ((mac, subnet), (next, other)) in self.by_mac.iter().zip(self.by_mac.iter().skip(1)) {
            if mac == next {
                doubtful.extend([*subnet, *other]);
            }
        }
        doubtful
    }

    /// Leases whose verdict can depend on what stands at `subnet` now, or stood there (`former`): those that overlap it, and those
    /// with the MAC of any of these.
    pub(super) fn others(&self, subnet: Ipv4Network, former: Option<Known>) -> Vec<Ipv4Network> {
        let mut others: Vec<Ipv4Network> = self.overlapping(subnet).collect();
        let present = others.iter().chain([&subnet]).filter_map(|subnet| self.leases.get(subnet).copied());
        let mut macs: Vec<MacAddr> =
            present.chain(former).filter_map(|known| Some(known.alone.ok()?.mac)).collect();
        macs.sort_unstable();
        macs.dedup();
        for mac in macs {
            others.extend(self.subnets_with_mac(mac).filter(|other| *other != subnet));
        }
        others.sort_unstable();
        others.dedup();
        others
    }
}

const LOWEST: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(lowest) => lowest,
    None => unreachable!(),
};
