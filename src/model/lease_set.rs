//! All leases of the store as one value: which of them are usable peers, and why the others are not.
//!
//! The store is not trusted. A lease that cannot be used is skipped and counted; it never removes another one.
//! Among leases that overlap the one created first stays. Among leases with the same VTEP MAC and different public
//! IPs the one written last counts: a node whose address changed publishes its MAC again.
//!
//! A list is authoritative, unless the store itself looks replaced: then peers that it does not list are kept for a while, as
//! an empty store says nothing about who forwards packets.

mod among;
mod kept;
mod list;
mod skip;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::ops::RangeBounds;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::lease::parse_key;
use super::two_stores::Origin;
use super::{LeaseAttrs, MacAddr, NodeId, Vni};
pub use skip::{Rival, Skip, Skipped, Writer};
use skip::{bad_key, judge_alone};

/// A peer that can be programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where encapsulated packets go.
    pub public_ip: Ipv4Addr,
    /// Hardware address of the peer's VXLAN device.
    pub mac: MacAddr,
}

/// This node, as far as it decides which leases are peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// Our public IP.
    pub public_ip: Ipv4Addr,
    /// Our VTEP MAC.
    pub mac: MacAddr,
    /// Our VNI.
    pub vni: Vni,
    /// Addresses that must stay reachable outside of the overlay.
    pub underlay: Vec<Ipv4Addr>,
}

/// One key of the store, raw.
#[derive(Debug, Clone, Copy)]
pub struct RawLease<'a> {
    /// Last part of the key.
    pub name: &'a str,
    /// The value's bytes.
    pub value: &'a [u8],
    /// Revision of the key's creation.
    pub created: u64,
    /// Revision of the key's last write.
    pub modified: u64,
}

/// Which store a list came from, and its revision then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The cluster's id.
    pub cluster: u64,
    /// How far it had counted.
    pub revision: u64,
}

/// A lease whose key could be read.
#[derive(Debug, Clone, Copy)]
struct Known {
    created: u64,
    modified: u64,
    /// Fingerprint of the value.
    value: u64,
    public_ip: Option<Ipv4Addr>,
    node: Option<NodeId>,
    /// No lease of the present store: a peer of a former one, kept until then.
    kept: Option<Duration>,
    /// Judged by itself, without the other leases.
    alone: Result<Peer, Skip>,
    /// Judged among all leases; `None` until then.
    verdict: Option<Result<Peer, Skip>>,
}

impl Known {
    fn writer(&self) -> Writer {
        Writer { public_ip: self.public_ip, node: self.node, revision: self.modified }
    }
}

/// What became of leases: subnets to look at again, and keys newly skipped (for one log line each). Something may be named twice.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Subnets whose entries may have to change.
    pub subnets: Vec<Ipv4Network>,
    /// MACs whose FDB entries may have to change.
    pub macs: Vec<MacAddr>,
    /// Keys that are skipped now and were not, or for another reason.
    pub skipped: Vec<Skipped>,
    /// The list came from a store that looks replaced: why.
    pub replaced: Option<&'static str>,
}

impl Touched {
    /// Both together.
    pub fn append(&mut self, other: Self) {
        if self.is_empty() {
            // Mostly it is one event alone.
            *self = other;
            return;
        }
        self.subnets.extend(other.subnets);
        self.macs.extend(other.macs);
        self.skipped.extend(other.skipped);
        self.replaced = self.replaced.or(other.replaced);
    }

    /// Nothing follows from what happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A lease changes or goes that had this verdict.
    fn was(&mut self, subnet: Ipv4Network, verdict: Option<Result<Peer, Skip>>) {
        self.subnets.push(subnet);
        self.macs.extend(verdict.and_then(Result::ok).map(|peer| peer.mac));
    }
}

/// Every lease of the store and its verdict. Updates cost time in the number of leases concerned, not of all.
#[derive(Debug)]
pub struct LeaseSet {
    own: Own,
    leases: BTreeMap<Ipv4Network, Known>,
    by_mac: BTreeSet<(MacAddr, Ipv4Network)>,
    /// How many leases have each prefix length: only these can cover another.
    lengths: [u32; 33],
    /// Fingerprints, as a name may be as long as the store allows.
    bad_keys: BTreeSet<u64>,
    skipped: BTreeMap<Skip, u64>,
    usable: usize,
    grace: Duration,
    source: Option<Source>,
    /// Peers of a former store, and until when they are kept.
    kept: BTreeSet<(Duration, Ipv4Network)>,
}

impl LeaseSet {
    /// An empty set, judged from `own`'s point of view.
    #[must_use]
    pub fn new(own: Own) -> Self {
        Self {
            own,
            leases: BTreeMap::new(),
            by_mac: BTreeSet::new(),
            lengths: [0; 33],
            bad_keys: BTreeSet::new(),
            skipped: BTreeMap::new(),
            usable: 0,
            grace: Duration::ZERO,
            source: None,
            kept: BTreeSet::new(),
        }
    }

    /// The same, keeping peers for `grace` after the store was replaced.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// How long peers are kept after the store was replaced.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// The usable peers in order of subnet.
    pub fn peers(&self) -> impl Iterator<Item = (Ipv4Network, Peer)> {
        self.peers_in(..)
    }

    /// Those with subnets in this range.
    pub fn peers_in(
        &self,
        subnets: impl RangeBounds<Ipv4Network>,
    ) -> impl Iterator<Item = (Ipv4Network, Peer)> {
        let leases = self.leases.range(subnets);
        leases.filter_map(|(subnet, known)| Some((*subnet, known.verdict?.ok()?)))
    }

    /// The usable peers in order of VTEP MAC, once for each subnet.
    pub fn peers_by_mac(&self) -> impl Iterator<Item = Peer> {
        self.by_mac.iter().filter_map(|(_, subnet)| self.peer(*subnet))
    }

    /// The peer that holds exactly `subnet`.
    #[must_use]
    pub fn peer(&self, subnet: Ipv4Network) -> Option<Peer> {
        self.leases.get(&subnet)?.verdict?.ok()
    }

    /// The peer whose subnet begins at `address`.
    #[must_use]
    pub fn peer_at(&self, address: Ipv4Addr) -> Option<(Ipv4Network, Peer)> {
        let first = Ipv4Network::new(address, 0).ok()?;
        let same_start = self.leases.range(first..).take_while(|(subnet, _)| subnet.ip() == address);
        same_start.into_iter().find_map(|(subnet, known)| Some((*subnet, known.verdict?.ok()?)))
    }

    /// The usable peers with this VTEP MAC; they all have the same public IP.
    pub fn peers_with_mac(&self, mac: MacAddr) -> impl Iterator<Item = (Ipv4Network, Peer)> {
        self.subnets_with_mac(mac).filter_map(|subnet| Some((subnet, self.peer(subnet)?)))
    }

    /// How many peers are usable.
    #[must_use]
    pub fn usable(&self) -> usize {
        self.usable
    }

    /// How many keys are skipped, by reason.
    #[must_use]
    pub fn skipped(&self) -> &BTreeMap<Skip, u64> {
        &self.skipped
    }

    /// The point of view the leases are judged from.
    #[must_use]
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// How far the store has counted, as far as was seen.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.source.map_or(0, |source| source.revision)
    }

    /// The next list was asked for when the store had counted to `revision`: what came meanwhile does not make it an old one.
    pub fn expect_list_since(&mut self, revision: u64) {
        if let Some(source) = &mut self.source {
            source.revision = source.revision.min(revision);
        }
    }

    /// Takes over one key that was created or written.
    pub fn put(&mut self, lease: &RawLease<'_>) -> Touched {
        let mut touched = Touched::default();
        self.note_revision(lease);
        let Ok(subnet) = parse_key(lease.name) else {
            if self.insert_bad_key(lease.name) {
                touched.skipped.push(bad_key(lease.name));
            }
            return touched;
        };
        let (former, value) = (self.leases.get(&subnet).copied(), fingerprint(lease.value));
        if former.is_some_and(|former| self.is_renewal(subnet, &former, lease, value)) {
            self.renew(subnet, lease);
            return touched;
        }
        let before = former.and_then(|former| former.verdict);
        touched.was(subnet, before);
        // With the former verdict, which the new one will be compared with.
        let known = self.read(subnet, lease, value).map(|known| Known { verdict: before, ..known });
        self.exchange(subnet, known);
        touched.append(self.give_way(subnet));
        self.judge_with_others(subnet, former, &mut touched);
        touched
    }

    /// Takes over one key if another node only wrote its lease again, as Go nodes do to renew it, and nothing follows from that.
    /// Otherwise nothing is done. A write to the key of our own subnet is always news.
    pub fn put_renewal(&mut self, lease: &RawLease<'_>) -> bool {
        if lease.created == lease.modified {
            // Created just now.
            return false;
        }
        let known = parse_key(lease.name).ok().and_then(|subnet| Some((subnet, *self.leases.get(&subnet)?)));
        let Some((subnet, former)) = known.filter(|(subnet, _)| *subnet != self.own.subnet) else {
            return false;
        };
        if !self.is_renewal(subnet, &former, lease, fingerprint(lease.value)) {
            return false;
        }
        self.note_revision(lease);
        self.renew(subnet, lease);
        true
    }

    /// Whether the same lease was only written again, and nothing follows from that. Who wrote last counts among leases with the same
    /// MAC.
    fn is_renewal(&self, subnet: Ipv4Network, former: &Known, lease: &RawLease<'_>, value: u64) -> bool {
        let shares = |peer: Peer| self.subnets_with_mac(peer.mac).any(|other| other != subnet);
        former.created == lease.created
            && former.value == value
            && former.kept.is_none()
            && !former.alone.is_ok_and(shares)
    }

    fn renew(&mut self, subnet: Ipv4Network, lease: &RawLease<'_>) {
        if let Some(known) = self.leases.get_mut(&subnet) {
            known.modified = lease.modified;
        }
    }

    fn note_revision(&mut self, lease: &RawLease<'_>) {
        if let Some(source) = &mut self.source {
            // A list's revision names no store, as that of a key does when there are two.
            source.revision = source.revision.max(Origin::of(lease.modified).1);
        }
    }

    /// Takes over that one key is gone.
    pub fn delete(&mut self, name: &str) -> Touched {
        let mut touched = Touched::default();
        let Ok(subnet) = parse_key(name) else {
            if self.bad_keys.remove(&fingerprint(name.as_bytes())) {
                self.count(Some(Err(Skip::BadKey)), -1);
            }
            return touched;
        };
        self.remove(subnet, &mut touched);
        touched
    }

    /// Takes a lease away, and judges whom that concerns.
    fn remove(&mut self, subnet: Ipv4Network, touched: &mut Touched) {
        let Some(former) = self.exchange(subnet, None) else { return };
        touched.was(subnet, former.verdict);
        self.judge_with_others(subnet, Some(former), touched);
    }

    fn knows_bad_key(&self, name: &str) -> bool {
        self.bad_keys.contains(&fingerprint(name.as_bytes()))
    }

    fn skip_of(&self, name: &str) -> Option<Skip> {
        match parse_key(name) {
            Ok(subnet) => self.leases.get(&subnet)?.verdict?.err(),
            Err(_) => self.knows_bad_key(name).then_some(Skip::BadKey),
        }
    }

    fn count(&mut self, verdict: Option<Result<Peer, Skip>>, by: i8) {
        match verdict {
            None => {}
            Some(Ok(_)) => self.usable = self.usable.saturating_add_signed(by.into()),
            Some(Err(skip)) => {
                let count = self.skipped.entry(skip).or_insert(0);
                *count = count.saturating_add_signed(by.into());
            }
        }
    }

    fn insert_bad_key(&mut self, name: &str) -> bool {
        let new = self.bad_keys.insert(fingerprint(name.as_bytes()));
        if new {
            self.count(Some(Err(Skip::BadKey)), 1);
        }
        new
    }

    /// `None`: it is our own lease, no peer and nothing to report.
    fn read(&self, subnet: Ipv4Network, lease: &RawLease<'_>, value: u64) -> Option<Known> {
        let attrs = LeaseAttrs::from_json(lease.value).ok();
        Some(Known {
            created: lease.created,
            modified: lease.modified,
            value,
            public_ip: attrs.as_ref().map(|attrs| attrs.public_ip),
            node: attrs.as_ref().and_then(|attrs| attrs.node_id),
            kept: None,
            alone: self.judge_alone(subnet, attrs.as_ref())?,
            verdict: None,
        })
    }

    /// Puts a lease, or none, in the place of the one there was, and returns that.
    fn exchange(&mut self, subnet: Ipv4Network, known: Option<Known>) -> Option<Known> {
        let former = match known {
            Some(known) => self.leases.insert(subnet, known),
            None => self.leases.remove(&subnet),
        };
        let mac = |known: Option<Known>| Some(known?.alone.ok()?.mac);
        if mac(former) != mac(known) {
            if let Some(mac) = mac(former) {
                self.by_mac.remove(&(mac, subnet));
            }
            self.by_mac.extend(mac(known).map(|mac| (mac, subnet)));
        }
        if let Some(former) = former {
            self.count_length(subnet, -1);
            self.count(former.verdict, -1);
            if let Some(until) = former.kept {
                self.kept.remove(&(until, subnet));
            }
        }
        if let Some(known) = known {
            self.count_length(subnet, 1);
            self.count(known.verdict, 1);
            self.kept.extend(known.kept.map(|until| (until, subnet)));
        }
        former
    }

    fn count_length(&mut self, subnet: Ipv4Network, by: i32) {
        if let Some(count) = self.lengths.get_mut(usize::from(subnet.prefix())) {
            *count = count.saturating_add_signed(by);
        }
    }

    /// `None`: it is our own lease, no peer and nothing to report.
    fn judge_alone(&self, subnet: Ipv4Network, attrs: Option<&LeaseAttrs>) -> Option<Result<Peer, Skip>> {
        let Some(attrs) = attrs else { return Some(Err(Skip::BadValue)) };
        if subnet == self.own.subnet && attrs.public_ip == self.own.public_ip {
            return None;
        }
        Some(judge_alone(&self.own, subnet, attrs))
    }

    /// Judges a lease that has come, changed (it was `former`) or gone, and those whose verdict can depend on it.
    fn judge_with_others(&mut self, subnet: Ipv4Network, former: Option<Known>, touched: &mut Touched) {
        let others = self.others(subnet, former);
        self.judge(subnet, !others.is_empty(), touched);
        for other in others {
            self.judge(other, true, touched);
        }
    }

    /// `among_others`: there is somebody who has a say in the verdict.
    fn judge(&mut self, subnet: Ipv4Network, among_others: bool, touched: &mut Touched) {
        let Some(known) = self.leases.get(&subnet) else { return };
        let (before, alone) = (known.verdict, known.alone);
        let verdict = Some(match alone {
            Ok(peer) if among_others => self.judge_among(subnet, known, peer),
            alone => alone,
        });
        if verdict == before {
            return;
        }
        touched.subnets.push(subnet);
        touched.macs.extend([before, verdict].iter().filter_map(|verdict| Some((*verdict)?.ok()?.mac)));
        if let Some(Err(skip)) = verdict {
            let (writer, rival) = (Some(known.writer()), self.rival(subnet, known, skip));
            touched.skipped.push(Skipped { name: super::lease::key_of(subnet), skip, writer, rival });
        }
        self.count(before, -1);
        self.count(verdict, 1);
        if let Some(known) = self.leases.get_mut(&subnet) {
            known.verdict = verdict;
        }
    }
}

/// Tells names and values apart without keeping them. Only who writes the store could make two with the same one, and would
/// gain nothing: a bad key that is not counted, or a lease that stays as he wrote it before.
fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
