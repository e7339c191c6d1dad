//! The desired entries: a function of all usable leases, never of the last event.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::lease_set::{LeaseSet, Peer, Touched};
use super::state::{Entries, EntryKey, FdbTarget, Route};

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

impl Overlay<'_> {
    /// All desired entries.
    #[must_use]
    pub fn entries(&self) -> Entries {
        let tunnelled = || self.leases.peers().filter(|(_, peer)| self.tunnelled(*peer));
        let routes = self.leases.peers().map(|(subnet, peer)| self.route(subnet, peer));
        Entries {
            neighbors: tunnelled().map(|(subnet, peer)| (subnet.network(), peer.mac)).collect(),
            fdb: tunnelled().map(|(_, peer)| (peer.mac, target(peer))).collect(),
            routes: routes.chain(self.blackhole()).collect(),
        }
    }

    /// The desired entries among `keys`.
    #[must_use]
    pub fn entries_of(&self, keys: &BTreeSet<EntryKey>) -> Entries {
        let mut entries = Entries::default();
        for key in keys {
            match *key {
                EntryKey::Neighbor(ip) => {
                    let peer = self.leases.peer_at(ip).filter(|(_, peer)| self.tunnelled(*peer));
                    entries.neighbors.extend(peer.map(|(_, peer)| (ip, peer.mac)));
                }
                EntryKey::Fdb(mac) => {
                    let peer = self.leases.peers_with_mac(mac).find(|(_, peer)| self.tunnelled(*peer));
                    entries.fdb.extend(peer.map(|(_, peer)| (mac, target(peer))));
                }
                EntryKey::Routes(subnet) => {
                    entries.routes.extend(self.leases.peer(subnet).map(|peer| self.route(subnet, peer)));
                    entries.routes.extend(self.blackhole().filter(|route| route.dst == subnet));
                }
            }
        }
        entries
    }

    fn tunnelled(&self, peer: Peer) -> bool {
        !self.direct.contains(&peer.public_ip)
    }

    fn route(&self, subnet: Ipv4Network, peer: Peer) -> Route {
        if self.tunnelled(peer) { Route::overlay(subnet) } else { Route::direct(subnet, peer.public_ip) }
    }

    fn blackhole(&self) -> Option<Route> {
        self.blackhole.then(|| Route::blackhole(self.leases.own().subnet))
    }
}

fn target(peer: Peer) -> FdbTarget {
    FdbTarget { dst: peer.public_ip, plain: true }
}

/// The entries that a change of leases can concern.
#[must_use]
pub fn keys_of(touched: &Touched) -> BTreeSet<EntryKey> {
    let of_subnets = touched
        .subnets
        .iter()
        .flat_map(|subnet| [EntryKey::Neighbor(subnet.network()), EntryKey::Routes(*subnet)]);
    of_subnets.chain(touched.macs.iter().map(|mac| EntryKey::Fdb(*mac))).collect()
}

impl Entries {
    /// The entries among `keys`.
    #[must_use]
    pub fn restricted_to(&self, keys: &BTreeSet<EntryKey>) -> Self {
        let mut entries = Self::default();
        for key in keys {
            match *key {
                EntryKey::Neighbor(ip) => {
                    entries.neighbors.extend(self.neighbors.get(&ip).map(|mac| (ip, *mac)));
                }
                EntryKey::Fdb(mac) => entries.fdb.extend(self.fdb.get(&mac).map(|target| (mac, *target))),
                EntryKey::Routes(dst) => entries.routes.extend(self.routes_to(dst).copied()),
            }
        }
        entries
    }
}
