//! What the kernel holds for us, or should hold: one device and, per peer, neighbour, FDB entry and route.
//!
//! Devices are named here, never numbered: interface indexes stay inside `kernel/`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::{IfName, MacAddr, Mtu, Vni};

/// Route protocol of the entries on our own device, the one the Go daemon uses (`boot` in `rt_protos`).
pub const PROTOCOL_BOOT: u8 = 3;

/// Route protocol that marks routes of ours that are not on our device (direct routing, blackhole). No other program is known to use it.
pub const PROTOCOL_FLANNELD: u8 = 149;

/// The VXLAN device as it should be (`ip link add NAME type vxlan …`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vtep {
    /// `flannel.VNI`.
    pub name: IfName,
    /// Hardware address, published to the peers.
    pub mac: MacAddr,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// The external interface the tunnel is bound to (`dev`).
    pub parent: IfName,
    /// Source address of encapsulated packets (`local`).
    pub local: Ipv4Addr,
    /// UDP port; `None` leaves the kernel's default (8472).
    pub port: Option<u16>,
    /// MTU of the device itself, overhead already taken off.
    pub mtu: Mtu,
    /// Learn peers from received packets (`learning`).
    pub learning: bool,
    /// Group policy extension (`gbp`).
    pub gbp: bool,
    /// TX checksum offload (`ethtool -K NAME tx on|off`); `None` leaves it as it is.
    pub tx_checksum: Option<bool>,
}

/// What was found under the name of our device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedVtep {
    /// `None`: the link is not a VXLAN device at all.
    pub vxlan: Option<ObservedVxlan>,
    /// Hardware address.
    pub mac: MacAddr,
    /// MTU in bytes, whatever it is.
    pub mtu: u32,
    /// Administrative state (`IFF_UP`).
    pub up: bool,
    /// IPv4 addresses in kernel order.
    pub addresses: Vec<Ipv4Network>,
    /// TX checksum offload; `None`: could not be read.
    pub tx_checksum: Option<bool>,
}

/// The VXLAN attributes of a device that was found (`ip -d link show`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Name of the underlying device, if it has one that still exists.
    pub parent: Option<IfName>,
    /// Local address, if set.
    pub local: Option<Ipv4Addr>,
    /// A multicast group or default remote is set.
    pub group: bool,
    /// UDP port.
    pub port: u16,
    /// Learning is on.
    pub learning: bool,
    /// Notifications for missing FDB entries are on.
    pub l2miss: bool,
    /// Group policy extension is on.
    pub gbp: bool,
}

/// Where an FDB entry sends frames for its MAC (`bridge fdb … dst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbTarget {
    /// Outer destination address.
    pub dst: Ipv4Addr,
    /// No port, VNI or device of its own, and the entry is permanent. Ours always are plain.
    pub plain: bool,
}

/// Which device a route leaves through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteDevice {
    /// Our VXLAN device.
    Vtep,
    /// Any other.
    Other,
    /// None: packets are dropped without a word (`blackhole`).
    Nowhere,
}

/// An IPv4 route of the main table (`ip route`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination, host bits clear.
    pub dst: Ipv4Network,
    /// Priority; 0 for the routes to peers.
    pub metric: u32,
    /// Outgoing device.
    pub device: RouteDevice,
    /// Next hop.
    pub gateway: Option<Ipv4Addr>,
    /// The gateway is reachable although no address covers it (`onlink`).
    pub onlink: bool,
    /// Who installed it (`rt_protos`).
    pub protocol: u8,
    /// Unicast or blackhole, scope universe, TOS 0, one next hop at most, no source address. Ours always are plain.
    pub plain: bool,
}

impl Route {
    /// The route to a peer through the tunnel: `ip route replace SUBNET via VTEP dev flannel.1 onlink`.
    #[must_use]
    pub fn overlay(subnet: Ipv4Network) -> Self {
        Self {
            dst: subnet,
            metric: 0,
            device: RouteDevice::Vtep,
            gateway: Some(subnet.network()),
            onlink: true,
            protocol: PROTOCOL_BOOT,
            plain: true,
        }
    }

    /// The route to a peer on the same link (direct routing): `ip route replace SUBNET via PUBLIC_IP`.
    #[must_use]
    pub fn direct(subnet: Ipv4Network, public_ip: Ipv4Addr) -> Self {
        Self {
            dst: subnet,
            metric: 0,
            device: RouteDevice::Other,
            gateway: Some(public_ip),
            onlink: false,
            protocol: PROTOCOL_FLANNELD,
            plain: true,
        }
    }

    /// Drops what is sent to our own subnet while no pod bridge has it, instead of letting it out through the default route:
    /// `ip route replace blackhole SUBNET proto 149 metric 4294967295`.
    ///
    /// The Go daemon's has metric 0, and of two routes with one metric the older one wins: a bridge that gets its address
    /// later is cut off. With the last of all metrics it does not matter who comes first.
    #[must_use]
    pub fn blackhole(subnet: Ipv4Network) -> Self {
        Self {
            dst: subnet,
            metric: u32::MAX,
            device: RouteDevice::Nowhere,
            gateway: None,
            onlink: false,
            protocol: PROTOCOL_FLANNELD,
            plain: true,
        }
    }

    /// Whether packets go the same way, whoever installed the route.
    #[must_use]
    pub fn same_way(&self, other: &Self) -> bool {
        Self { protocol: 0, ..*self } == Self { protocol: 0, ..*other }
    }

    /// Whether the kernel takes the two for the same route on replace: same destination and metric.
    #[must_use]
    pub fn same_slot(&self, other: &Self) -> bool {
        self.dst == other.dst && self.metric == other.metric
    }
}

/// Entries as the kernel holds them (the mirror).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// Permanent neighbours on our device (`ip neigh show dev flannel.1 nud permanent`).
    pub neighbors: BTreeMap<Ipv4Addr, MacAddr>,
    /// FDB entries of our device itself (`bridge fdb show dev flannel.1`, flag `self`).
    pub fdb: BTreeMap<MacAddr, FdbTarget>,
    /// Main-table routes whose destination lies in the overlay network, on any device.
    pub routes: BTreeSet<Route>,
}

/// What the host holds for us: the device, if it is there, and the entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The link that has our device's name.
    pub vtep: Option<ObservedVtep>,
    /// Neighbours, FDB entries and routes.
    pub entries: Entries,
}

/// One change to one entry. The kernel answers each with its own result.
///
/// In the order in which several are carried out: additions from the far end to the near one, so that a route never points at
/// nothing, then removals in reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `bridge fdb replace MAC dev flannel.1 dst DST self permanent`
    PutFdb(MacAddr, Ipv4Addr),
    /// `ip neigh replace IP lladdr MAC dev flannel.1 nud permanent`
    PutNeighbor(Ipv4Addr, MacAddr),
    /// `ip route replace …`
    PutRoute(Route),
    /// `ip route del …`
    DeleteRoute(Route),
    /// `ip neigh del IP dev flannel.1`
    DeleteNeighbor(Ipv4Addr, MacAddr),
    /// `bridge fdb del MAC dev flannel.1 self`
    DeleteFdb(MacAddr, Ipv4Addr),
}

/// The identity of an entry: what a change refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKey {
    /// The neighbour of an address.
    Neighbor(Ipv4Addr),
    /// The FDB entry of a MAC.
    Fdb(MacAddr),
    /// All routes to a destination.
    Routes(Ipv4Network),
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Neighbor(ip) => ip.fmt(f),
            Self::Fdb(mac) => mac.fmt(f),
            Self::Routes(subnet) => subnet.fmt(f),
        }
    }
}

impl Operation {
    /// Which entry it changes.
    #[must_use]
    pub fn key(&self) -> EntryKey {
        match *self {
            Self::PutFdb(mac, _) | Self::DeleteFdb(mac, _) => EntryKey::Fdb(mac),
            Self::PutNeighbor(ip, _) | Self::DeleteNeighbor(ip, _) => EntryKey::Neighbor(ip),
            Self::PutRoute(route) | Self::DeleteRoute(route) => EntryKey::Routes(route.dst),
        }
    }

    /// Whether an entry goes.
    #[must_use]
    pub fn removes(&self) -> bool {
        matches!(self, Self::DeleteRoute(_) | Self::DeleteNeighbor(..) | Self::DeleteFdb(..))
    }

    /// A word for metrics and logs: `fdb`, `neighbor` or `route`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.key() {
            EntryKey::Fdb(_) => "fdb",
            EntryKey::Neighbor(_) => "neighbor",
            EntryKey::Routes(_) => "route",
        }
    }
}

impl Entries {
    /// Those of a kernel that is as it should be.
    pub fn of(desired: &impl Desired) -> Self {
        Self {
            neighbors: desired.neighbors().collect(),
            fdb: desired.fdb_entries().collect(),
            routes: desired.routes().collect(),
        }
    }

    /// Carries out an operation on the mirror, with the kernel's semantics.
    pub fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::PutFdb(mac, dst) => {
                self.fdb.insert(mac, FdbTarget { dst, plain: true });
            }
            Operation::PutNeighbor(ip, mac) => {
                self.neighbors.insert(ip, mac);
            }
            Operation::PutRoute(route) => self.put_route(route),
            Operation::DeleteRoute(route) => {
                self.routes.remove(&route);
            }
            Operation::DeleteNeighbor(ip, _) => {
                self.neighbors.remove(&ip);
            }
            Operation::DeleteFdb(mac, _) => {
                self.fdb.remove(&mac);
            }
        }
    }

    /// Routes to one destination, in order of metric.
    pub fn routes_to(&self, dst: Ipv4Network) -> impl Iterator<Item = &Route> {
        let lowest = Route {
            dst,
            metric: 0,
            device: RouteDevice::Vtep,
            gateway: None,
            onlink: false,
            protocol: 0,
            plain: false,
        };
        self.routes.range(lowest..).take_while(move |route| route.dst == dst)
    }

    /// What `ip route replace` does: the first route in the same slot makes room.
    pub fn put_route(&mut self, route: Route) {
        let replaced = self.routes_to(route.dst).find(|other| other.same_slot(&route)).copied();
        if let Some(replaced) = replaced {
            self.routes.remove(&replaced);
        }
        self.routes.insert(route);
    }
}

/// What the kernel should hold: all of it in order of key, and each entry by its key.
pub trait Desired {
    /// Neighbours on our device.
    fn neighbors(&self) -> impl Iterator<Item = (Ipv4Addr, MacAddr)>;
    /// FDB entries of our device.
    fn fdb_entries(&self) -> impl Iterator<Item = (MacAddr, FdbTarget)>;
    /// Routes, one to a destination.
    fn routes(&self) -> impl Iterator<Item = Route>;
    /// The neighbour of an address.
    fn neighbor(&self, ip: Ipv4Addr) -> Option<MacAddr>;
    /// The FDB entry of a MAC.
    fn fdb_entry(&self, mac: MacAddr) -> Option<FdbTarget>;
    /// The route to a destination.
    fn route(&self, dst: Ipv4Network) -> Option<Route>;
}

impl Desired for Entries {
    fn neighbors(&self) -> impl Iterator<Item = (Ipv4Addr, MacAddr)> {
        self.neighbors.iter().map(|(ip, mac)| (*ip, *mac))
    }

    fn fdb_entries(&self) -> impl Iterator<Item = (MacAddr, FdbTarget)> {
        self.fdb.iter().map(|(mac, target)| (*mac, *target))
    }

    fn routes(&self) -> impl Iterator<Item = Route> {
        self.routes.iter().copied()
    }

    fn neighbor(&self, ip: Ipv4Addr) -> Option<MacAddr> {
        self.neighbors.get(&ip).copied()
    }

    fn fdb_entry(&self, mac: MacAddr) -> Option<FdbTarget> {
        self.fdb.get(&mac).copied()
    }

    fn route(&self, dst: Ipv4Network) -> Option<Route> {
        self.routes_to(dst).next().copied()
    }
}
