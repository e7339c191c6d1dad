//! Whether one lease, looked at by itself, can be a peer, and the words for why not. What other leases mean for it is decided
//! in [`super`].

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::{Own, Peer};
use crate::model::allocate::overlap;
use crate::model::lease::BACKEND_VXLAN;
use crate::model::{LeaseAttrs, NodeId};

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

/// A key that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Last part of the key.
    pub name: String,
    /// Why.
    pub skip: Skip,
    /// Who wrote it; `None` when not even the key can be read.
    pub writer: Option<Writer>,
    /// The other lease it collides with, if it is not our own.
    pub rival: Option<Rival>,
}

/// Who wrote a key, as far as that can be read, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The public IP in the value.
    pub public_ip: Option<Ipv4Addr>,
    /// The machine in the value.
    pub node: Option<NodeId>,
    /// Revision of the last write.
    pub revision: u64,
}

/// The lease that is used instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// Last part of its key.
    pub name: String,
    /// Who wrote it.
    pub writer: Writer,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Writer { public_ip, node, revision } = self.writer;
        write!(f, "{} (", self.name)?;
        if let Some(ip) = public_ip {
            write!(f, "public IP {ip}, ")?;
        }
        if let Some(node) = node {
            write!(f, "node {node}, ")?;
        }
        write!(f, "revision {revision})")
    }
}

pub(super) fn bad_key(name: &str) -> Skipped {
    Skipped { name: name.to_owned(), skip: Skip::BadKey, writer: None, rival: None }
}

pub(super) fn judge_alone(own: &Own, subnet: Ipv4Network, attrs: &LeaseAttrs) -> Result<Peer, Skip> {
    if !own.network.is_supernet_of(subnet) {
        return Err(Skip::OutsideNetwork);
    }
    if subnet == own.subnet {
        return Err(Skip::OwnSubnet);
    }
    if overlap(subnet, own.subnet) {
        return Err(Skip::Overlap);
    }
    if own.underlay.iter().any(|address| subnet.contains(*address)) {
        return Err(Skip::CoversUnderlay);
    }
    if attrs.backend_type != BACKEND_VXLAN {
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
