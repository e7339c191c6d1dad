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
mod skip;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::lease::parse_key;
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
#[derive(Debug, Clone)]
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

/// What became of leases: subnets to look at again, and keys newly skipped (for one log line each).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Subnets whose entries may have to change.
    pub subnets: BTreeSet<Ipv4Network>,
    /// MACs whose FDB entries may have to change.
    pub macs: BTreeSet<MacAddr>,
    /// Keys that are skipped now and were not, or for another reason.
    pub skipped: Vec<Skipped>,
    /// The list came from a store that looks replaced: why.
    pub replaced: Option<&'static str>,
}

impl Touched {
    /// Both together.
    pub fn append(&mut self, other: Self) {
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

    fn remove(&mut self, subnet: Ipv4Network, known: &Known) {
        self.subnets.insert(subnet);
        self.macs.extend(known.verdict.and_then(Result::ok).map(|peer| peer.mac));
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
        self.leases.iter().filter_map(|(subnet, known)| Some((*subnet, known.verdict?.ok()?)))
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

    /// Judges everything again from another point of view (new subnet, new MAC …).
    pub fn set_own(&mut self, own: Own, leases: &[RawLease<'_>], source: Source, now: Duration) -> Touched {
        self.own = own;
        self.list(leases, source, now)
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
        let empty = Self { source: self.source, ..Self::new(self.own.clone()).with_grace(self.grace) };
        let before = std::mem::replace(self, empty);
        let mut touched = Touched::default();
        for lease in leases {
            if self.insert(lease, None) && !before.knows_bad_key(lease.name) {
                touched.skipped.push(bad_key(lease.name));
            }
        }
        for (subnet, peer, until) in kept {
            self.keep(subnet, peer, until);
        }
        let subnets: Vec<Ipv4Network> = self.leases.keys().copied().collect();
        for subnet in subnets {
            self.judge(subnet, &mut touched);
        }
        touched.skipped.retain(|skipped| before.skip_of(&skipped.name) != Some(skipped.skip));
        for (subnet, peer) in before.peers() {
            touched.subnets.insert(subnet);
            touched.macs.insert(peer.mac);
        }
        touched
    }

    /// Takes over one key that was created or written.
    pub fn put(&mut self, lease: &RawLease<'_>) -> Touched {
        let mut touched = Touched::default();
        if let Some(source) = &mut self.source {
            source.revision = source.revision.max(lease.modified);
        }
        let Ok(subnet) = parse_key(lease.name) else {
            if self.insert_bad_key(lease.name) {
                touched.skipped.push(bad_key(lease.name));
            }
            return touched;
        };
        if self.is_renewal(subnet, lease) {
            return touched;
        }
        let mut concerned = self.concerned(subnet);
        let before = self.remove(subnet).and_then(|known| known.verdict);
        touched.subnets.insert(subnet);
        touched.macs.extend(before.and_then(Result::ok).map(|peer| peer.mac));
        self.insert(lease, before);
        touched.append(self.give_way(subnet));
        concerned.append(&mut self.concerned(subnet));
        self.judge_all(&concerned, &mut touched);
        touched
    }

    /// Whether the same lease was only written again, as Go nodes do to renew it, and nothing follows from that. Who wrote last
    /// counts among leases with the same MAC.
    fn is_renewal(&mut self, subnet: Ipv4Network, lease: &RawLease<'_>) -> bool {
        let Some(known) = self.leases.get(&subnet) else { return false };
        let same = known.created == lease.created && known.value == fingerprint(lease.value);
        let shares_mac = known.alone.is_ok_and(|peer| self.subnets_with_mac(peer.mac).nth(1).is_some());
        if !same || known.kept.is_some() || shares_mac {
            return false;
        }
        if let Some(known) = self.leases.get_mut(&subnet) {
            known.modified = lease.modified;
        }
        true
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
        let concerned = self.concerned(subnet);
        if let Some(known) = self.remove(subnet) {
            touched.remove(subnet, &known);
        }
        self.judge_all(&concerned, &mut touched);
        touched
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

    /// Whether the key is a bad one that was not there.
    fn insert(&mut self, lease: &RawLease<'_>, verdict: Option<Result<Peer, Skip>>) -> bool {
        let Ok(subnet) = parse_key(lease.name) else { return self.insert_bad_key(lease.name) };
        let attrs = LeaseAttrs::from_json(lease.value).ok();
        let Some(alone) = self.judge_alone(subnet, attrs.as_ref()) else { return false };
        let known = Known {
            created: lease.created,
            modified: lease.modified,
            value: fingerprint(lease.value),
            public_ip: attrs.as_ref().map(|attrs| attrs.public_ip),
            node: attrs.and_then(|attrs| attrs.node_id),
            kept: None,
            alone,
            verdict,
        };
        self.insert_known(subnet, known);
        false
    }

    fn insert_known(&mut self, subnet: Ipv4Network, known: Known) {
        if let Ok(peer) = known.alone {
            self.by_mac.insert((peer.mac, subnet));
        }
        if let Some(count) = self.lengths.get_mut(usize::from(subnet.prefix())) {
            *count += 1;
        }
        self.count(known.verdict, 1);
        self.kept.extend(known.kept.map(|until| (until, subnet)));
        self.leases.insert(subnet, known);
    }

    fn remove(&mut self, subnet: Ipv4Network) -> Option<Known> {
        let known = self.leases.remove(&subnet)?;
        if let Ok(peer) = known.alone {
            self.by_mac.remove(&(peer.mac, subnet));
        }
        if let Some(count) = self.lengths.get_mut(usize::from(subnet.prefix())) {
            *count -= 1;
        }
        self.count(known.verdict, -1);
        if let Some(until) = known.kept {
            self.kept.remove(&(until, subnet));
        }
        Some(known)
    }

    /// `None`: it is our own lease, no peer and nothing to report.
    fn judge_alone(&self, subnet: Ipv4Network, attrs: Option<&LeaseAttrs>) -> Option<Result<Peer, Skip>> {
        let Some(attrs) = attrs else { return Some(Err(Skip::BadValue)) };
        if subnet == self.own.subnet && attrs.public_ip == self.own.public_ip {
            return None;
        }
        Some(judge_alone(&self.own, subnet, attrs))
    }

    fn judge_all(&mut self, subnets: &BTreeSet<Ipv4Network>, touched: &mut Touched) {
        for subnet in subnets {
            self.judge(*subnet, touched);
        }
    }

    fn judge(&mut self, subnet: Ipv4Network, touched: &mut Touched) {
        let Some(known) = self.leases.get(&subnet) else { return };
        let before = known.verdict;
        let verdict = Some(known.alone.and_then(|peer| self.judge_among(subnet, known, peer)));
        if verdict == before {
            return;
        }
        touched.subnets.insert(subnet);
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own() -> Own {
        Own {
            network: "10.200.0.0/16".parse().unwrap(),
            subnet: "10.200.1.0/24".parse().unwrap(),
            public_ip: Ipv4Addr::new(10, 8, 0, 1),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            vni: Vni::DEFAULT,
            underlay: vec![Ipv4Addr::new(10, 8, 0, 1), Ipv4Addr::new(10, 200, 77, 7)],
        }
    }

    fn value(public_ip: &str, mac: &str) -> String {
        format!(
            r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    }

    fn put(set: &mut LeaseSet, name: &str, value: &str, revision: u64) -> Touched {
        set.put(&RawLease { name, value: value.as_bytes(), created: revision, modified: revision })
    }

    fn skips(touched: &Touched) -> Vec<(&str, Skip)> {
        touched.skipped.iter().map(|skipped| (skipped.name.as_str(), skipped.skip)).collect()
    }

    fn peers(set: &LeaseSet) -> Vec<String> {
        set.peers().map(|(subnet, peer)| format!("{subnet} {}", peer.public_ip)).collect()
    }

    #[test]
    fn each_reason_to_skip_leaves_the_other_peers_alone() {
        let good = value("10.8.0.2", "02:00:00:00:00:02");
        let cases = [
            ("junk", good.clone(), Skip::BadKey),
            ("10.200.9.0-24", "{junk".to_owned(), Skip::BadValue),
            ("10.200.9.0-24", value("10.8.0.9", "junk"), Skip::BadValue),
            (
                "10.200.9.0-24",
                r#"{"PublicIP":"10.8.0.9","BackendType":"host-gw"}"#.to_owned(),
                Skip::OtherBackend,
            ),
            ("10.200.9.0-24", value("10.8.0.9", "02:00:00:00:00:09").replace(":1,", ":2,"), Skip::OtherVni),
            ("10.201.9.0-24", value("10.8.0.9", "02:00:00:00:00:09"), Skip::OutsideNetwork),
            ("10.0.0.0-8", value("10.8.0.9", "02:00:00:00:00:09"), Skip::OutsideNetwork),
            ("10.200.1.0-24", value("10.8.0.9", "02:00:00:00:00:09"), Skip::OwnSubnet),
            ("10.200.1.128-25", value("10.8.0.9", "02:00:00:00:00:09"), Skip::Overlap),
            ("10.200.2.128-25", value("10.8.0.9", "02:00:00:00:00:09"), Skip::Overlap),
            ("10.200.2.0-23", value("10.8.0.9", "02:00:00:00:00:09"), Skip::Overlap),
            ("10.200.77.0-24", value("10.8.0.9", "02:00:00:00:00:09"), Skip::CoversUnderlay),
            ("10.200.9.0-24", value("0.0.0.0", "02:00:00:00:00:09"), Skip::BadPublicIp),
            ("10.200.9.0-24", value("127.0.0.1", "02:00:00:00:00:09"), Skip::BadPublicIp),
            ("10.200.9.0-24", value("224.0.0.1", "02:00:00:00:00:09"), Skip::BadPublicIp),
            ("10.200.9.0-24", value("255.255.255.255", "02:00:00:00:00:09"), Skip::BadPublicIp),
            ("10.200.9.0-24", value("10.200.5.5", "02:00:00:00:00:09"), Skip::BadPublicIp),
            ("10.200.9.0-24", value("10.8.0.1", "02:00:00:00:00:09"), Skip::OwnPublicIp),
            ("10.200.9.0-24", value("10.8.0.9", "01:00:5e:00:00:01"), Skip::BadMac),
            ("10.200.9.0-24", value("10.8.0.9", "00:00:00:00:00:00"), Skip::BadMac),
            ("10.200.9.0-24", value("10.8.0.9", "02:00:00:00:00:01"), Skip::OwnMac),
        ];
        for (name, value, skip) in cases {
            let mut set = LeaseSet::new(own());
            put(&mut set, "10.200.2.0-24", &good, 5);
            let touched = put(&mut set, name, &value, 6);
            assert_eq!(skips(&touched), [(name, skip)], "{value}");
            assert!(
                !touched.subnets.contains(&"10.200.2.0/24".parse().unwrap()),
                "{name} touches the good peer"
            );
            assert_eq!(set.skipped().get(&skip), Some(&1));
            assert_eq!(peers(&set), ["10.200.2.0/24 10.8.0.2"], "{name} {value}");
            assert_eq!(put(&mut set, name, &value, 7).skipped, [], "reported once");
            set.delete(name);
            assert_eq!(set.skipped().get(&skip), Some(&0));
        }
    }

    #[test]
    fn our_own_lease_is_no_peer_and_nothing_to_report() {
        let mut set = LeaseSet::new(own());
        let touched = put(&mut set, "10.200.1.0-24", &value("10.8.0.1", "02:00:00:00:00:01"), 3);
        assert_eq!((touched.skipped.len(), set.usable(), set.skipped().len()), (0, 0, 0));
    }

    #[test]
    fn a_lease_that_was_covered_becomes_usable_when_the_older_one_goes() {
        let mut set = LeaseSet::new(own());
        put(&mut set, "10.200.8.0-22", &value("10.8.0.2", "02:00:00:00:00:02"), 5);
        put(&mut set, "10.200.9.0-24", &value("10.8.0.3", "02:00:00:00:00:03"), 6);
        assert_eq!(peers(&set), ["10.200.8.0/22 10.8.0.2"]);
        let touched = set.delete("10.200.8.0-22");
        assert_eq!(peers(&set), ["10.200.9.0/24 10.8.0.3"]);
        assert_eq!(touched.subnets.len(), 2);
    }

    #[test]
    fn of_two_leases_with_one_mac_the_one_written_last_counts() {
        let mut set = LeaseSet::new(own());
        let mac = "02:00:00:00:00:02";
        put(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 5);
        let touched = put(&mut set, "10.200.3.0-24", &value("10.8.0.3", mac), 6);
        assert_eq!(peers(&set), ["10.200.3.0/24 10.8.0.3"]);
        assert_eq!(skips(&touched), [("10.200.2.0-24", Skip::DuplicateMac)]);
        set.delete("10.200.3.0-24");
        assert_eq!(peers(&set), ["10.200.2.0/24 10.8.0.2"]);
    }

    #[test]
    fn a_lease_that_is_only_written_again_touches_nothing() {
        let mut set = LeaseSet::new(own());
        let (mac, other) = ("02:00:00:00:00:02", "02:00:00:00:00:03");
        let renew = |set: &mut LeaseSet, name, value: &str, modified| {
            set.put(&RawLease { name, value: value.as_bytes(), created: 5, modified })
        };
        put(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 5);
        assert_eq!(renew(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 6), Touched::default());
        assert!(!renew(&mut set, "10.200.2.0-24", &value("10.8.0.2", other), 7).is_empty(), "another value");
        assert!(!put(&mut set, "10.200.2.0-24", &value("10.8.0.2", other), 8).is_empty(), "created anew");
        // Its revision was taken over: the lease with the same MAC that was written in between does not count.
        renew(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 9);
        put(&mut set, "10.200.3.0-24", &value("10.8.0.3", mac), 10);
        renew(&mut set, "10.200.2.0-24", &value("10.8.0.2", mac), 11);
        assert_eq!(peers(&set), ["10.200.2.0/24 10.8.0.2"]);
    }

    #[test]
    fn an_overlapping_lease_cannot_take_a_peers_mac() {
        let mut set = LeaseSet::new(own());
        put(&mut set, "10.200.2.0-24", &value("10.8.0.2", "02:00:00:00:00:02"), 5);
        put(&mut set, "10.200.2.0-25", &value("10.8.0.9", "02:00:00:00:00:02"), 6);
        assert_eq!(peers(&set), ["10.200.2.0/24 10.8.0.2"]);
    }

    #[test]
    fn two_subnets_of_one_node_are_both_usable() {
        let mut set = LeaseSet::new(own());
        put(&mut set, "10.200.2.0-24", &value("10.8.0.2", "02:00:00:00:00:02"), 5);
        put(&mut set, "10.200.3.0-24", &value("10.8.0.2", "02:00:00:00:00:02"), 6);
        assert_eq!(set.usable(), 2);
    }

    #[test]
    fn a_skipped_lease_names_who_wrote_it() {
        let mut set = LeaseSet::new(own());
        let node = NodeId::from_machine_id("clone");
        let value = value("10.8.0.9", "02:00:00:00:00:01");
        let value = format!("{},\"NodeID\":\"{node}\"}}", value.trim_end_matches('}').to_owned() + "}");
        let touched = put(&mut set, "10.200.9.0-24", &value, 6);
        let expected = Skipped {
            name: "10.200.9.0-24".to_owned(),
            skip: Skip::OwnMac,
            writer: Some(Writer {
                public_ip: Some(Ipv4Addr::new(10, 8, 0, 9)),
                node: Some(node),
                revision: 6,
            }),
            rival: None,
        };
        assert_eq!(touched.skipped, [expected]);
    }

    #[test]
    fn of_two_leases_that_collide_the_skipped_one_names_the_other() {
        let mut set = LeaseSet::new(own());
        let node = NodeId::from_machine_id("clone");
        let with_node =
            |value: String| format!("{},\"NodeID\":\"{node}\"}}", value.strip_suffix('}').unwrap());
        put(&mut set, "10.200.8.0-24", &value("10.8.0.8", "02:00:00:00:00:08"), 5);
        let twin = with_node(value("10.8.0.9", "02:00:00:00:00:08"));
        let of_mac = put(&mut set, "10.200.9.0-24", &twin, 6).skipped;
        let within = put(&mut set, "10.200.9.128-25", &value("10.8.0.7", "02:00:00:00:00:07"), 7).skipped;
        let told = |skipped: &[Skipped]| {
            let lines = skipped.iter().map(|it| format!("{} {}", it.name, it.rival.as_ref().unwrap()));
            lines.collect::<Vec<_>>()
        };
        let winner = format!("10.200.9.0-24 (public IP 10.8.0.9, node {node}, revision 6)");
        assert_eq!(told(&of_mac), [format!("10.200.8.0-24 {winner}")]);
        assert_eq!(told(&within), [format!("10.200.9.128-25 {winner}")]);
    }

    const GRACE: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn three_peers() -> (Vec<(String, String)>, LeaseSet) {
        let leases: Vec<_> = (2..5)
            .map(|number| {
                let value = value(&format!("10.8.0.{number}"), &format!("02:00:00:00:00:0{number}"));
                (format!("10.200.{number}.0-24"), value)
            })
            .collect();
        let mut set = LeaseSet::new(own()).with_grace(GRACE);
        let touched = list(&mut set, &leases, (7, 100), 0);
        assert_eq!((touched.replaced, set.usable()), (None, 3));
        (leases, set)
    }

    fn list(
        set: &mut LeaseSet,
        leases: &[(String, String)],
        (cluster, revision): (u64, u64),
        now: u64,
    ) -> Touched {
        let raw: Vec<RawLease<'_>> = (1..)
            .zip(leases)
            .map(|(created, (name, value))| RawLease {
                name,
                value: value.as_bytes(),
                created,
                modified: created,
            })
            .collect();
        set.list(&raw, Source { cluster, revision }, at(now))
    }

    #[test]
    fn a_replaced_store_takes_no_peer_away_until_the_grace_period_is_over() {
        let cases = [
            (vec![], (8, 100), "another cluster id"),
            (vec![0], (7, 99), "its revision is below one seen before"),
            (vec![], (7, 101), "it is empty"),
        ];
        for (present, source, reason) in cases {
            let (leases, mut set) = three_peers();
            let left: Vec<_> = present.iter().map(|index: &usize| leases[*index].clone()).collect();
            let touched = list(&mut set, &left, source, 10);
            assert_eq!(touched.replaced, Some(reason));
            assert_eq!((set.usable(), set.kept()), (3, 3 - left.len()), "{reason}");
            // The same store again: what it does not list is still kept, not for longer.
            assert_eq!(list(&mut set, &left, (source.0, source.1 + 5), 20).replaced, None);
            assert_eq!((set.usable(), set.due()), (3, Some(at(3610))), "{reason}");
            set.end_grace(at(3609));
            assert_eq!(set.usable(), 3, "{reason}");
            let touched = set.end_grace(at(3610));
            assert_eq!((set.usable(), touched.subnets.len(), set.due()), (left.len(), 3 - left.len(), None));
        }
    }

    #[test]
    fn an_ordinary_list_is_authoritative() {
        let (leases, mut set) = three_peers();
        assert_eq!(list(&mut set, &leases[1..], (7, 101), 10).replaced, None);
        assert_eq!((set.usable(), set.kept()), (2, 0));
    }

    #[test]
    fn a_kept_peer_that_registers_again_is_a_real_one_and_can_leave() {
        let (leases, mut set) = three_peers();
        list(&mut set, &[], (8, 1), 10);
        let touched = put(&mut set, &leases[0].0, &leases[0].1, 2);
        assert_eq!((touched.skipped.len(), set.kept(), set.usable()), (0, 2, 3));
        set.delete(&leases[0].0);
        assert_eq!((set.kept(), set.usable()), (2, 2));
    }

    #[test]
    fn a_kept_peer_gives_way_to_whoever_leases_its_addresses_and_not_to_junk() {
        for name in ["10.200.2.0-24", "10.200.2.0-23", "10.200.2.64-26"] {
            let (_, mut set) = three_peers();
            list(&mut set, &[], (8, 1), 10);
            put(&mut set, "10.200.2.0-25", "{junk", 2);
            assert_eq!(set.kept(), 3);
            put(&mut set, name, &value("10.8.0.99", "02:00:00:00:00:99"), 3);
            assert!(peers(&set).iter().any(|peer| peer.ends_with(" 10.8.0.99")), "{name}: {:?}", peers(&set));
            assert!(!peers(&set).iter().any(|peer| peer.ends_with(" 10.8.0.2")), "{name}: {:?}", peers(&set));
            set.delete(name);
            assert!(!peers(&set).iter().any(|peer| peer.ends_with(" 10.8.0.2")), "it does not come back");
        }
    }

    #[test]
    fn a_kept_peer_loses_its_mac_to_a_real_lease_and_its_place_to_ourselves() {
        let (leases, mut set) = three_peers();
        list(&mut set, &[], (8, 1), 10);
        put(&mut set, "10.200.9.0-24", &value("10.8.0.99", "02:00:00:00:00:02"), 2);
        assert!(!peers(&set).contains(&"10.200.2.0/24 10.8.0.2".to_owned()));
        let moved = Own { subnet: "10.200.3.0/24".parse().unwrap(), ..own() };
        set.set_own(moved, &[], Source { cluster: 8, revision: 3 }, at(20));
        assert_eq!((set.kept(), set.usable()), (2, 2), "{:?} of {leases:?}", peers(&set));
    }

    #[test]
    fn a_list_is_as_old_as_the_question_for_it_and_events_may_overtake_it() {
        let (leases, mut set) = three_peers();
        let (asked, last) = (set.revision(), set.revision() + 1);
        put(&mut set, "10.200.9.0-24", &value("10.8.0.99", "02:00:00:00:00:09"), last);
        assert_eq!((asked, set.revision()), (100, 101));
        set.expect_list_since(asked);
        let touched = list(&mut set, &leases, (7, asked), 10);
        assert_eq!((touched.replaced, set.kept(), set.revision()), (None, 0, asked));
        set.expect_list_since(last);
        assert!(list(&mut set, &leases, (7, asked - 1), 10).replaced.is_some(), "older than the question");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put { slot: u32, length: u8, ip: u8, mac: u8, junk: bool },
        Delete { slot: u32, length: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let put = (0_u32..6, 22_u8..=25, 0_u8..5, 0_u8..4, any::<bool>());
        prop_oneof![
            3 => put.prop_map(|(slot, length, ip, mac, junk)| Step::Put { slot, length, ip, mac, junk: junk && ip == 0 }),
            1 => (0_u32..6, 22_u8..=25).prop_map(|(slot, length)| Step::Delete { slot, length }),
        ]
    }

    fn name(slot: u32, length: u8) -> String {
        let subnet = Ipv4Network::new((0x0ac8_0000 + slot * 256).into(), length).unwrap();
        format!("{}-{length}", subnet.network())
    }

    proptest! {
        #[test]
        fn events_one_by_one_and_the_whole_list_end_in_the_same_state(steps in prop::collection::vec(step(), 0..40)) {
            let mut set = LeaseSet::new(own());
            let mut store: BTreeMap<String, (String, u64, u64)> = BTreeMap::new();
            for (revision, step) in (10..).zip(steps) {
                match step {
                    Step::Put { slot, length, ip, mac, junk } => {
                        let name = name(slot, length);
                        let value = if junk { "{".to_owned() } else { value(&format!("10.8.0.{ip}"), &format!("02:00:00:00:00:0{mac}")) };
                        let created = store.get(&name).map_or(revision, |known| known.1);
                        store.insert(name.clone(), (value.clone(), created, revision));
                        set.put(&RawLease { name: &name, value: value.as_bytes(), created, modified: revision });
                    }
                    Step::Delete { slot, length } => {
                        store.remove(&name(slot, length));
                        set.delete(&name(slot, length));
                    }
                }
                let list: Vec<RawLease<'_>> = store.iter()
                    .map(|(name, (value, created, modified))| RawLease { name, value: value.as_bytes(), created: *created, modified: *modified })
                    .collect();
                let mut fresh = LeaseSet::new(own());
                fresh.replace(&list);
                prop_assert_eq!(peers(&set), peers(&fresh));
                prop_assert_eq!(set.usable(), fresh.usable());
                let counts = |set: &LeaseSet| set.skipped().iter().filter(|(_, count)| **count > 0).map(|(skip, count)| (*skip, *count)).collect::<Vec<_>>();
                prop_assert_eq!(counts(&set), counts(&fresh));
            }
        }

        #[test]
        fn usable_peers_never_overlap(steps in prop::collection::vec((0_u32..64, 20_u8..=26, 0_u8..5), 0..60)) {
            let mut set = LeaseSet::new(own());
            for (revision, (slot, length, ip)) in (1..).zip(steps) {
                put(&mut set, &name(slot, length), &value(&format!("10.8.1.{ip}"), &format!("02:00:00:00:01:0{ip}")), revision);
            }
            let usable: Vec<Ipv4Network> = set.peers().map(|(subnet, _)| subnet).collect();
            for (index, a) in usable.iter().enumerate() {
                for b in &usable[index + 1..] {
                    prop_assert!(!crate::model::allocate::overlap(*a, *b));
                }
            }
        }
    }
}
