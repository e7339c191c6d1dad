//! All leases of the store as one value: which of them are usable peers, and why the others are not.
//!
//! The store is not trusted. A lease that cannot be used is skipped and counted; it never removes another one.
//! Among leases that overlap the one created first stays. Among leases with the same VTEP MAC and different public
//! IPs the one written last counts: a node whose address changed publishes its MAC again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::lease::parse_key;
use super::{LeaseAttrs, MacAddr, Vni};

/// A peer that can be programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where encapsulated packets go.
    pub public_ip: Ipv4Addr,
    /// Hardware address of the peer's VXLAN device.
    pub mac: MacAddr,
}

/// Why a key below `PREFIX/subnets/` is not a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// The key does not name an IPv4 subnet.
    BadKey,
    /// The value is not the JSON of a lease, or its VXLAN data cannot be read.
    BadValue,
    /// Another backend's lease.
    OtherBackend,
    /// The node uses another VNI, so no packet would reach it.
    OtherVni,
    /// The subnet is not part of the network.
    OutsideNetwork,
    /// Another node's data stands in the key of our own subnet.
    OwnSubnet,
    /// The subnet shares addresses with an older lease or with our own.
    Overlap,
    /// The subnet covers an address this node needs outside of the overlay (its own public IP, etcd).
    CoversUnderlay,
    /// The public IP cannot be a host's, or lies inside the overlay (packets would loop).
    BadPublicIp,
    /// The public IP is ours, but the subnet is not.
    OwnPublicIp,
    /// The VTEP MAC is not a unicast address.
    BadMac,
    /// The VTEP MAC is our own.
    OwnMac,
    /// A lease written later has the same VTEP MAC and another public IP.
    DuplicateMac,
}

impl Skip {
    /// The value of the label `reason` in metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::BadKey => "bad_key",
            Self::BadValue => "bad_value",
            Self::OtherBackend => "other_backend",
            Self::OtherVni => "other_vni",
            Self::OutsideNetwork => "outside_network",
            Self::OwnSubnet => "own_subnet",
            Self::Overlap => "overlap",
            Self::CoversUnderlay => "covers_underlay",
            Self::BadPublicIp => "bad_public_ip",
            Self::OwnPublicIp => "own_public_ip",
            Self::BadMac => "bad_mac",
            Self::OwnMac => "own_mac",
            Self::DuplicateMac => "duplicate_mac",
        }
    }

    /// The same for a log line.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::BadKey => "the key does not name an IPv4 subnet",
            Self::BadValue => "the value is not a usable lease",
            Self::OtherBackend => "the lease belongs to another backend than vxlan",
            Self::OtherVni => "the node uses another VNI than this one",
            Self::OutsideNetwork => "the subnet is not part of the network",
            Self::OwnSubnet => "another node's data stands in the key of this node's subnet",
            Self::Overlap => "the subnet overlaps an older lease",
            Self::CoversUnderlay => "the subnet covers an address this node needs outside of the overlay",
            Self::BadPublicIp => "the public IP cannot be a host's address outside of the overlay",
            Self::OwnPublicIp => "the public IP is this node's own",
            Self::BadMac => "the VTEP MAC is not a unicast address",
            Self::OwnMac => "the VTEP MAC is this node's own",
            Self::DuplicateMac => "a lease written later has the same VTEP MAC",
        }
    }
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

/// A lease whose key could be read.
#[derive(Debug, Clone)]
struct Known {
    created: u64,
    modified: u64,
    /// Judged by itself, without the other leases.
    alone: Result<Peer, Skip>,
    /// Judged among all leases; `None` until then.
    verdict: Option<Result<Peer, Skip>>,
}

/// What became of leases: subnets to look at again, and keys newly skipped (for one log line each).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Subnets whose entries may have to change.
    pub subnets: BTreeSet<Ipv4Network>,
    /// MACs whose FDB entries may have to change.
    pub macs: BTreeSet<MacAddr>,
    /// Keys that are skipped now and were not, or for another reason.
    pub skipped: Vec<(String, Skip)>,
}

/// Every lease of the store and its verdict. Updates cost time in the number of leases concerned, not of all.
#[derive(Debug)]
pub struct LeaseSet {
    own: Own,
    leases: BTreeMap<Ipv4Network, Known>,
    by_mac: BTreeSet<(MacAddr, Ipv4Network)>,
    /// How many leases have each prefix length: only these can cover another.
    lengths: [u32; 33],
    bad_keys: BTreeSet<String>,
    skipped: BTreeMap<Skip, u64>,
    usable: usize,
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
        }
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

    /// Judges everything again from another point of view (new subnet, new MAC …).
    pub fn set_own(&mut self, own: Own, leases: &[RawLease<'_>]) -> Touched {
        self.own = own;
        self.replace(leases)
    }

    /// Takes `leases` for the whole content of the store.
    pub fn replace(&mut self, leases: &[RawLease<'_>]) -> Touched {
        let before = std::mem::replace(self, Self::new(self.own.clone()));
        for lease in leases {
            self.insert(lease, None);
        }
        let mut touched = Touched::default();
        let subnets: Vec<Ipv4Network> = self.leases.keys().copied().collect();
        for subnet in subnets {
            self.judge(subnet, &mut touched);
        }
        for name in self.bad_keys.difference(&before.bad_keys) {
            touched.skipped.push((name.clone(), Skip::BadKey));
        }
        touched.skipped.retain(|(name, skip)| before.skip_of(name) != Some(*skip));
        for (subnet, peer) in before.peers() {
            touched.subnets.insert(subnet);
            touched.macs.insert(peer.mac);
        }
        touched
    }

    /// Takes over one key that was created or written.
    pub fn put(&mut self, lease: &RawLease<'_>) -> Touched {
        let mut touched = Touched::default();
        let Ok(subnet) = parse_key(lease.name) else {
            if self.insert_bad_key(lease.name) {
                touched.skipped.push((lease.name.to_owned(), Skip::BadKey));
            }
            return touched;
        };
        let mut concerned = self.concerned(subnet);
        let before = self.remove(subnet).and_then(|known| known.verdict);
        touched.subnets.insert(subnet);
        touched.macs.extend(before.and_then(Result::ok).map(|peer| peer.mac));
        self.insert(lease, before);
        concerned.append(&mut self.concerned(subnet));
        self.judge_all(&concerned, &mut touched);
        touched
    }

    /// Takes over that one key is gone.
    pub fn delete(&mut self, name: &str) -> Touched {
        let mut touched = Touched::default();
        let Ok(subnet) = parse_key(name) else {
            if self.bad_keys.remove(name) {
                self.count(Some(Err(Skip::BadKey)), -1);
            }
            return touched;
        };
        let concerned = self.concerned(subnet);
        if let Some(known) = self.remove(subnet) {
            touched.subnets.insert(subnet);
            touched.macs.extend(known.verdict.and_then(Result::ok).map(|peer| peer.mac));
        }
        self.judge_all(&concerned, &mut touched);
        touched
    }

    fn skip_of(&self, name: &str) -> Option<Skip> {
        match parse_key(name) {
            Ok(subnet) => self.leases.get(&subnet)?.verdict?.err(),
            Err(_) => self.bad_keys.contains(name).then_some(Skip::BadKey),
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
        let new = self.bad_keys.insert(name.to_owned());
        if new {
            self.count(Some(Err(Skip::BadKey)), 1);
        }
        new
    }

    fn insert(&mut self, lease: &RawLease<'_>, verdict: Option<Result<Peer, Skip>>) {
        let Ok(subnet) = parse_key(lease.name) else {
            self.insert_bad_key(lease.name);
            return;
        };
        let Some(alone) = self.judge_alone(subnet, lease.value) else { return };
        if let Ok(peer) = alone {
            self.by_mac.insert((peer.mac, subnet));
        }
        if let Some(count) = self.lengths.get_mut(usize::from(subnet.prefix())) {
            *count += 1;
        }
        self.count(verdict, 1);
        self.leases
            .insert(subnet, Known { created: lease.created, modified: lease.modified, alone, verdict });
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
        Some(known)
    }

    /// `None`: it is our own lease, no peer and nothing to report.
    fn judge_alone(&self, subnet: Ipv4Network, value: &[u8]) -> Option<Result<Peer, Skip>> {
        let Ok(attrs) = LeaseAttrs::from_json(value) else { return Some(Err(Skip::BadValue)) };
        if subnet == self.own.subnet && attrs.public_ip == self.own.public_ip {
            return None;
        }
        Some(judge_alone(&self.own, subnet, &attrs))
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
            touched.skipped.push((super::lease::key_of(subnet), skip));
        }
        self.count(before, -1);
        self.count(verdict, 1);
        if let Some(known) = self.leases.get_mut(&subnet) {
            known.verdict = verdict;
        }
    }

    fn judge_among(&self, subnet: Ipv4Network, known: &Known, peer: Peer) -> Result<Peer, Skip> {
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

    fn subnets_with_mac(&self, mac: MacAddr) -> impl Iterator<Item = Ipv4Network> {
        let from = (mac, LOWEST);
        self.by_mac.range(from..).take_while(move |(other, _)| *other == mac).map(|(_, subnet)| *subnet)
    }

    /// Leases that share addresses with `subnet`, without itself.
    fn overlapping(&self, subnet: Ipv4Network) -> impl Iterator<Item = Ipv4Network> {
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
    fn concerned(&self, subnet: Ipv4Network) -> BTreeSet<Ipv4Network> {
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

fn judge_alone(own: &Own, subnet: Ipv4Network, attrs: &LeaseAttrs) -> Result<Peer, Skip> {
    if !own.network.is_supernet_of(subnet) {
        return Err(Skip::OutsideNetwork);
    }
    if subnet == own.subnet {
        return Err(Skip::OwnSubnet);
    }
    if super::allocate::overlap(subnet, own.subnet) {
        return Err(Skip::Overlap);
    }
    if own.underlay.iter().any(|address| subnet.contains(*address)) {
        return Err(Skip::CoversUnderlay);
    }
    if attrs.backend_type != super::lease::BACKEND_VXLAN {
        return Err(Skip::OtherBackend);
    }
    let data = attrs.vxlan.ok_or(Skip::BadValue)?;
    if !is_host(attrs.public_ip) || own.network.contains(attrs.public_ip) {
        return Err(Skip::BadPublicIp);
    }
    if attrs.public_ip == own.public_ip {
        return Err(Skip::OwnPublicIp);
    }
    if !data.mac.is_unicast() {
        return Err(Skip::BadMac);
    }
    if data.mac == own.mac {
        return Err(Skip::OwnMac);
    }
    if data.vni != own.vni.get() {
        return Err(Skip::OtherVni);
    }
    Ok(Peer { public_ip: attrs.public_ip, mac: data.mac })
}

/// Whether packets can be sent to one host by this address (RFC 6890).
fn is_host(ip: Ipv4Addr) -> bool {
    let reserved = ip.octets().first().is_some_and(|first| *first == 0 || *first >= 224);
    !reserved && !ip.is_loopback()
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
            assert_eq!(touched.skipped, [(name.to_owned(), skip)], "{value}");
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
        assert_eq!(touched.skipped, [("10.200.2.0-24".to_owned(), Skip::DuplicateMac)]);
        set.delete("10.200.3.0-24");
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
