//! What the kernel tells us, as values: links, addresses, neighbours, FDB entries, routes.
//!
//! `None` means that a message is of no interest or not understood; deciding what a value means for us is done elsewhere.
//! Never panics, whatever the bytes are.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NlaBuffer, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeader;
use netlink_packet_route::link::{InfoKind, InfoVxlan, LinkFlags, LinkHeader};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourHeader};
use netlink_packet_route::route::{RouteFlags, RouteHeader, RouteScope, RouteType};
use nix::libc;

use super::message::{attributes, ipv4, mac, number};
use crate::model::host::HostAddress;
use crate::model::state::{FdbTarget, ObservedVtep, ObservedVxlan, Route, RouteDevice};
use crate::model::{IfName, MacAddr};

/// Sizes of the fixed headers: `ifinfomsg`, `ifaddrmsg`, `ndmsg`, `rtmsg` (`linux/rtnetlink.h`, `linux/neighbour.h`).
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const NEIGHBOR_HEADER: usize = 12;
const ROUTE_HEADER: usize = 12;

/// `RTA_VIA`, `RTA_ENCAP`, `RTA_NH_ID` (`linux/rtnetlink.h`).
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTA_NH_ID: u16 = 30;

/// `NDA_NH_ID` (`linux/neighbour.h`): the entry points to a next-hop group.
const NDA_NH_ID: u16 = 13;

/// Index and name of the link a message is about, and whether it may tell something new.
///
/// `None` for messages that are not about the link itself: a bridge port (another family) or a wireless event.
pub(super) fn link_identity(payload: &[u8]) -> Option<(u32, Option<IfName>)> {
    let header = LinkHeader::parse(payload).ok()?;
    let mut name = None;
    for attribute in attributes(payload, LINK_HEADER) {
        match attribute.kind() {
            libc::IFLA_IFNAME => name = text(attribute.value()).parse().ok(),
            libc::IFLA_WIRELESS => return None,
            _ => {}
        }
    }
    (header.interface_family == AddressFamily::Unspec).then_some((header.index, name))
}

/// A link as `ip -d link show` prints it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: IfName,
    /// Without addresses and offload; the parent's name is still missing.
    pub(super) device: ObservedVtep,
    /// Index of the device below, in our network namespace.
    pub(super) parent: Option<u32>,
}

/// A link whose name no program could type is left out.
pub(super) fn link(payload: &[u8]) -> Option<Link> {
    let header = LinkHeader::parse(payload).ok()?;
    let mut name = None;
    let mut device = ObservedVtep {
        vxlan: None,
        mac: MacAddr::new([0; 6]),
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up),
        addresses: Vec::new(),
        tx_checksum: None,
    };
    let (mut parent, mut elsewhere) = (None, false);
    for attribute in attributes(payload, LINK_HEADER) {
        match attribute.kind() {
            libc::IFLA_IFNAME => name = text(attribute.value()).parse().ok(),
            libc::IFLA_MTU => device.mtu = number(attribute.value())?,
            // Another length belongs to a link that is not Ethernet, so not to ours.
            libc::IFLA_ADDRESS => device.mac = mac(attribute.value()).unwrap_or(device.mac),
            libc::IFLA_LINK_NETNSID => elsewhere = true,
            libc::IFLA_LINKINFO => (device.vxlan, parent) = vxlan(attribute.value()),
            _ => {}
        }
    }
    Some(Link { index: header.index, name: name?, device, parent: parent.filter(|_| !elsewhere) })
}

/// The attributes of a VXLAN device and the index of the one below; nothing for other kinds.
fn vxlan(link_info: &[u8]) -> (Option<ObservedVxlan>, Option<u32>) {
    let mut is_vxlan = false;
    for attribute in attributes(link_info, 0) {
        match attribute.kind() {
            libc::IFLA_INFO_KIND => is_vxlan = matches!(InfoKind::parse(&attribute), Ok(InfoKind::Vxlan)),
            libc::IFLA_INFO_DATA if is_vxlan => return vxlan_data(attribute.value()),
            _ => {}
        }
    }
    (None, None)
}

fn vxlan_data(data: &[u8]) -> (Option<ObservedVxlan>, Option<u32>) {
    let mut parent = None;
    let mut vxlan = ObservedVxlan {
        vni: 0,
        parent: None,
        local: None,
        group: false,
        port: 0,
        learning: false,
        l2miss: false,
        gbp: false,
    };
    for attribute in attributes(data, 0) {
        match InfoVxlan::parse(&attribute) {
            Ok(InfoVxlan::Id(vni)) => vxlan.vni = vni,
            Ok(InfoVxlan::Link(index)) => parent = Some(index).filter(|index| *index != 0),
            Ok(InfoVxlan::Local(ip)) => vxlan.local = Some(ip).filter(|ip| !ip.is_unspecified()),
            Ok(InfoVxlan::Group(ip)) => vxlan.group = !ip.is_unspecified(),
            Ok(InfoVxlan::Group6(ip)) => vxlan.group = !ip.is_unspecified(),
            Ok(InfoVxlan::Port(port)) => vxlan.port = port,
            Ok(InfoVxlan::Learning(on)) => vxlan.learning = on,
            Ok(InfoVxlan::L2Miss(on)) => vxlan.l2miss = on,
            Ok(InfoVxlan::Gbp) => vxlan.gbp = true,
            _ => {}
        }
    }
    (Some(vxlan), parent)
}

/// An IPv4 address of a link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) network: Ipv4Network,
    pub(super) host: HostAddress,
}

pub(super) fn address(payload: &[u8]) -> Option<Address> {
    let header = AddressHeader::parse(payload).ok()?;
    let mut flags = u32::from(header.flags.bits());
    let (mut local, mut prefix) = (None, None);
    for attribute in attributes(payload, ADDRESS_HEADER) {
        match attribute.kind() {
            libc::IFA_LOCAL => local = ipv4(attribute.value()),
            libc::IFA_ADDRESS => prefix = ipv4(attribute.value()),
            libc::IFA_FLAGS => flags = number(attribute.value())?,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other end.
    let ip = local.or(prefix)?;
    let host = HostAddress {
        ip,
        permanent: flags & libc::IFA_F_PERMANENT != 0,
        secondary: flags & libc::IFA_F_SECONDARY != 0,
        deprecated: flags & libc::IFA_F_DEPRECATED != 0,
    };
    let network = Ipv4Network::new(ip, header.prefix_len).ok()?;
    (header.family == AddressFamily::Inet).then_some(Address { index: header.index, network, host })
}

/// An entry of the neighbour table or of a device's FDB, and how long it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Station {
    pub(super) index: u32,
    pub(super) entry: Entry,
}

/// The two tables that share a message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// IPv4 neighbour; the MAC only when it is permanent.
    Neighbor(Ipv4Addr, Option<MacAddr>),
    /// Entry of the device itself; the target only when somebody put it there (not learned).
    Fdb(MacAddr, Option<FdbTarget>),
}

/// Entries of a bridge, proxy entries and other families are left out.
pub(super) fn station(payload: &[u8]) -> Option<Station> {
    let header = NeighbourHeader::parse(payload).ok()?;
    let (mut dst, mut lladdr, mut plain) = (None, None, true);
    for attribute in attributes(payload, NEIGHBOR_HEADER) {
        match attribute.kind() {
            libc::NDA_DST => dst = ipv4(attribute.value()),
            libc::NDA_LLADDR => lladdr = mac(attribute.value()),
            libc::NDA_PORT | libc::NDA_VNI | libc::NDA_IFINDEX | NDA_NH_ID => plain = false,
            _ => {}
        }
    }
    let state = u16::from(header.state);
    let permanent = state & libc::NUD_PERMANENT != 0;
    let entry = match header.family {
        AddressFamily::Inet if !header.flags.contains(NeighbourFlags::Proxy) => {
            Entry::Neighbor(dst?, lladdr.filter(|_| permanent))
        }
        AddressFamily::Bridge if header.flags.contains(NeighbourFlags::Own) => {
            // Learned entries and those that age are neither permanent nor static (`NUD_NOARP`).
            let put = permanent || state & libc::NUD_NOARP != 0;
            let mac = lladdr?;
            // Only a group or zero MAC can have several destinations (`vxlan_fdb_update_existing`), told one by one.
            let plain = plain && permanent && dst.is_some() && mac.is_unicast();
            let target = FdbTarget { dst: dst.unwrap_or(Ipv4Addr::UNSPECIFIED), plain };
            Entry::Fdb(mac, put.then_some(target))
        }
        _ => return None,
    };
    Some(Station { index: header.ifindex, entry })
}

/// An IPv4 route, and what of it is known by number only.
#[derive(Debug, Clone, Copy)]
pub(super) struct RouteEntry {
    /// The device is not yet known to be ours.
    route: Route,
    pub(super) main_table: bool,
    /// The single outgoing device.
    pub(super) device: Option<u32>,
    pub(super) source: Option<Ipv4Addr>,
}

impl RouteEntry {
    /// The route, `vtep` being the index of our device.
    pub(super) fn route(&self, vtep: Option<u32>) -> Route {
        let ours = self.device.is_some() && self.device == vtep;
        Route { device: if ours { RouteDevice::Vtep } else { self.route.device }, ..self.route }
    }
}

/// `None`: not IPv4, or it cannot be read.
pub(super) fn route(payload: &[u8]) -> Option<RouteEntry> {
    let header = RouteHeader::parse(payload).ok()?;
    if header.address_family != AddressFamily::Inet {
        return None;
    }
    let device = match header.kind {
        RouteType::BlackHole => RouteDevice::Nowhere,
        _ => RouteDevice::Other,
    };
    let usual = matches!(header.kind, RouteType::Unicast | RouteType::BlackHole)
        && header.scope == RouteScope::Universe
        && header.tos == 0;
    let mut entry = RouteEntry {
        route: Route {
            dst: Ipv4Network::new(Ipv4Addr::UNSPECIFIED, header.destination_prefix_length).ok()?,
            metric: 0,
            device,
            gateway: None,
            onlink: header.flags.contains(RouteFlags::Onlink),
            protocol: header.protocol.into(),
            plain: usual,
        },
        main_table: header.table == RouteHeader::RT_TABLE_MAIN,
        device: None,
        source: None,
    };
    for attribute in attributes(payload, ROUTE_HEADER) {
        route_attribute(&mut entry, &attribute)?;
    }
    Some(entry)
}

fn route_attribute(entry: &mut RouteEntry, attribute: &NlaBuffer<&[u8]>) -> Option<()> {
    let value = attribute.value();
    match attribute.kind() {
        libc::RTA_DST => {
            let found = Ipv4Network::new(ipv4(value)?, entry.route.dst.prefix()).ok()?;
            entry.route.dst = Ipv4Network::new(found.network(), found.prefix()).ok()?;
        }
        libc::RTA_PRIORITY => entry.route.metric = number(value)?,
        libc::RTA_OIF => entry.device = number(value),
        libc::RTA_GATEWAY => entry.route.gateway = ipv4(value),
        libc::RTA_TABLE => entry.main_table = number(value)? == u32::from(libc::RT_TABLE_MAIN),
        libc::RTA_PREFSRC => {
            entry.source = ipv4(value);
            entry.route.plain = false;
        }
        RTA_VIA => {
            // An IPv6 next hop. `0.0.0.0` says that there is one, but none that is IPv4.
            entry.route.gateway = Some(Ipv4Addr::UNSPECIFIED);
            entry.route.plain = false;
        }
        libc::RTA_MULTIPATH | libc::RTA_METRICS | libc::RTA_FLOW | RTA_ENCAP | RTA_NH_ID => {
            entry.route.plain = false;
        }
        _ => {}
    }
    Some(())
}

/// Up to the first zero byte; what is no UTF-8 becomes a text that is no interface name.
fn text(value: &[u8]) -> &str {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::message::messages;
    use crate::kernel::recorded::{go, kernel};
    use proptest::prelude::*;

    fn payload(bytes: &[u8]) -> &[u8] {
        messages(bytes).next().unwrap().unwrap().payload
    }

    #[test]
    fn a_vxlan_device_is_read() {
        let bytes = kernel("ip -d link show flannel.1").concat();
        let link = link(payload(&bytes)).unwrap();
        assert_eq!((link.index, link.name.as_str(), link.parent), (4, "flannel.1", Some(3)));
        let vxlan = ObservedVxlan {
            vni: 1,
            parent: None,
            local: Some(Ipv4Addr::new(10, 8, 0, 111)),
            group: false,
            port: 8472,
            learning: false,
            l2miss: false,
            gbp: false,
        };
        let mac = "22:84:96:4b:66:c2".parse().unwrap();
        let expected = ObservedVtep {
            vxlan: Some(vxlan),
            mac,
            mtu: 1370,
            up: true,
            addresses: vec![],
            tx_checksum: None,
        };
        assert_eq!(link.device, expected);
    }

    #[test]
    fn an_address_is_read() {
        let bytes = kernel("ip addr add 10.200.43.0/32 dev flannel.1").concat();
        let address = address(payload(&bytes)).unwrap();
        assert_eq!((address.index, address.network.to_string().as_str()), (4, "10.200.43.0/32"));
        let flags = (address.host.permanent, address.host.secondary, address.host.deprecated);
        assert_eq!(flags, (true, false, false));
    }

    /// The other direction of the wire tests: requests of the Go daemon have the shape of notifications.
    #[test]
    fn what_the_go_daemon_puts_is_read_as_what_we_put() {
        let mac = "e2:f9:06:60:e7:6a".parse().unwrap();
        let neighbor = Entry::Neighbor(Ipv4Addr::new(10, 200, 54, 0), Some(mac));
        assert_eq!(station(payload(&go("ip neigh replace"))), Some(Station { index: 3, entry: neighbor }));
        let target = FdbTarget { dst: Ipv4Addr::new(10, 8, 0, 112), plain: true };
        let fdb = Entry::Fdb(mac, Some(target));
        assert_eq!(station(payload(&go("bridge fdb replace"))), Some(Station { index: 3, entry: fdb }));
        let overlay = route(payload(&go("ip route replace, onlink"))).unwrap();
        assert_eq!(overlay.route(Some(3)), Route::overlay("10.200.54.0/24".parse().unwrap()));
        let direct = route(payload(&go("ip route replace, direct"))).unwrap().route(Some(3));
        let ours = Route::direct("10.200.29.0/24".parse().unwrap(), Ipv4Addr::new(10, 8, 0, 112));
        assert_eq!(direct, Route { protocol: 3, ..ours });
    }

    proptest! {
        /// A VXLAN link with bytes changed at random.
        #[test]
        fn damaged_links_are_survived(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        ) {
            let mut bytes = kernel("ip -d link show flannel.1").concat();
            for (place, value) in damage {
                *place.get_mut(&mut bytes[16..]) = value;
            }
            let _ = link(payload(&bytes));
        }

        /// Any attribute in the place where those of a VXLAN device are.
        #[test]
        fn any_vxlan_attributes_are_survived(kind in 0_u16..40, value in prop::collection::vec(any::<u8>(), 0..24)) {
            let length = u16::try_from(value.len()).unwrap() + 4;
            let mut data = Vec::new();
            data.extend(length.to_ne_bytes());
            data.extend(kind.to_ne_bytes());
            data.extend(&value);
            let _ = vxlan_data(&data);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (link_identity(&bytes), link(&bytes));
            let _ = (address(&bytes), station(&bytes), route(&bytes));
        }

        /// A plausible header in front, so that the attributes are reached.
        #[test]
        fn any_attributes_are_survived(
            kind in 0_u16..40, value in prop::collection::vec(any::<u8>(), 0..60), nested in 0_u16..5,
        ) {
            let length = u16::try_from(value.len()).unwrap();
            let mut tail = Vec::new();
            tail.extend((length + 8).to_ne_bytes());
            tail.extend(kind.to_ne_bytes());
            tail.extend((length + 4).to_ne_bytes());
            tail.extend(nested.to_ne_bytes());
            tail.extend(&value);
            for family in [0_u8, 2, 7] {
                for header in [8, 12, 16] {
                    let mut bytes = vec![0; header];
                    bytes[0] = family;
                    bytes.extend(&tail);
                    let _ = (link_identity(&bytes), link(&bytes), address(&bytes), station(&bytes), route(&bytes));
                }
            }
        }
    }
}
