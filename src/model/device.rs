//! What has to happen to our VXLAN device: compares the wanted one with what was found.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::state::{ObservedVtep, ObservedVxlan, Vtep};
use super::underlay::Underlay;
use super::{IfName, MacAddr, Mtu, NetworkConfig};

/// The device that the network config asks for above the chosen underlay. What is done about TX checksum offload is not
/// decided here.
#[must_use]
pub fn wanted(config: &NetworkConfig, underlay: &Underlay, mac: MacAddr) -> Vtep {
    Vtep {
        name: IfName::of_vtep(config.vxlan.vni),
        mac,
        vni: config.vxlan.vni,
        parent: underlay.external.name.clone(),
        local: underlay.external.address,
        port: config.vxlan.port,
        mtu: underlay.mtu,
        learning: config.vxlan.learning,
        gbp: config.vxlan.gbp,
        tx_checksum: None,
    }
}

/// One step on the device, in the words of `ip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceStep {
    /// `ip link del NAME`
    Delete,
    /// `ip link add NAME type vxlan …`; afterwards `accept_ra` of the device is set to 0.
    Create(Vtep),
    /// `ip link set NAME address MAC`
    SetMac(MacAddr),
    /// `ip link set NAME mtu MTU`
    SetMtu(Mtu),
    /// `ip link set NAME type vxlan learning|nolearning`
    SetLearning(bool),
    /// `ethtool -K NAME tx on|off`
    SetTxChecksum(bool),
    /// `ip addr add IP/32 dev NAME`
    AddAddress(Ipv4Addr),
    /// `ip addr del ADDRESS dev NAME`
    DeleteAddress(Ipv4Network),
    /// `ip link set NAME up`
    SetUp,
}

impl DeviceStep {
    /// The part of the device it puts right, in a word or two.
    #[must_use]
    pub fn part(&self) -> &'static str {
        match self {
            Self::Delete | Self::Create(_) => "existence",
            Self::SetMac(_) => "MAC",
            Self::SetMtu(_) => "MTU",
            Self::SetLearning(_) => "learning",
            Self::SetTxChecksum(_) => "checksum offload",
            Self::AddAddress(_) | Self::DeleteAddress(_) => "address",
            Self::SetUp => "link state",
        }
    }
}

/// Why a device that is there cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incompatible {
    /// Attribute as `ip -d link` names it.
    pub what: &'static str,
    /// What the wanted device has.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl Incompatible {
    fn new(what: &'static str, expected: &dyn ToString, found: &dyn ToString) -> Self {
        Self { what, expected: expected.to_string(), found: found.to_string() }
    }
}

/// The first attribute that only a new device can change; `None` when the device found can be used.
///
/// MAC, MTU, learning, address and link state are not looked at: they are corrected in place.
#[must_use]
pub fn incompatibility(vtep: &Vtep, observed: &ObservedVtep) -> Option<Incompatible> {
    let Some(found) = &observed.vxlan else {
        return Some(Incompatible::new("type", &"vxlan", &"another kind of link"));
    };
    mismatches(vtep, found).into_iter().flatten().next()
}

fn mismatches(vtep: &Vtep, found: &ObservedVxlan) -> [Option<Incompatible>; 7] {
    let unless = |same: bool, mismatch: Incompatible| (!same).then_some(mismatch);
    let parent = found.parent.as_ref();
    let parent_text = parent.map_or_else(|| "none".to_owned(), ToString::to_string);
    let local_text = found.local.map_or_else(|| "none".to_owned(), |local| local.to_string());
    let port = vtep.port.unwrap_or(found.port);
    [
        unless(found.vni == vtep.vni.get(), Incompatible::new("id", &vtep.vni, &found.vni)),
        unless(parent == Some(&vtep.parent), Incompatible::new("dev", &vtep.parent, &parent_text)),
        unless(found.local == Some(vtep.local), Incompatible::new("local", &vtep.local, &local_text)),
        unless(!found.group, Incompatible::new("group", &"none", &"one")),
        unless(!found.l2miss, Incompatible::new("l2miss", &"off", &"on")),
        unless(found.port == port, Incompatible::new("dstport", &port, &found.port)),
        unless(found.gbp == vtep.gbp, Incompatible::new("gbp", &vtep.gbp, &found.gbp)),
    ]
}

/// The steps that turn what was found into `vtep` with exactly `address` out of `network`.
///
/// The new address is added before an old one goes: deleting the last address of a device would drop its routes
/// and permanent neighbours. Addresses outside `network` belong to somebody else and stay.
#[must_use]
pub fn steps(
    vtep: &Vtep,
    address: Ipv4Addr,
    network: Ipv4Network,
    observed: Option<&ObservedVtep>,
) -> Vec<DeviceStep> {
    let usable = observed.filter(|observed| incompatibility(vtep, observed).is_none());
    let mut steps = Vec::new();
    if let Some(found) = usable {
        corrections(vtep, found, &mut steps);
    } else {
        steps.extend(observed.map(|_| DeviceStep::Delete));
        steps.push(DeviceStep::Create(vtep.clone()));
        // A new device has it on (`vxlan_setup` in `drivers/net/vxlan/vxlan_core.c`).
        if restored_tx_checksum(vtep, observed) == Some(false) {
            steps.push(DeviceStep::SetTxChecksum(false));
        }
    }
    let addresses = usable.map_or(&[][..], |found| &found.addresses);
    let wanted = |found: &&Ipv4Network| found.ip() == address && found.prefix() == 32;
    if !addresses.iter().any(|found| wanted(&found)) {
        steps.push(DeviceStep::AddAddress(address));
    }
    let stale = addresses.iter().filter(|found| !wanted(found) && network.contains(found.ip()));
    steps.extend(stale.map(|found| DeviceStep::DeleteAddress(*found)));
    if !usable.is_some_and(|found| found.up) {
        steps.push(DeviceStep::SetUp);
    }
    steps
}

/// What a device made anew gets: an order, else what the one before it had.
fn restored_tx_checksum(vtep: &Vtep, former: Option<&ObservedVtep>) -> Option<bool> {
    let former = former.filter(|found| found.vxlan.is_some());
    vtep.tx_checksum.or(former.and_then(|found| found.tx_checksum))
}

/// What the device shall have from now on, once it was right: what it has. Who sets it later (`ExecStartPost`, an operator) has
/// a reason, and a device made anew shall have it too.
///
/// A device that does not fit or has another MAC is not ours but one that somebody put in its place, and says nothing.
#[must_use]
pub fn settled_tx_checksum(vtep: &Vtep, observed: Option<&ObservedVtep>) -> Option<bool> {
    let ours = observed.filter(|found| found.mac == vtep.mac && incompatibility(vtep, found).is_none());
    ours.and_then(|found| found.tx_checksum).or(vtep.tx_checksum)
}

fn corrections(vtep: &Vtep, found: &ObservedVtep, steps: &mut Vec<DeviceStep>) {
    if found.mac != vtep.mac {
        steps.push(DeviceStep::SetMac(vtep.mac));
    }
    if found.mtu != vtep.mtu.get() {
        steps.push(DeviceStep::SetMtu(vtep.mtu));
    }
    if found.vxlan.as_ref().is_some_and(|vxlan| vxlan.learning != vtep.learning) {
        steps.push(DeviceStep::SetLearning(vtep.learning));
    }
    if let (Some(wanted), Some(found)) = (vtep.tx_checksum, found.tx_checksum)
        && wanted != found
    {
        steps.push(DeviceStep::SetTxChecksum(wanted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Vni;

    fn wanted() -> Vtep {
        Vtep {
            name: IfName::of_vtep(Vni::DEFAULT),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            vni: Vni::DEFAULT,
            parent: "wg0".parse().unwrap(),
            local: Ipv4Addr::new(10, 8, 0, 111),
            port: None,
            mtu: Mtu::try_from(1370).unwrap(),
            learning: false,
            gbp: false,
            tx_checksum: None,
        }
    }

    fn found() -> ObservedVtep {
        ObservedVtep {
            vxlan: Some(ObservedVxlan {
                vni: 1,
                parent: Some("wg0".parse().unwrap()),
                local: Some(Ipv4Addr::new(10, 8, 0, 111)),
                group: false,
                port: 8472,
                learning: false,
                l2miss: false,
                gbp: false,
            }),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            mtu: 1370,
            up: true,
            addresses: vec!["10.200.43.0/32".parse().unwrap()],
            tx_checksum: Some(true),
        }
    }

    fn plan(vtep: &Vtep, found: Option<&ObservedVtep>) -> Vec<DeviceStep> {
        steps(vtep, Ipv4Addr::new(10, 200, 43, 0), "10.200.0.0/16".parse().unwrap(), found)
    }

    fn vxlan(change: impl FnOnce(&mut ObservedVxlan)) -> ObservedVtep {
        let mut device = found();
        change(device.vxlan.as_mut().unwrap());
        device
    }

    #[test]
    fn a_device_that_is_right_is_left_alone() {
        assert_eq!(plan(&wanted(), Some(&found())), []);
    }

    #[test]
    fn without_a_device_one_is_created_addressed_and_brought_up() {
        let address = DeviceStep::AddAddress(Ipv4Addr::new(10, 200, 43, 0));
        assert_eq!(plan(&wanted(), None), [DeviceStep::Create(wanted()), address, DeviceStep::SetUp]);
    }

    #[test]
    fn what_only_creation_can_set_recreates_the_device() {
        type Change = (&'static str, fn(&mut ObservedVxlan));
        let changes: [Change; 7] = [
            ("id", |vxlan| vxlan.vni = 2),
            ("dev", |vxlan| vxlan.parent = None),
            ("local", |vxlan| vxlan.local = None),
            ("group", |vxlan| vxlan.group = true),
            ("l2miss", |vxlan| vxlan.l2miss = true),
            ("gbp", |vxlan| vxlan.gbp = true),
            ("dstport", |vxlan| vxlan.port = 4789),
        ];
        let vtep = Vtep { port: Some(8472), ..wanted() };
        for (what, change) in changes {
            let device = vxlan(change);
            assert_eq!(incompatibility(&vtep, &device).unwrap().what, what);
            assert_eq!(
                plan(&vtep, Some(&device))[..2],
                [DeviceStep::Delete, DeviceStep::Create(vtep.clone())]
            );
        }
        let other = ObservedVtep { vxlan: None, ..found() };
        assert_eq!(incompatibility(&vtep, &other).unwrap().what, "type");
    }

    #[test]
    fn without_a_configured_port_any_port_of_the_device_is_kept() {
        assert_eq!(plan(&wanted(), Some(&vxlan(|vxlan| vxlan.port = 4789))), []);
    }

    #[test]
    fn what_can_be_corrected_in_place_is() {
        let mut device = vxlan(|vxlan| vxlan.learning = true);
        device.mac = MacAddr::new([2; 6]);
        device.mtu = 1450;
        device.up = false;
        let expected = [
            DeviceStep::SetMac(wanted().mac),
            DeviceStep::SetMtu(wanted().mtu),
            DeviceStep::SetLearning(false),
            DeviceStep::SetUp,
        ];
        assert_eq!(plan(&wanted(), Some(&device)), expected);
    }

    #[test]
    fn an_order_about_the_tx_checksum_is_carried_out_and_none_leaves_it_alone() {
        for wanted_now in [None, Some(true), Some(false)] {
            for found_now in [None, Some(true), Some(false)] {
                let vtep = Vtep { tx_checksum: wanted_now, ..wanted() };
                let device = ObservedVtep { tx_checksum: found_now, ..found() };
                let expected = match (wanted_now, found_now) {
                    (Some(on), Some(is)) if on != is => vec![DeviceStep::SetTxChecksum(on)],
                    _ => vec![],
                };
                assert_eq!(plan(&vtep, Some(&device)), expected, "{wanted_now:?} {found_now:?}");
            }
        }
    }

    #[test]
    fn a_device_made_anew_gets_the_tx_checksum_of_the_order_or_of_the_one_before() {
        let off = DeviceStep::SetTxChecksum(false);
        let misfit = |tx_checksum| ObservedVtep { tx_checksum, ..vxlan(|vxlan| vxlan.vni = 2) };
        for (order, former, switched_off) in [
            (None, None, false),
            (Some(false), None, true),
            (Some(true), None, false),
            (None, Some(misfit(Some(false))), true),
            (None, Some(misfit(Some(true))), false),
            (None, Some(misfit(None)), false),
            (Some(true), Some(misfit(Some(false))), false),
            (Some(false), Some(misfit(Some(true))), true),
            (None, Some(ObservedVtep { vxlan: None, tx_checksum: Some(false), ..found() }), false),
        ] {
            let steps = plan(&Vtep { tx_checksum: order, ..wanted() }, former.as_ref());
            assert_eq!(steps.contains(&off), switched_off, "{order:?} {former:?}");
            assert!(!switched_off || steps.iter().position(|step| *step == off) < steps.len().checked_sub(1));
        }
    }

    #[test]
    fn what_somebody_sets_later_counts_unless_the_device_is_not_ours() {
        let off = ObservedVtep { tx_checksum: Some(false), ..found() };
        assert_eq!(settled_tx_checksum(&wanted(), Some(&off)), Some(false));
        let ordered = Vtep { tx_checksum: Some(true), ..wanted() };
        assert_eq!(settled_tx_checksum(&ordered, Some(&off)), Some(false));
        for foreign in [
            None,
            Some(ObservedVtep { tx_checksum: None, ..found() }),
            Some(ObservedVtep { mac: MacAddr::new([2; 6]), ..off.clone() }),
            Some(ObservedVtep { vxlan: None, ..off }),
        ] {
            assert_eq!(settled_tx_checksum(&ordered, foreign.as_ref()), Some(true), "{foreign:?}");
        }
    }

    #[test]
    fn the_new_address_comes_before_the_old_one_goes_and_foreign_ones_stay() {
        let mut device = found();
        device.addresses =
            ["10.200.9.0/32", "10.200.43.0/24", "192.168.7.1/24"].map(|text| text.parse().unwrap()).to_vec();
        let expected = [
            DeviceStep::AddAddress(Ipv4Addr::new(10, 200, 43, 0)),
            DeviceStep::DeleteAddress("10.200.9.0/32".parse().unwrap()),
            DeviceStep::DeleteAddress("10.200.43.0/24".parse().unwrap()),
        ];
        assert_eq!(plan(&wanted(), Some(&device)), expected);
    }
}
