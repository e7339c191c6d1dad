//! The desired entries: a function of all usable leases, never of the last event.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::MacAddr;
use super::lease_set::{LeaseSet, Peer, Touched};
use super::state::{Desired, EntryKey, FdbTarget, Route};

/// The peers, and which of them are reached directly instead of through the tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// All leases.
    pub leases: &'a LeaseSet,
    /// Public IPs on the same link, when direct routing is on; empty otherwise.
    pub direct: &'a BTreeSet<Ipv4Addr>,
    /// Our own subnet gets a route that drops what no pod bridge takes.
    pub blackhole: bool,
}

impl Desired for Overlay<'_> {
    fn neighbors(&self) -> impl Iterator<Item = (Ipv4Addr, MacAddr)> {
        let tunnelled = self.leases.peers().filter(|(_, peer)| self.tunnelled(*peer));
        tunnelled.map(|(subnet, peer)| (subnet.network(), peer.mac))
    }

    fn fdb_entries(&self) -> impl Iterator<Item = (MacAddr, FdbTarget)> {
        let mut last = None;
        let tunnelled = self.leases.peers_by_mac().filter(|peer| self.tunnelled(*peer));
        let once = tunnelled.filter(move |peer| last.replace(peer.mac) != Some(peer.mac));
        once.map(|peer| (peer.mac, target(peer)))
    }

    fn routes(&self) -> impl Iterator<Item = Route> {
        let own = self.leases.own().subnet;
        let route = |(subnet, peer)| self.route_to(subnet, peer);
        let before = self.leases.peers_in(..own).map(route);
        before.chain(self.blackhole()).chain(self.leases.peers_in(own..).map(route))
    }

    fn neighbor(&self, ip: Ipv4Addr) -> Option<MacAddr> {
        let (_, peer) = self.leases.peer_at(ip)?;
        self.tunnelled(peer).then_some(peer.mac)
    }

    fn fdb_entry(&self, mac: MacAddr) -> Option<FdbTarget> {
        let mut peers = self.leases.peers_with_mac(mac).map(|(_, peer)| peer);
        peers.find(|peer| self.tunnelled(*peer)).map(target)
    }

    fn route(&self, dst: Ipv4Network) -> Option<Route> {
        let blackhole = || self.blackhole().filter(|route| route.dst == dst);
        self.leases.peer(dst).map(|peer| self.route_to(dst, peer)).or_else(blackhole)
    }
}

impl Overlay<'_> {
    fn tunnelled(&self, peer: Peer) -> bool {
        !self.direct.contains(&peer.public_ip)
    }

    fn route_to(&self, subnet: Ipv4Network, peer: Peer) -> Route {
        if self.tunnelled(peer) { Route::overlay(subnet) } else { Route::direct(subnet, peer.public_ip) }
    }

    fn blackhole(&self) -> Option<Route> {
        self.blackhole.then(|| Route::blackhole(self.leases.own().subnet))
    }
}

fn target(peer: Peer) -> FdbTarget {
    FdbTarget { dst: peer.public_ip, plain: true }
}

/// The entries that a change of leases can concern, some maybe twice.
#[must_use]
pub fn keys_of(touched: &Touched) -> Vec<EntryKey> {
    let of_subnets = touched
        .subnets
        .iter()
        .flat_map(|subnet| [EntryKey::Neighbor(subnet.network()), EntryKey::Routes(*subnet)]);
    of_subnets.chain(touched.macs.iter().map(|mac| EntryKey::Fdb(*mac))).collect()
}
