//! Whether a lease can be a peer among all others, and which leases have a say in it: those that overlap it, and those with
//! the same VTEP MAC.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::{Known, LeaseSet, Peer, Skip};
use crate::model::MacAddr;

impl LeaseSet {
    pub(super) fn judge_among(&self, subnet: Ipv4Network, known: &Known, peer: Peer) -> Result<Peer, Skip> {
        if self.covered_by_older(subnet, known) {
            return Err(Skip::Overlap);
        }
        let written_later = |other: Ipv4Network| {
            self.leases.get(&other).is_some_and(|rival| {
                rival.alone.is_ok_and(|rival| rival.public_ip != peer.public_ip)
                    && (rival.modified, other) > (known.modified, subnet)
                    && !self.covered_by_older(other, rival)
            })
        };
        if self.subnets_with_mac(peer.mac).any(written_later) { Err(Skip::DuplicateMac) } else { Ok(peer) }
    }

    fn covered_by_older(&self, subnet: Ipv4Network, known: &Known) -> bool {
        self.overlapping(subnet).any(|other| {
            self.leases
                .get(&other)
                .is_some_and(|rival| rival.alone.is_ok() && (rival.created, other) < (known.created, subnet))
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

    /// Leases whose verdict can depend on `subnet`'s, with itself.
    pub(super) fn concerned(&self, subnet: Ipv4Network) -> BTreeSet<Ipv4Network> {
        let mut concerned: BTreeSet<Ipv4Network> = self.overlapping(subnet).collect();
        concerned.insert(subnet);
        let peers = concerned.iter().filter_map(|subnet| self.leases.get(subnet)?.alone.ok());
        let rivals: Vec<Ipv4Network> = peers.flat_map(|peer| self.subnets_with_mac(peer.mac)).collect();
        concerned.extend(rivals);
        concerned
    }
}

const LOWEST: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(lowest) => lowest,
    None => unreachable!(),
};
