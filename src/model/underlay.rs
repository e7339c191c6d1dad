//! What the choice of the external interface means for this node: where packets leave, what peers are told, how large they
//! may be. Asked again whenever the host's links, addresses or default routes change.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::ext_iface::{self, ExternalInterface, NoInterface, Selector};
use super::host::{Host, RouteLookup};
use super::{IfName, Mtu, NetworkConfig};

/// How the underlay is chosen; constant while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Tried in order.
    pub selectors: Vec<Selector>,
    /// The address published to the peers, if it is not the interface's.
    pub public_ip: Option<Ipv4Addr>,
    /// MTU outside the tunnel, if it is not the interface's.
    pub mtu: Option<Mtu>,
    /// The overlay network: an address out of it is never the underlay's.
    pub network: Ipv4Network,
    /// Our own device.
    pub vtep: IfName,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The interface below the tunnel.
    pub external: ExternalInterface,
    /// The address published to the peers.
    pub public_ip: Ipv4Addr,
    /// MTU of our device.
    pub mtu: Mtu,
}

/// No interface can carry the tunnel now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUnderlay {
    /// No selector leads to one.
    #[error(transparent)]
    Interface(#[from] NoInterface),
    /// Its MTU is too small.
    #[error("{name} has MTU {outer}, which leaves too little for VXLAN: {reason}")]
    TooSmall {
        /// The interface.
        name: IfName,
        /// The MTU outside the tunnel.
        outer: Mtu,
        /// Why, in words.
        reason: String,
    },
}

impl Choice {
    /// How options and network config ask for it.
    #[must_use]
    pub fn new(selectors: &[Selector], public_ip: Option<Ipv4Addr>, config: &NetworkConfig) -> Self {
        Self {
            selectors: selectors.to_vec(),
            public_ip,
            mtu: config.vxlan.mtu,
            network: config.network,
            vtep: IfName::of_vtep(config.vxlan.vni),
        }
    }

    /// Chooses on this host. `lookup` asks the kernel's routing (`ip route get`).
    ///
    /// # Errors
    /// When nothing fits now.
    pub fn on(
        &self,
        host: &Host,
        lookup: impl FnMut(Ipv4Addr) -> Result<RouteLookup, String>,
    ) -> Result<Underlay, NoUnderlay> {
        let external = ext_iface::choose(&self.selectors, &self.without_overlay(host), lookup)?;
        let outer = self.mtu.unwrap_or(external.mtu);
        let mtu = outer.inside_vxlan().map_err(|error| NoUnderlay::TooSmall {
            name: external.name.clone(),
            outer,
            reason: error.to_string(),
        })?;
        Ok(Underlay { public_ip: self.public_ip.unwrap_or(external.address), external, mtu })
    }

    /// The host without our own device and without what pods use: a pattern such as `^10\.` may match there too.
    fn without_overlay(&self, host: &Host) -> Host {
        let mut host = host.clone();
        host.links.retain(|link| link.name != self.vtep);
        for link in &mut host.links {
            link.addresses.retain(|address| !self.network.contains(address.ip));
        }
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::{HostAddress, HostLink};

    fn link(name: &str, mtu: u32, addresses: &[&str]) -> HostLink {
        let address = |text: &&str| HostAddress {
            ip: text.parse().unwrap(),
            permanent: true,
            secondary: false,
            deprecated: false,
        };
        HostLink { name: name.parse().unwrap(), mtu, addresses: addresses.iter().map(address).collect() }
    }

    fn choice(selector: Selector) -> Choice {
        let config =
            NetworkConfig::from_json(br#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        Choice::new(&[selector], None, &config)
    }

    fn chosen(choice: &Choice, links: &[HostLink]) -> Result<Underlay, NoUnderlay> {
        choice.on(&Host { links: links.to_vec(), ..Host::default() }, |_| Err(String::new()))
    }

    #[test]
    fn name_address_and_mtu_are_followed() {
        let by_name = choice(Selector::Interface("wg0".to_owned()));
        for (mtu, address) in [(1420, "10.8.0.1"), (1400, "10.8.0.1"), (1400, "10.8.0.9")] {
            let underlay = chosen(&by_name, &[link("wg0", mtu, &[address])]).unwrap();
            assert_eq!((underlay.mtu.get(), underlay.public_ip.to_string()), (mtu - 50, address.to_owned()));
        }
        let fixed = Choice { public_ip: Some(Ipv4Addr::new(192, 0, 2, 7)), ..by_name };
        let underlay = chosen(&fixed, &[link("wg0", 1420, &["10.8.0.9"])]).unwrap();
        assert_eq!(underlay.public_ip, Ipv4Addr::new(192, 0, 2, 7));
    }

    #[test]
    fn an_address_that_moved_is_found_on_its_new_interface() {
        let by_address = choice(Selector::Interface("10.8.0.1".to_owned()));
        let moved = [link("eth0", 1500, &[]), link("eth1", 9000, &["10.8.0.1"])];
        let underlay = chosen(&by_address, &moved).unwrap();
        assert_eq!((underlay.external.name.as_str(), underlay.mtu.get()), ("eth1", 8950));
    }

    #[test]
    fn our_own_device_and_the_pods_bridge_are_never_the_underlay() {
        let pattern = choice(Selector::Regex(r"^10\.".to_owned()));
        let ours = [link("flannel.1", 1450, &["10.200.4.0"]), link("cni0", 1450, &["10.200.4.1"])];
        assert!(matches!(chosen(&pattern, &ours), Err(NoUnderlay::Interface(_))));
        let with_eth0 = [&ours[..], &[link("eth0", 1500, &["10.8.0.1"])]].concat();
        assert_eq!(chosen(&pattern, &with_eth0).unwrap().external.name.as_str(), "eth0");
    }

    #[test]
    fn an_mtu_that_leaves_nothing_is_refused_by_name() {
        let by_name = choice(Selector::Interface("wg0".to_owned()));
        let error = chosen(&by_name, &[link("wg0", 100, &["10.8.0.1"])]).unwrap_err().to_string();
        assert!(error.starts_with("wg0 has MTU 100, which leaves too little for VXLAN"), "{error}");
    }
}
