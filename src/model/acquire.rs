//! Which subnet this node may claim: a decision over one listing of the store.
//!
//! The caller carries the decision out with a conditional write; when the condition fails it lists and decides again.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::allocate::{free_subnets, overlap};
use super::lease::parse_key;
use super::{LeaseAttrs, MacAddr, NetworkConfig, NodeId};

/// A lease of the listing; `index` finds it again there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Position in the caller's listing.
    pub index: usize,
    /// The leased subnet.
    pub subnet: Ipv4Network,
    /// What stands in the key; `None` when it cannot be read, or cannot concern us. Its subnet is taken all the same.
    pub attrs: Option<LeaseAttrs>,
}

impl Listed {
    /// Reads the keys and values of a listing; keys that name no subnet are not part of it.
    ///
    /// A value is read only if it may hold our public IP or stands on the subnet we had: a start lists thousands of others,
    /// which are read once, as peers.
    pub fn read<'a>(
        claimant: &Claimant<'_>,
        listing: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Vec<Self> {
        let public_ip = claimant.public_ip.to_string();
        let read = |(index, (name, value)): (usize, (&str, &[u8]))| {
            let subnet = parse_key(name).ok()?;
            let former = claimant.previous.is_some_and(|previous| overlap(previous, subnet));
            let concerns_us = former || may_hold(value, &public_ip);
            let attrs = concerns_us.then(|| LeaseAttrs::from_json(value).ok()).flatten();
            Some(Self { index, subnet, attrs })
        };
        listing.into_iter().enumerate().filter_map(read).collect()
    }
}

/// Whether a JSON text may hold this address: it has one spelling, unless it is written with escapes.
fn may_hold(value: &[u8], address: &str) -> bool {
    str::from_utf8(value).is_ok_and(|text| text.contains(address) || text.contains('\\'))
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Claimant<'a> {
    /// The network to lease from.
    pub config: &'a NetworkConfig,
    /// Our public IP: a lease with the same one is ours.
    pub public_ip: Ipv4Addr,
    /// Our machine, if it has an id.
    pub node_id: Option<NodeId>,
    /// The subnet we had before (from subnet.env).
    pub previous: Option<Ipv4Network>,
    /// The MAC of our VXLAN device, if it exists already.
    pub mac: Option<MacAddr>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Take over the lease at this index of the listing: it is ours.
    Adopt(Listed),
    /// Delete the lease at this index (ours, but impossible under the present config), then list and decide again.
    Release(Listed),
    /// Create a lease on one of these, any of them.
    Create(Vec<Ipv4Network>),
    /// Another machine holds a lease with our public IP.
    Refuse {
        /// Its subnet.
        subnet: Ipv4Network,
        /// Its machine.
        other: NodeId,
    },
    /// Every subnet is leased.
    OutOfSubnets,
}

/// Decides over one listing. Unparsable keys are not part of it.
#[must_use]
pub fn decide(claimant: &Claimant<'_>, leases: Vec<Listed>) -> Decision {
    let same_ip = leases.iter().filter(|lease| is_at(lease, claimant.public_ip));
    let mut ours: Vec<&Listed> = Vec::new();
    for lease in same_ip {
        if let Some(other) = other_machine(claimant, lease) {
            return Decision::Refuse { subnet: lease.subnet, other };
        }
        ours.push(lease);
    }
    let moved = leases.iter().find(|lease| moved_with_us(claimant, lease));
    let preferred = |lease: &&&Listed| Some(lease.subnet) == claimant.previous;
    let usable = ours.iter().filter(|lease| claimant.config.allows(lease.subnet));
    // The subnet we have comes before one that happens to be published with our new address.
    if let Some(lease) = usable.clone().find(preferred).copied().or(moved).or(usable.clone().next().copied())
    {
        return Decision::Adopt(lease.clone());
    }
    if let Some(lease) = ours.first() {
        return Decision::Release((*lease).clone());
    }
    create(claimant, leases)
}

fn is_at(lease: &Listed, public_ip: Ipv4Addr) -> bool {
    lease.attrs.as_ref().is_some_and(|attrs| attrs.public_ip == public_ip)
}

fn other_machine(claimant: &Claimant<'_>, lease: &Listed) -> Option<NodeId> {
    let other = lease.attrs.as_ref()?.node_id?;
    (other != claimant.node_id?).then_some(other)
}

/// Our former lease after our public IP changed: the subnet of our file, published with the MAC our device still has.
fn moved_with_us(claimant: &Claimant<'_>, lease: &Listed) -> bool {
    let mac = lease.attrs.as_ref().and_then(|attrs| attrs.vxlan).map(|data| data.mac);
    claimant.previous == Some(lease.subnet)
        && claimant.config.allows(lease.subnet)
        && mac.is_some()
        && mac == claimant.mac
        && other_machine(claimant, lease).is_none()
}

fn create(claimant: &Claimant<'_>, leases: Vec<Listed>) -> Decision {
    let leased: Vec<Ipv4Network> = leases.into_iter().map(|lease| lease.subnet).collect();
    let free = |subnet: &Ipv4Network| !leased.iter().any(|lease| overlap(*lease, *subnet));
    if let Some(previous) = claimant.previous.filter(|subnet| claimant.config.allows(*subnet)).filter(free) {
        return Decision::Create(vec![previous]);
    }
    let candidates = free_subnets(claimant.config, &leased);
    if candidates.is_empty() { Decision::OutOfSubnets } else { Decision::Create(candidates) }
}

/// For the log, when another subnet than the one of `subnet.env` has to be taken: who holds that one.
#[must_use]
pub fn who_has_the_former_subnet(claimant: &Claimant<'_>, leases: &[Listed]) -> Option<String> {
    let former = claimant.previous?;
    let holder = leases.iter().find(|lease| overlap(lease.subnet, former))?;
    let (subnet, attrs) = (holder.subnet, holder.attrs.as_ref());
    let node = attrs.and_then(|attrs| attrs.node_id);
    let by = match (attrs.map(|attrs| attrs.public_ip), node) {
        (None, _) => "a key that cannot be read".to_owned(),
        (Some(ip), None) => format!("the node with public IP {ip}"),
        (Some(ip), Some(id)) => format!("node {id} with public IP {ip}"),
    };
    let why = if node.is_some() && node == claimant.node_id {
        "That is this machine's own NodeID: a cloned disk (give each machine its own /etc/machine-id), or the lease it had \
         under a former address"
    } else {
        "A cloned disk, or our lease ran out meanwhile"
    };
    Some(format!("subnet.env names {former}, but {by} holds {subnet}; another subnet is taken. {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VxlanData;

    const US: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);

    fn config() -> NetworkConfig {
        NetworkConfig::from_json(
            br#"{"Network":"10.200.0.0/16","SubnetMax":"10.200.3.0","Backend":{"Type":"vxlan"}}"#,
        )
        .unwrap()
    }

    fn node(text: &str) -> NodeId {
        NodeId::from_machine_id(text)
    }

    fn lease(subnet: &str, public_ip: Ipv4Addr, machine: Option<&str>) -> Listed {
        let data = VxlanData { vni: 1, mac: MacAddr::new([2, 0, 0, 0, 0, 7]) };
        let attrs = LeaseAttrs::vxlan(public_ip, data, machine.map(node));
        Listed { index: 0, subnet: subnet.parse().unwrap(), attrs: Some(attrs) }
    }

    fn decide_for(previous: Option<&str>, mac: Option<MacAddr>, leases: Vec<Listed>) -> Decision {
        let config = config();
        let previous = previous.map(|text| text.parse().unwrap());
        decide(&Claimant { config: &config, public_ip: US, node_id: Some(node("us")), previous, mac }, leases)
    }

    fn subnets(texts: &[&str]) -> Vec<Ipv4Network> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_lease_with_our_public_ip_is_ours_unless_another_machine_wrote_it() {
        for machine in [None, Some("us")] {
            let ours = lease("10.200.2.0/24", US, machine);
            assert_eq!(decide_for(None, None, vec![ours.clone()]), Decision::Adopt(ours));
        }
        let theirs = lease("10.200.2.0/24", US, Some("them"));
        let expected = Decision::Refuse { subnet: theirs.subnet, other: node("them") };
        assert_eq!(decide_for(None, None, vec![theirs]), expected);
    }

    #[test]
    fn of_a_listing_the_values_are_read_that_can_concern_us() {
        let config = config();
        let previous = Some("10.200.3.0/24".parse().unwrap());
        let claimant = Claimant { config: &config, public_ip: US, node_id: None, previous, mac: None };
        let listing = [
            ("10.200.1.0-24", r#"{"PublicIP":"10.8.0.9"}"#, None),
            ("10.200.2.0-24", r#"{"PublicIP":"10.8.0.1"}"#, Some(US)),
            ("10.200.3.0-24", r#"{"PublicIP":"10.8.0.2"}"#, Some(OTHER)),
            ("10.200.4.0-24", r#"{"PublicIP":"10.8.0.\u0031"}"#, Some(US)),
            ("10.200.5.0-24", "10.8.0.1", None),
            ("junk", r#"{"PublicIP":"10.8.0.1"}"#, None),
        ];
        let read = Listed::read(&claimant, listing.iter().map(|(name, value, _)| (*name, value.as_bytes())));
        let addresses: Vec<_> =
            read.iter().map(|lease| lease.attrs.as_ref().map(|attrs| attrs.public_ip)).collect();
        assert_eq!(addresses, listing[..5].iter().map(|(.., expected)| *expected).collect::<Vec<_>>());
        assert_eq!(read.iter().map(|lease| lease.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_machine_without_an_id_adopts_by_public_ip_alone() {
        let config = config();
        let claimant = Claimant { config: &config, public_ip: US, node_id: None, previous: None, mac: None };
        let ours = lease("10.200.2.0/24", US, Some("them"));
        assert_eq!(decide(&claimant, vec![ours.clone()]), Decision::Adopt(ours));
    }

    #[test]
    fn of_several_leases_with_our_public_ip_the_previous_subnet_is_preferred() {
        let leases = vec![lease("10.200.2.0/24", US, None), lease("10.200.3.0/24", US, None)];
        let expected = Decision::Adopt(leases[1].clone());
        assert_eq!(decide_for(Some("10.200.3.0/24"), None, leases), expected);
    }

    #[test]
    fn a_lease_that_the_config_no_longer_allows_is_released() {
        for subnet in ["10.200.9.0/24", "10.200.2.0/25", "10.200.0.0/24"] {
            let ours = lease(subnet, US, None);
            assert_eq!(decide_for(None, None, vec![ours.clone()]), Decision::Release(ours));
        }
    }

    #[test]
    fn the_previous_subnet_is_created_again_when_it_is_free_and_allowed() {
        let other = lease("10.200.1.0/24", OTHER, None);
        let all = Decision::Create(subnets(&["10.200.2.0/24", "10.200.3.0/24"]));
        assert_eq!(
            decide_for(Some("10.200.3.0/24"), None, vec![other.clone()]),
            Decision::Create(subnets(&["10.200.3.0/24"]))
        );
        assert_eq!(
            decide_for(Some("10.200.1.0/24"), None, vec![other.clone()]),
            all,
            "leased by another node"
        );
        assert_eq!(decide_for(Some("10.201.3.0/24"), None, vec![other]), all, "outside of the network");
    }

    #[test]
    fn our_lease_follows_a_changed_public_ip_when_our_device_proves_it() {
        let former = lease("10.200.2.0/24", OTHER, None);
        let mac = Some(MacAddr::new([2, 0, 0, 0, 0, 7]));
        let previous = Some("10.200.2.0/24");
        assert_eq!(decide_for(previous, mac, vec![former.clone()]), Decision::Adopt(former.clone()));
        let stale = lease("10.200.3.0/24", US, None);
        assert_eq!(decide_for(previous, mac, vec![stale, former.clone()]), Decision::Adopt(former.clone()));
        let elsewhere = Decision::Create(subnets(&["10.200.1.0/24", "10.200.3.0/24"]));
        assert_eq!(decide_for(previous, None, vec![former.clone()]), elsewhere, "no device");
        assert_eq!(decide_for(None, mac, vec![former]), elsewhere, "no file");
        let theirs = lease("10.200.2.0/24", OTHER, Some("them"));
        assert_eq!(decide_for(previous, mac, vec![theirs]), elsewhere, "another machine");
    }

    #[test]
    fn whoever_has_the_former_subnet_is_named() {
        let config = config();
        let former = "10.200.2.0/24".parse().unwrap();
        let claimant = Claimant {
            config: &config,
            public_ip: US,
            node_id: Some(node("us")),
            previous: Some(former),
            mac: None,
        };
        let said = |leases: &[Listed]| who_has_the_former_subnet(&claimant, leases);
        let elsewhere = lease("10.200.3.0/24", OTHER, None);
        assert_eq!(said(std::slice::from_ref(&elsewhere)), None);
        let theirs = lease("10.200.2.0/24", OTHER, Some("them"));
        let expected = "subnet.env names 10.200.2.0/24, but node 8728a67b0d293ecb with public IP 10.8.0.2 holds 10.200.2.0/24; \
            another subnet is taken. A cloned disk, or our lease ran out meanwhile";
        assert_eq!(said(&[elsewhere, theirs]).as_deref(), Some(expected));
        let clones = lease("10.200.2.0/24", OTHER, Some("us"));
        let expected = "subnet.env names 10.200.2.0/24, but node 9502d4f947df09ad with public IP 10.8.0.2 holds 10.200.2.0/24; \
            another subnet is taken. That is this machine's own NodeID: a cloned disk (give each machine its own \
            /etc/machine-id), or the lease it had under a former address";
        assert_eq!(said(&[clones]).as_deref(), Some(expected));
        let gos = said(&[lease("10.200.2.0/24", OTHER, None)]).unwrap();
        assert!(gos.contains("but the node with public IP 10.8.0.2 holds"), "{gos}");
        let unreadable = said(&[Listed { index: 0, subnet: former, attrs: None }]).unwrap();
        assert!(unreadable.contains("but a key that cannot be read holds"), "{unreadable}");
    }

    #[test]
    fn an_unreadable_value_still_takes_its_subnet() {
        let mut leases: Vec<Listed> = ["10.200.1.0/24", "10.200.2.0/24", "10.200.3.0/24"]
            .map(|subnet| lease(subnet, OTHER, None))
            .to_vec();
        leases[1].attrs = None;
        assert_eq!(decide_for(None, None, leases), Decision::OutOfSubnets);
    }
}
