//! Which interface carries the encapsulated traffic, and with which address.
//!
//! Selectors are tried in the order of the contract: each `iface`, each `iface-regex`, `iface-can-reach`; without any of
//! them `public-ip`, else the default route.

use std::fmt;
use std::net::Ipv4Addr;

use super::host::{Host, HostAddress, HostLink, RouteLookup};
use super::{IfName, Mtu};

/// One way to name the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `iface`: an interface name or one of its addresses.
    Interface(String),
    /// `iface-regex`: matched against addresses, then names.
    Regex(String),
    /// `iface-can-reach`: the interface a route lookup gives.
    CanReach(Ipv4Addr),
    /// `public-ip` alone: the interface that holds this address.
    PublicIp(Ipv4Addr),
    /// Nothing was given: the interface of the default route.
    DefaultRoute,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(text) => write!(f, "iface {text}"),
            Self::Regex(text) => write!(f, "iface-regex {text}"),
            Self::CanReach(ip) => write!(f, "iface-can-reach {ip}"),
            Self::PublicIp(ip) => write!(f, "public-ip {ip}"),
            Self::DefaultRoute => f.write_str("default route"),
        }
    }
}

/// The selectors in the order in which they count.
#[must_use]
pub fn selectors(
    ifaces: &[String],
    regexes: &[String],
    can_reach: Option<Ipv4Addr>,
    public_ip: Option<Ipv4Addr>,
) -> Vec<Selector> {
    let ifaces = ifaces.iter().cloned().map(Selector::Interface);
    let regexes = regexes.iter().cloned().map(Selector::Regex);
    let given: Vec<Selector> = ifaces.chain(regexes).chain(can_reach.map(Selector::CanReach)).collect();
    if given.is_empty() { vec![public_ip.map_or(Selector::DefaultRoute, Selector::PublicIp)] } else { given }
}

/// The chosen interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Its name.
    pub name: IfName,
    /// Its address: source of encapsulated packets.
    pub address: Ipv4Addr,
    /// Its MTU now.
    pub mtu: Mtu,
    /// The selector that led here.
    pub reason: Selector,
}

/// No selector led to an interface: each with its reason, and what the host has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no external interface: {}; this host has {candidates}", .tried.join("; "))]
pub struct NoInterface {
    /// One text per selector.
    pub tried: Vec<String>,
    /// The host's interfaces and addresses.
    pub candidates: String,
}

/// Chooses. `lookup` asks the kernel's routing (`ip route get`) for `Selector::CanReach`.
///
/// # Errors
/// When no selector leads to an interface with an address and a usable MTU.
pub fn choose(
    selectors: &[Selector],
    host: &Host,
    mut lookup: impl FnMut(Ipv4Addr) -> Result<RouteLookup, String>,
) -> Result<ExternalInterface, NoInterface> {
    let mut tried = Vec::new();
    for selector in selectors {
        match resolve(selector, host, &mut lookup) {
            Ok(chosen) => return Ok(chosen),
            Err(reason) => tried.push(format!("{selector}: {reason}")),
        }
    }
    Err(NoInterface { tried, candidates: candidates(host) })
}

/// The host's interfaces and addresses in one line: `eth0 (10.8.0.1), wg0 (no IPv4 address)`.
#[must_use]
pub fn candidates(host: &Host) -> String {
    let links = host.links.iter().map(|link| {
        let addresses: Vec<String> = link.addresses.iter().map(|address| address.ip.to_string()).collect();
        let addresses = if addresses.is_empty() { "no IPv4 address".to_owned() } else { addresses.join(" ") };
        format!("{} ({addresses})", link.name)
    });
    let links: Vec<String> = links.collect();
    if links.is_empty() { "no interface".to_owned() } else { links.join(", ") }
}

fn resolve(
    selector: &Selector,
    host: &Host,
    lookup: &mut impl FnMut(Ipv4Addr) -> Result<RouteLookup, String>,
) -> Result<ExternalInterface, String> {
    let (link, address) = match selector {
        Selector::Interface(text) => match text.parse() {
            Ok(ip) => holder(host, ip)?,
            Err(_) => (by_name(host, text)?, None),
        },
        Selector::PublicIp(ip) => holder(host, *ip)?,
        Selector::Regex(pattern) => by_regex(host, pattern)?,
        Selector::CanReach(ip) => {
            let route = lookup(*ip)?;
            (by_name(host, route.device.as_str())?, route.source)
        }
        Selector::DefaultRoute => (by_default_route(host)?, None),
    };
    let address = match address {
        Some(address) => address,
        None => preferred(link).ok_or_else(|| format!("{} has no usable IPv4 address", link.name))?,
    };
    let mtu = Mtu::try_from(u64::from(link.mtu)).map_err(|error| format!("{}: {error}", link.name))?;
    Ok(ExternalInterface { name: link.name.clone(), address, mtu, reason: selector.clone() })
}

type Found<'a> = (&'a HostLink, Option<Ipv4Addr>);

fn by_name<'a>(host: &'a Host, name: &str) -> Result<&'a HostLink, String> {
    host.links
        .iter()
        .find(|link| link.name.as_str() == name)
        .ok_or_else(|| format!("no interface named {name:?}"))
}

fn holder(host: &Host, ip: Ipv4Addr) -> Result<Found<'_>, String> {
    let holds = |link: &&HostLink| link.addresses.iter().any(|address| address.ip == ip);
    let link = host.links.iter().find(holds).ok_or_else(|| format!("no interface has the address {ip}"))?;
    Ok((link, Some(ip)))
}

fn by_regex<'a>(host: &'a Host, pattern: &str) -> Result<Found<'a>, String> {
    let regex =
        regex_lite::Regex::new(pattern).map_err(|error| format!("not a regular expression: {error}"))?;
    for link in &host.links {
        let mut usable = link.addresses.iter().filter(|address| is_usable(address));
        if let Some(address) = usable.find(|address| regex.is_match(&address.ip.to_string())) {
            return Ok((link, Some(address.ip)));
        }
    }
    let named = host.links.iter().find(|link| regex.is_match(link.name.as_str()));
    named.map(|link| (link, None)).ok_or_else(|| "matches no address and no interface name".to_owned())
}

fn by_default_route(host: &Host) -> Result<&HostLink, String> {
    let route = host.default_routes.first().ok_or("no default route")?;
    let device =
        route.device.as_ref().ok_or("the default route has several next hops; name one with -iface")?;
    by_name(host, device.as_str())
}

fn is_usable(address: &HostAddress) -> bool {
    let ip = address.ip;
    !address.deprecated
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !ip.is_unspecified()
        && !ip.is_broadcast()
}

/// Global before link-local, permanent before leased, primary before secondary, then kernel order.
fn preferred(link: &HostLink) -> Option<Ipv4Addr> {
    let usable = link.addresses.iter().filter(|address| is_usable(address));
    let best =
        usable.min_by_key(|address| (address.ip.is_link_local(), !address.permanent, address.secondary));
    best.map(|address| address.ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::DefaultRoute;

    fn address(text: &str) -> HostAddress {
        HostAddress { ip: text.parse().unwrap(), permanent: true, secondary: false, deprecated: false }
    }

    fn link(name: &str, mtu: u32, addresses: &[HostAddress]) -> HostLink {
        HostLink { name: name.parse().unwrap(), mtu, addresses: addresses.to_vec() }
    }

    fn host() -> Host {
        let eth0 = [
            address("169.254.1.1"),
            HostAddress { deprecated: true, ..address("192.168.1.8") },
            HostAddress { secondary: true, ..address("192.168.1.9") },
            HostAddress { permanent: false, ..address("192.168.1.10") },
            address("192.168.1.11"),
        ];
        Host {
            links: vec![
                link("lo", 65536, &[address("127.0.0.1")]),
                link("eth0", 1500, &eth0),
                link("wg0", 1420, &[address("10.8.0.111")]),
                link("tun1", 1400, &[]),
            ],
            default_routes: vec![DefaultRoute { device: Some("eth0".parse().unwrap()) }],
            kernel: None,
        }
    }

    fn pick(selectors: &[Selector]) -> Result<(String, String), String> {
        let lookup = |_| {
            Ok(RouteLookup {
                device: "wg0".parse().unwrap(),
                source: Some(Ipv4Addr::new(10, 8, 0, 111)),
                gateway: None,
            })
        };
        match choose(selectors, &host(), lookup) {
            Ok(chosen) => Ok((chosen.name.to_string(), chosen.address.to_string())),
            Err(error) => Err(error.to_string()),
        }
    }

    fn picked(selector: Selector) -> (String, String) {
        pick(&[selector]).unwrap()
    }

    fn named(text: &str) -> Selector {
        Selector::Interface(text.to_owned())
    }

    fn regex(text: &str) -> Selector {
        Selector::Regex(text.to_owned())
    }

    fn pair(name: &str, address: &str) -> (String, String) {
        (name.to_owned(), address.to_owned())
    }

    #[test]
    fn each_selector_resolves_as_the_contract_says() {
        assert_eq!(picked(named("wg0")), pair("wg0", "10.8.0.111"));
        assert_eq!(picked(named("192.168.1.9")), pair("eth0", "192.168.1.9"));
        assert_eq!(picked(Selector::PublicIp(Ipv4Addr::new(10, 8, 0, 111))), pair("wg0", "10.8.0.111"));
        assert_eq!(picked(Selector::DefaultRoute), pair("eth0", "192.168.1.11"));
        assert_eq!(picked(Selector::CanReach(Ipv4Addr::new(1, 1, 1, 1))), pair("wg0", "10.8.0.111"));
        assert_eq!(picked(regex(r"^192\.168\..*9$")), pair("eth0", "192.168.1.9"));
        assert_eq!(picked(regex("^10.")), pair("wg0", "10.8.0.111"));
        assert_eq!(picked(regex("^wg")), pair("wg0", "10.8.0.111"));
    }

    #[test]
    fn a_regex_prefers_an_address_of_a_later_link_to_a_name_of_an_earlier_one() {
        assert_eq!(picked(regex("eth0|111")), pair("wg0", "10.8.0.111"));
    }

    #[test]
    fn the_first_selector_that_resolves_wins_and_failures_are_all_named() {
        assert_eq!(pick(&[named("eth7"), regex("^wg")]).unwrap(), pair("wg0", "10.8.0.111"));
        let message =
            pick(&[named("eth7"), named("9.9.9.9"), named("tun1"), regex("("), regex("zz")]).unwrap_err();
        for part in [
            "iface eth7: no interface named \"eth7\"",
            "iface 9.9.9.9: no interface has the address 9.9.9.9",
            "tun1 has no usable IPv4 address",
            "iface-regex (: not a regular expression",
            "iface-regex zz: matches no",
            "this host has lo (127.0.0.1), eth0 (169.254.1.1",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn a_default_route_with_several_next_hops_is_no_choice() {
        let host = Host { default_routes: vec![DefaultRoute { device: None }], ..host() };
        let error = choose(&[Selector::DefaultRoute], &host, |_| Err(String::new())).unwrap_err();
        assert!(error.to_string().contains("several next hops; name one with -iface"));
        assert!(pick_without_routes().contains("no default route"));
    }

    fn pick_without_routes() -> String {
        let host = Host { default_routes: vec![], ..host() };
        choose(&[Selector::DefaultRoute], &host, |_| Err(String::new())).unwrap_err().to_string()
    }

    #[test]
    fn public_ip_selects_only_when_nothing_else_does() {
        let ip = Some(Ipv4Addr::new(1, 2, 3, 4));
        assert_eq!(selectors(&[], &[], None, ip), [Selector::PublicIp(Ipv4Addr::new(1, 2, 3, 4))]);
        assert_eq!(selectors(&[], &[], None, None), [Selector::DefaultRoute]);
        let all = selectors(&["a".to_owned()], &["b".to_owned()], ip, ip);
        assert_eq!(all, [named("a"), regex("b"), Selector::CanReach(Ipv4Addr::new(1, 2, 3, 4))]);
    }

    #[test]
    fn loopback_and_an_impossible_mtu_are_no_choice() {
        assert!(pick(&[named("lo")]).unwrap_err().contains("no usable IPv4 address"));
        let host = Host { links: vec![link("x", 0, &[address("10.0.0.1")])], ..host() };
        let error = choose(&[named("x")], &host, |_| Err(String::new())).unwrap_err();
        assert!(error.to_string().contains("MTU 0 is out of range"), "{error}");
    }
}
