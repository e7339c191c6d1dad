//! The host as the choice of the external interface sees it: links, their IPv4 addresses, default routes.

use std::net::Ipv4Addr;

use super::{IfName, KernelVersion};

/// A snapshot of the host's interfaces, taken once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// All links in index order (`ip link`).
    pub links: Vec<HostLink>,
    /// Default routes of the main table in kernel order, lowest metric first (`ip route show default`).
    pub default_routes: Vec<DefaultRoute>,
    /// The kernel, if its release can be read (`uname -r`).
    pub kernel: Option<KernelVersion>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLink {
    /// Interface name.
    pub name: IfName,
    /// MTU in bytes.
    pub mtu: u32,
    /// IPv4 addresses in kernel order (`ip -4 addr`).
    pub addresses: Vec<HostAddress>,
}

/// One IPv4 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostAddress {
    /// The local address.
    pub ip: Ipv4Addr,
    /// `IFA_F_PERMANENT`
    pub permanent: bool,
    /// `IFA_F_SECONDARY`
    pub secondary: bool,
    /// `IFA_F_DEPRECATED`
    pub deprecated: bool,
}

/// One default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The single outgoing device; `None` for a multipath route.
    pub device: Option<IfName>,
}

/// The kernel's answer to "how would you reach this address" (`ip route get`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteLookup {
    /// Outgoing device.
    pub device: IfName,
    /// Preferred source address.
    pub source: Option<Ipv4Addr>,
    /// Next hop; `None` when the address is on the link itself.
    pub gateway: Option<Ipv4Addr>,
}
