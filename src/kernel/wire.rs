//! What we ask of the kernel, as bytes: one function per request, named after the `ip` or `bridge` command.
//!
//! Only encodes, into a buffer the caller reuses; sends nothing and decides nothing. The bytes are those that the Go
//! daemon sends where the meaning is the same; the tests compare them with recordings and say where they differ.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    Nla,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeader};
use netlink_packet_route::link::{InfoVxlan, LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteProtocol, RouteScope, RouteType,
};
use nix::libc;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVxlan};

use crate::model::state::{Operation, Route, RouteDevice, Vtep};
use crate::model::{IfName, MacAddr, Mtu};

/// What a caller adds to a request: its number, and whether success is answered too (errors always are).
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) sequence: u32,
    pub(super) acknowledge: bool,
}

/// Appends one message made of `parts`: the fixed header and the attributes.
fn push(out: &mut Vec<u8>, stamp: Stamp, kind: u16, flags: u16, parts: &[&dyn Emitable]) {
    let mut header = NetlinkHeader::default();
    let length = header.buffer_len() + parts.iter().map(|part| part.buffer_len()).sum::<usize>();
    header.length = u32::try_from(length).unwrap_or(u32::MAX);
    header.message_type = kind;
    header.flags = flags | NLM_F_REQUEST | if stamp.acknowledge { NLM_F_ACK } else { 0 };
    header.sequence_number = stamp.sequence;
    let mut start = out.len();
    out.resize(start + length, 0);
    for part in std::iter::once(&(&header as &dyn Emitable)).chain(parts) {
        let end = start + part.buffer_len();
        if let Some(place) = out.get_mut(start..end) {
            part.emit(place);
        }
        start = end;
    }
}

/// `NDA_LLADDR` from six bytes; the attribute of `netlink-packet-route` owns a vector, one allocation a message.
struct LinkLayerAddress(MacAddr);

impl Nla for LinkLayerAddress {
    fn value_len(&self) -> usize {
        self.0.octets().len()
    }

    fn kind(&self) -> u16 {
        libc::NDA_LLADDR
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0.octets());
    }
}

/// The request that carries out `operation`; `vtep` is the index of our device.
pub(super) fn operation(out: &mut Vec<u8>, stamp: Stamp, vtep: u32, operation: &Operation) {
    match *operation {
        Operation::PutFdb(mac, dst) => {
            let header = fdb_header(vtep, NeighbourState::Permanent);
            put_neighbor(out, stamp, &header, dst, mac);
        }
        Operation::PutNeighbor(ip, mac) => put_neighbor(out, stamp, &neighbor_header(vtep), ip, mac),
        Operation::PutRoute(route) => put_route(out, stamp, vtep, &route),
        Operation::DeleteRoute(route) => delete_route(out, stamp, vtep, &route),
        Operation::DeleteNeighbor(ip, mac) => delete_neighbor(out, stamp, &neighbor_header(vtep), ip, mac),
        Operation::DeleteFdb(mac, dst) => {
            let header = fdb_header(vtep, NeighbourState::None);
            delete_neighbor(out, stamp, &header, dst, mac);
        }
    }
}

fn neighbor_header(index: u32) -> NeighbourHeader {
    NeighbourHeader {
        family: AddressFamily::Inet,
        ifindex: index,
        state: NeighbourState::Permanent,
        flags: NeighbourFlags::empty(),
        kind: RouteType::Unicast,
    }
}

fn fdb_header(index: u32, state: NeighbourState) -> NeighbourHeader {
    NeighbourHeader {
        family: AddressFamily::Bridge,
        ifindex: index,
        state,
        flags: NeighbourFlags::Own,
        kind: RouteType::Unspec,
    }
}

fn put_neighbor(out: &mut Vec<u8>, stamp: Stamp, header: &NeighbourHeader, dst: Ipv4Addr, mac: MacAddr) {
    let dst = NeighbourAttribute::Destination(dst.into());
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    push(out, stamp, libc::RTM_NEWNEIGH, flags, &[header, &dst, &LinkLayerAddress(mac)]);
}

fn delete_neighbor(out: &mut Vec<u8>, stamp: Stamp, header: &NeighbourHeader, dst: Ipv4Addr, mac: MacAddr) {
    let dst = NeighbourAttribute::Destination(dst.into());
    push(out, stamp, libc::RTM_DELNEIGH, 0, &[header, &dst, &LinkLayerAddress(mac)]);
}

/// `bridge fdb del MAC dev DEV self`: all destinations of the MAC, whatever their port and VNI.
pub(super) fn delete_fdb_entirely(out: &mut Vec<u8>, stamp: Stamp, vtep: u32, mac: MacAddr) {
    let header = fdb_header(vtep, NeighbourState::None);
    push(out, stamp, libc::RTM_DELNEIGH, 0, &[&header, &LinkLayerAddress(mac)]);
}

fn put_route(out: &mut Vec<u8>, stamp: Stamp, vtep: u32, route: &Route) {
    let kind = if route.device == RouteDevice::Nowhere { RouteType::BlackHole } else { RouteType::Unicast };
    let header = RouteHeader { protocol: RouteProtocol::from(route.protocol), kind, ..route_header(route) };
    push_route(out, stamp, libc::RTM_NEWROUTE, &header, vtep, route);
}

/// Type and protocol 0 match any, as recorded: a route of the Go daemon that was adopted goes too. A route that is not
/// plain may have any scope (`RT_SCOPE_NOWHERE` matches all). A blackhole has nothing else that tells it from other routes
/// to our subnet, such as a pod bridge's.
fn delete_route(out: &mut Vec<u8>, stamp: Stamp, vtep: u32, route: &Route) {
    let scope = if route.plain { RouteScope::Universe } else { RouteScope::NoWhere };
    let mut header = RouteHeader { scope, ..route_header(route) };
    if route.device == RouteDevice::Nowhere {
        header.kind = RouteType::BlackHole;
        header.protocol = RouteProtocol::from(route.protocol);
    }
    push_route(out, stamp, libc::RTM_DELROUTE, &header, vtep, route);
}

fn route_header(route: &Route) -> RouteHeader {
    RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: route.dst.prefix(),
        table: RouteHeader::RT_TABLE_MAIN,
        flags: if route.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    }
}

/// Index 0 leaves the device of a direct route to the kernel, which looks up the gateway.
fn push_route(out: &mut Vec<u8>, stamp: Stamp, kind: u16, header: &RouteHeader, vtep: u32, route: &Route) {
    let flags = if kind == libc::RTM_NEWROUTE { NLM_F_CREATE | NLM_F_REPLACE } else { 0 };
    let destination = RouteAttribute::Destination(route.dst.network().into());
    let gateway = route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into()));
    let device = RouteAttribute::Oif(if route.device == RouteDevice::Vtep { vtep } else { 0 });
    let metric = (route.metric != 0).then_some(RouteAttribute::Priority(route.metric));
    let parts: [&dyn Emitable; 5] = [header, &destination, &gateway.as_slice(), &device, &metric.as_slice()];
    push(out, stamp, kind, flags, &parts);
}

/// `ip link add NAME type vxlan …` with everything that only creation can set.
pub(super) fn create(out: &mut Vec<u8>, stamp: Stamp, vtep: &Vtep, parent: u32) {
    let mut link = LinkVxlan::new(vtep.name.as_str(), vtep.vni.get())
        .mtu(vtep.mtu.get())
        .txqueuelen(0)
        .address(vtep.mac.octets().to_vec())
        .dev(parent)
        .local(vtep.local)
        .ttl(0)
        .tos(0)
        .learning(vtep.learning)
        .proxy(false)
        .rsc(false)
        .l2miss(false)
        .l3miss(false)
        .udp_zero_csum6_tx(false)
        .udp_zero_csum6_rx(false);
    if vtep.gbp {
        link = link.gbp();
    }
    if let Some(port) = vtep.port {
        link = link.port(port);
    }
    push(out, stamp, libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &[&link.build()]);
}

/// `ip link del INDEX`
pub(super) fn delete_link(out: &mut Vec<u8>, stamp: Stamp, index: u32) {
    push(out, stamp, libc::RTM_DELLINK, 0, &[&LinkUnspec::new_with_index(index).build()]);
}

/// `ip link set INDEX up`
pub(super) fn set_up(out: &mut Vec<u8>, stamp: Stamp, index: u32) {
    push(out, stamp, libc::RTM_NEWLINK, 0, &[&LinkUnspec::new_with_index(index).up().build()]);
}

/// `ip link set INDEX address MAC`
pub(super) fn set_mac(out: &mut Vec<u8>, stamp: Stamp, index: u32, mac: MacAddr) {
    let link = LinkUnspec::new_with_index(index).address(mac.octets().to_vec());
    push(out, stamp, libc::RTM_NEWLINK, 0, &[&link.build()]);
}

/// `ip link set INDEX mtu MTU`
pub(super) fn set_mtu(out: &mut Vec<u8>, stamp: Stamp, index: u32, mtu: Mtu) {
    push(out, stamp, libc::RTM_NEWLINK, 0, &[&LinkUnspec::new_with_index(index).mtu(mtu.get()).build()]);
}

/// `ip link set INDEX type vxlan learning|nolearning`
pub(super) fn set_learning(out: &mut Vec<u8>, stamp: Stamp, index: u32, learning: bool) {
    let link =
        LinkMessageBuilder::<LinkVxlan>::new_with_info_kind(netlink_packet_route::link::InfoKind::Vxlan)
            .index(index)
            .append_info_data(InfoVxlan::Learning(learning));
    push(out, stamp, libc::RTM_NEWLINK, 0, &[&link.build()]);
}

/// `ip addr add ADDRESS dev INDEX`
pub(super) fn add_address(out: &mut Vec<u8>, stamp: Stamp, index: u32, address: Ipv4Network) {
    let (header, local, prefix) = address_parts(index, address);
    push(out, stamp, libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &[&header, &local, &prefix]);
}

/// `ip addr del ADDRESS dev INDEX`
pub(super) fn delete_address(out: &mut Vec<u8>, stamp: Stamp, index: u32, address: Ipv4Network) {
    let (header, local, prefix) = address_parts(index, address);
    push(out, stamp, libc::RTM_DELADDR, 0, &[&header, &local, &prefix]);
}

/// `IFA_LOCAL` before `IFA_ADDRESS`, as recorded; rtnetlink's builder has the other order.
fn address_parts(index: u32, address: Ipv4Network) -> (AddressHeader, AddressAttribute, AddressAttribute) {
    let header = AddressHeader {
        family: AddressFamily::Inet,
        prefix_len: address.prefix(),
        index,
        ..AddressHeader::default()
    };
    let ip = address.ip().into();
    (header, AddressAttribute::Local(ip), AddressAttribute::Address(ip))
}

/// `ip link show NAME`
pub(super) fn link_by_name(out: &mut Vec<u8>, stamp: Stamp, name: &IfName) {
    let link = without_statistics(LinkUnspec::new_with_index(0)).name(name.as_str());
    push(out, stamp, libc::RTM_GETLINK, 0, &[&link.build()]);
}

/// `ip link show` for one index.
pub(super) fn link_by_index(out: &mut Vec<u8>, stamp: Stamp, index: u32) {
    let link = without_statistics(LinkUnspec::new_with_index(index));
    push(out, stamp, libc::RTM_GETLINK, 0, &[&link.build()]);
}

/// `ip link show`
pub(super) fn links(out: &mut Vec<u8>, stamp: Stamp) {
    let link: LinkMessage = without_statistics(LinkUnspec::new_with_index(0)).build();
    push(out, stamp, libc::RTM_GETLINK, NLM_F_DUMP, &[&link]);
}

/// Counters are two thirds of a link message and nobody here reads them.
fn without_statistics(link: LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> {
    link.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
}

/// `ip -4 addr show`; index 0 is all devices.
pub(super) fn addresses(out: &mut Vec<u8>, stamp: Stamp, index: u32) {
    let header = AddressHeader { family: AddressFamily::Inet, index, ..AddressHeader::default() };
    push(out, stamp, libc::RTM_GETADDR, NLM_F_DUMP, &[&header]);
}

/// `ip -4 neigh show dev INDEX nud all`
pub(super) fn neighbors(out: &mut Vec<u8>, stamp: Stamp, index: u32) {
    let header = NeighbourHeader { family: AddressFamily::Inet, ..NeighbourHeader::default() };
    push(out, stamp, libc::RTM_GETNEIGH, NLM_F_DUMP, &[&header, &NeighbourAttribute::IfIndex(index)]);
}

/// `bridge fdb show dev INDEX`
pub(super) fn fdb(out: &mut Vec<u8>, stamp: Stamp, index: u32) {
    let header =
        NeighbourHeader { family: AddressFamily::Bridge, ifindex: index, ..NeighbourHeader::default() };
    push(out, stamp, libc::RTM_GETNEIGH, NLM_F_DUMP, &[&header]);
}

/// `ip -4 route show table main`
pub(super) fn routes(out: &mut Vec<u8>, stamp: Stamp) {
    let header = RouteHeader {
        address_family: AddressFamily::Inet,
        table: RouteHeader::RT_TABLE_MAIN,
        ..RouteHeader::default()
    };
    push(out, stamp, libc::RTM_GETROUTE, NLM_F_DUMP, &[&header]);
}

/// `ip route get IP`
pub(super) fn route_to(out: &mut Vec<u8>, stamp: Stamp, ip: Ipv4Addr) {
    let header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: 32,
        flags: RouteFlags::LookupTable,
        ..RouteHeader::default()
    };
    let destination = RouteAttribute::Destination(RouteAddress::Inet(ip));
    push(out, stamp, libc::RTM_GETROUTE, 0, &[&header, &destination]);
}

#[cfg(test)]
mod tests;
