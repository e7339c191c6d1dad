//! Which devices and routes of a host are ours. Pure.

use ipnetwork::Ipv4Network;

use crate::model::state::{Entries, ObservedVtep, PROTOCOL_FLANNELD, Route};
use crate::model::{IfName, Vni};

/// Whether a link of this name is worth a look: `flannel.VNI`.
pub(super) fn may_be_ours(name: &IfName) -> bool {
    vni_in(name).is_some_and(|vni| IfName::of_vtep(vni) == *name)
}

fn vni_in(name: &IfName) -> Option<Vni> {
    let number: u64 = name.as_str().strip_prefix("flannel.")?.parse().ok()?;
    Vni::try_from(number).ok()
}

/// Why a device that has such a name is not ours after all. `network` is that of `subnet.env`, if there is one.
pub(super) fn why_foreign(
    name: &IfName,
    found: &ObservedVtep,
    network: Option<Ipv4Network>,
) -> Option<String> {
    let Some(vxlan) = &found.vxlan else { return Some("it is no VXLAN device".to_owned()) };
    if vni_in(name).is_none_or(|vni| vni.get() != vxlan.vni) {
        return Some(format!("its VNI is {}", vxlan.vni));
    }
    let network = network?;
    let inside = found.addresses.iter().any(|address| network.contains(address.ip()));
    let foreign = !found.addresses.is_empty() && !inside;
    foreign.then(|| format!("its address is not in {network}, the network in subnet.env"))
}

/// The routes that carry our protocol number.
pub(super) fn marked(entries: &Entries) -> impl Iterator<Item = Route> {
    entries.routes.iter().copied().filter(|route| route.protocol == PROTOCOL_FLANNELD)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::MacAddr;
    use crate::model::state::ObservedVxlan;

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    fn device(vni: u32, addresses: &[&str]) -> ObservedVtep {
        ObservedVtep {
            vxlan: Some(ObservedVxlan {
                vni,
                parent: None,
                local: None,
                group: false,
                port: 8472,
                learning: false,
                l2miss: false,
                gbp: false,
            }),
            mac: MacAddr::new([2; 6]),
            mtu: 1450,
            up: true,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            tx_checksum: None,
        }
    }

    #[test]
    fn only_names_that_the_daemon_gives_are_looked_at() {
        for (text, expected) in [
            ("flannel.1", true),
            ("flannel.1677721", true),
            ("flannel.99999999", false),
            ("flannel.01", false),
            ("flannel.+1", false),
            ("flannel-v6.1", false),
            ("flannel", false),
            ("vxlan.1", false),
        ] {
            assert_eq!(text.parse().is_ok_and(|name| may_be_ours(&name)), expected, "{text}");
        }
    }

    #[test]
    fn a_device_is_ours_by_kind_vni_and_network() {
        let network: Ipv4Network = "10.200.0.0/16".parse().unwrap();
        let other = ObservedVtep { vxlan: None, ..device(1, &[]) };
        for (found, known, foreign) in [
            (device(1, &["10.200.8.0/32"]), Some(network), None),
            (device(1, &["10.200.8.0/32"]), None, None),
            (device(1, &[]), Some(network), None),
            (device(1, &["192.168.7.1/24", "10.200.8.0/32"]), Some(network), None),
            (
                device(1, &["10.99.8.0/32"]),
                Some(network),
                Some("its address is not in 10.200.0.0/16, the network in subnet.env"),
            ),
            (device(7, &[]), None, Some("its VNI is 7")),
            (other, None, Some("it is no VXLAN device")),
        ] {
            assert_eq!(why_foreign(&name("flannel.1"), &found, known).as_deref(), foreign, "{found:?}");
        }
    }

    #[test]
    fn routes_are_ours_by_their_protocol_alone() {
        let subnet = |slot: u8| Ipv4Network::new(Ipv4Addr::new(10, 200, slot, 0), 24).unwrap();
        let direct = Route::direct(subnet(2), Ipv4Addr::new(10, 8, 0, 2));
        let foreign = Route { protocol: 4, ..Route::direct(subnet(3), Ipv4Addr::new(10, 8, 0, 3)) };
        let blackhole = Route::blackhole(subnet(1));
        let entries = Entries { routes: [direct, foreign, blackhole].into(), ..Entries::default() };
        assert_eq!(marked(&entries).collect::<Vec<_>>(), [blackhole, direct]);
    }
}
