//! Reading the kernel: the host's links, our device, its entries, a route lookup.
//!
//! Only reads. Failing to read is an error, never an empty answer.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR};
use nix::libc;
use nix::sys::utsname::uname;
use tracing::debug;

use super::parse::{self, Entry, Link};
use super::refusal::Refusal;
use super::socket::Requests;
use super::{KernelError, Scope, ethtool, wire};
use crate::model::host::{DefaultRoute, Host, HostLink, RouteLookup};
use crate::model::state::{
    Entries, FdbTarget, Observed, ObservedVtep, PROTOCOL_FLANNELD, Route, RouteDevice,
};
use crate::model::{IfName, KernelVersion, MacAddr};

/// The index that belongs to a name now.
pub(super) fn index_of(requests: &mut Requests, name: &IfName) -> Result<Option<u32>, Refusal> {
    Ok(link(requests, name)?.map(|link| link.index))
}

/// `ip -d link show NAME`; `None` when there is no such link.
pub(super) fn link(requests: &mut Requests, name: &IfName) -> Result<Option<Link>, Refusal> {
    absent(
        requests
            .one(|out, stamp| wire::link_by_name(out, stamp, name), |message| parse::link(message.payload)),
    )
}

/// All links, in index order.
pub(super) fn links(requests: &mut Requests) -> Result<Vec<Link>, Refusal> {
    let mut links = requests.dump(wire::links, |message| parse::link(message.payload))?;
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn absent<T>(answer: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(refusal) if refusal.errno == libc::ENODEV => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

fn name_of(requests: &mut Requests, index: u32) -> Result<Option<IfName>, Refusal> {
    let link = requests
        .one(|out, stamp| wire::link_by_index(out, stamp, index), |message| parse::link(message.payload));
    Ok(absent(link)?.map(|link| link.name))
}

/// `ip addr`, `ip route show default`
pub(super) fn host(requests: &mut Requests) -> Result<Host, KernelError> {
    let links = links(requests).map_err(|refusal| refusal.doing("ip link show".to_owned()))?;
    let addresses = requests
        .dump(|out, stamp| wire::addresses(out, stamp, 0), |message| parse::address(message.payload))
        .map_err(|refusal| refusal.doing("ip -4 addr show".to_owned()))?;
    let defaults =
        default_routes().map_err(|refusal| refusal.doing("ip -4 route show default".to_owned()))?;
    let names: BTreeMap<u32, IfName> = links.iter().map(|link| (link.index, link.name.clone())).collect();
    let mut of_link: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for address in addresses {
        of_link.entry(address.index).or_default().push(address.host);
    }
    let default_routes = defaults
        .iter()
        .map(|entry| DefaultRoute { device: entry.device.and_then(|index| names.get(&index).cloned()) });
    let links = links.into_iter().map(|link| HostLink {
        name: link.name,
        mtu: link.device.mtu,
        addresses: of_link.remove(&link.index).unwrap_or_default(),
    });
    Ok(Host { default_routes: default_routes.collect(), links: links.collect(), kernel: kernel_version() })
}

/// Those of the main table. The kernel dumps a table in order of destination, so that they come first, among others that begin at
/// 0.0.0.0: a look at the host does not go through the routes to thousands of peers.
fn default_routes() -> Result<Vec<parse::RouteEntry>, Refusal> {
    let (mut found, mut end) = (Vec::new(), Ok(()));
    Requests::beginning_of_dump(wire::routes, |message| {
        if matches!(message.kind, NLMSG_ERROR | NLMSG_DONE) {
            end = message.outcome();
            return ControlFlow::Break(());
        }
        let entry = parse::route(message.payload).filter(|entry| entry.main_table);
        let Some((dst, entry)) = entry.map(|entry| (entry.route(None).dst, entry)) else {
            return ControlFlow::Continue(());
        };
        found.extend((dst.prefix() == 0).then_some(entry));
        if dst.network().is_unspecified() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    match end {
        // The table is made with its first route.
        Err(refusal) if refusal.errno != libc::ENOENT => Err(refusal),
        _ => Ok(found),
    }
}

/// `uname -r`
fn kernel_version() -> Option<KernelVersion> {
    KernelVersion::from_release(uname().ok()?.release().to_str()?)
}

/// The wanted routes of the main table, in kernel order.
fn routes(
    requests: &mut Requests,
    wanted: impl Fn(&parse::RouteEntry) -> bool,
) -> Result<Vec<parse::RouteEntry>, KernelError> {
    let found = requests.dump(wire::routes, |message| {
        parse::route(message.payload).filter(|entry| entry.main_table && wanted(entry))
    });
    match found {
        // The table is made with its first route.
        Err(refusal) if refusal.errno == libc::ENOENT => Ok(Vec::new()),
        found => found.map_err(|refusal| refusal.doing("ip -4 route show table main".to_owned())),
    }
}

/// `ip route get IP`. The gateway is `0.0.0.0` when the next hop is an IPv6 address.
pub(super) fn route_to(requests: &mut Requests, ip: Ipv4Addr) -> Result<RouteLookup, KernelError> {
    let doing = || format!("ip route get {ip}");
    let entry = requests
        .one(|out, stamp| wire::route_to(out, stamp, ip), |message| parse::route(message.payload))
        .map_err(|refusal| refusal.doing(doing()))?;
    let device = match entry.device {
        Some(index) => name_of(requests, index).map_err(|refusal| refusal.doing(doing()))?,
        None => None,
    };
    let device =
        device.ok_or_else(|| Refusal::without_answer("the route has no single device").doing(doing()))?;
    Ok(RouteLookup { device, source: entry.source, gateway: entry.route(None).gateway })
}

/// Whether a route leads into the overlay network, or is a blackhole of ours, perhaps of a time with another network.
pub(super) fn inside(network: Ipv4Network, route: &Route) -> bool {
    let blackhole = route.device == RouteDevice::Nowhere && route.protocol == PROTOCOL_FLANNELD;
    blackhole || (route.dst.prefix() >= network.prefix() && network.contains(route.dst.network()))
}

/// The links that everything in a scope goes by.
pub(super) struct Links {
    /// Our device, if it is there.
    pub(super) vtep: Option<Link>,
    /// The index of the external interface, if it is there.
    pub(super) parent: Option<u32>,
}

impl Links {
    /// What the names mean now.
    pub(super) fn find(requests: &mut Requests, scope: &Scope) -> Result<Self, KernelError> {
        let Scope { vtep, parent, .. } = scope;
        let doing = |name: &IfName| format!("ip link show {name}");
        Ok(Self {
            vtep: link(requests, vtep).map_err(|refusal| refusal.doing(doing(vtep)))?,
            parent: index_of(requests, parent).map_err(|refusal| refusal.doing(doing(parent)))?,
        })
    }
}

/// Our device and the entries.
pub(super) fn observe(requests: &mut Requests, scope: &Scope, links: Links) -> Result<Observed, KernelError> {
    let index = links.vtep.as_ref().map(|link| link.index);
    let entries = entries(requests, scope, index)?;
    Ok(Observed { vtep: device(requests, scope, links)?, entries })
}

/// The entries, with our device at `index`.
pub(super) fn entries(
    requests: &mut Requests,
    scope: &Scope,
    index: Option<u32>,
) -> Result<Entries, KernelError> {
    let mut entries = Entries::default();
    let found = routes(requests, |entry| inside(scope.network, &entry.route(index)))?;
    entries.routes = found.iter().map(|entry| entry.route(index)).collect();
    if let Some(index) = index {
        entries.neighbors = neighbors(requests, scope, index)?;
        entries.fdb = fdb(requests, scope, index)?;
    }
    Ok(entries)
}

fn neighbors(
    requests: &mut Requests,
    scope: &Scope,
    index: u32,
) -> Result<BTreeMap<Ipv4Addr, MacAddr>, KernelError> {
    let found = requests.dump(
        |out, stamp| wire::neighbors(out, stamp, index),
        |message| match parse::station(message.payload)? {
            parse::Station { index: of, entry: Entry::Neighbor(ip, Some(mac)) } if of == index => {
                Some((ip, mac))
            }
            _ => None,
        },
    );
    let found = found.map_err(|refusal| refusal.doing(format!("ip -4 neigh show dev {}", scope.vtep)))?;
    Ok(found.into_iter().collect())
}

fn fdb(
    requests: &mut Requests,
    scope: &Scope,
    index: u32,
) -> Result<BTreeMap<MacAddr, FdbTarget>, KernelError> {
    let found = requests.dump(
        |out, stamp| wire::fdb(out, stamp, index),
        |message| match parse::station(message.payload)? {
            parse::Station { index: of, entry: Entry::Fdb(mac, Some(target)) } if of == index => {
                Some((mac, target))
            }
            _ => None,
        },
    );
    let found = found.map_err(|refusal| refusal.doing(format!("bridge fdb show dev {}", scope.vtep)))?;
    Ok(found.into_iter().collect())
}

/// Our device, completed with its addresses, its offload and the name of the device below.
pub(super) fn device(
    requests: &mut Requests,
    scope: &Scope,
    links: Links,
) -> Result<Option<ObservedVtep>, KernelError> {
    let Some(link) = links.vtep else { return Ok(None) };
    let mut device = link.device;
    if let (Some(vxlan), Some(below)) = (&mut device.vxlan, link.parent) {
        vxlan.parent = if links.parent == Some(below) {
            Some(scope.parent.clone())
        } else {
            name_of(requests, below).map_err(|refusal| refusal.doing("ip link show".to_owned()))?
        };
    }
    let addresses = requests.dump(
        |out, stamp| wire::addresses(out, stamp, link.index),
        |message| parse::address(message.payload).filter(|address| address.index == link.index),
    );
    let addresses =
        addresses.map_err(|refusal| refusal.doing(format!("ip -4 addr show dev {}", scope.vtep)))?;
    device.addresses = addresses.iter().map(|address| address.network).collect();
    device.tx_checksum = match ethtool::tx_checksum(&scope.vtep) {
        Ok(on) => Some(on),
        Err(error) => {
            debug!(device = %scope.vtep, %error, "TX checksum offload cannot be read");
            None
        }
    };
    Ok(Some(device))
}
