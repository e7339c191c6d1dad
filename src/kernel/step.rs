//! One step on our device: create, delete, correct, address, bring up.
//!
//! Carries out what it is told, once; which steps are needed is decided in `model::device`.

use std::fs;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use nix::libc;
use tracing::debug;

use super::linux::LinuxKernel;
use super::refusal::Refusal;
use super::wire::{self, Stamp};
use super::{KernelError, Scope, ethtool, observe};
use crate::model::IfName;
use crate::model::device::DeviceStep;
use crate::model::state::Vtep;

/// UDP port of a VXLAN device created without one (`vxlan_port` in `drivers/net/vxlan/vxlan_core.c`).
const KERNEL_PORT: u16 = 8472;

/// Carries out `step`. Absent on delete and present on add are success.
pub(super) fn carry_out(
    kernel: &mut LinuxKernel,
    scope: &Scope,
    step: &DeviceStep,
) -> Result<(), KernelError> {
    let doing = command(scope, step);
    if let DeviceStep::Create(vtep) = step {
        return create(kernel, vtep, &doing);
    }
    if let DeviceStep::SetTxChecksum(on) = step {
        return ethtool::set_tx_checksum(&scope.vtep, *on).map_err(|error| Refusal::from(error).doing(doing));
    }
    let result = kernel.vtep_index(&scope.vtep).and_then(|index| {
        let index = index.ok_or(Refusal { errno: libc::ENODEV, words: None })?;
        kernel.requests.acknowledged(|out, stamp| encode(out, stamp, index, step))
    });
    match result {
        Err(refusal) if is_harmless(step, refusal.errno) => Ok(()),
        result => result.map_err(|refusal| refusal.doing(doing)),
    }
}

fn encode(out: &mut Vec<u8>, stamp: Stamp, index: u32, step: &DeviceStep) {
    match step {
        // Without a parent the kernel would make a device that is bound to none; `create` sends this one itself.
        DeviceStep::Create(vtep) => wire::create(out, stamp, vtep, index),
        DeviceStep::Delete => wire::delete_link(out, stamp, index),
        DeviceStep::SetMac(mac) => wire::set_mac(out, stamp, index, *mac),
        DeviceStep::SetMtu(mtu) => wire::set_mtu(out, stamp, index, *mtu),
        DeviceStep::SetLearning(learning) => wire::set_learning(out, stamp, index, *learning),
        DeviceStep::AddAddress(ip) => wire::add_address(out, stamp, index, Ipv4Network::from(*ip)),
        DeviceStep::DeleteAddress(address) => wire::delete_address(out, stamp, index, *address),
        DeviceStep::SetUp => wire::set_up(out, stamp, index),
        // No netlink: `carry_out` does it by ioctl.
        DeviceStep::SetTxChecksum(_) => {}
    }
}

fn is_harmless(step: &DeviceStep, errno: i32) -> bool {
    match step {
        DeviceStep::Delete => errno == libc::ENODEV,
        DeviceStep::DeleteAddress(_) => matches!(errno, libc::ENODEV | libc::EADDRNOTAVAIL),
        DeviceStep::AddAddress(_) => errno == libc::EEXIST,
        _ => false,
    }
}

fn create(kernel: &mut LinuxKernel, vtep: &Vtep, doing: &str) -> Result<(), KernelError> {
    let requests = &mut kernel.requests;
    let fail = |refusal: &Refusal| refusal.doing(doing.to_owned());
    let parent = observe::index_of(requests, &vtep.parent).map_err(|refusal| fail(&refusal))?;
    let missing = || Refusal::without_answer(&format!("there is no interface {}", vtep.parent));
    let parent = parent.ok_or_else(|| fail(&missing()))?;
    match requests.acknowledged(|out, stamp| wire::create(out, stamp, vtep, parent)) {
        Ok(()) => {}
        Err(refusal) if refusal.errno == libc::EEXIST => {
            if observe::index_of(requests, &vtep.name).map_err(|refusal| fail(&refusal))?.is_none() {
                return Err(fail(&name_the_holder(kernel, vtep, refusal)));
            }
        }
        Err(refusal) => return Err(fail(&refusal)),
    }
    refuse_router_advertisements(&vtep.name);
    Ok(())
}

/// EEXIST although nothing has our name: another VXLAN device has our VNI and port.
fn name_the_holder(kernel: &mut LinuxKernel, vtep: &Vtep, refusal: Refusal) -> Refusal {
    let port = vtep.port.unwrap_or(KERNEL_PORT);
    let links = observe::links(&mut kernel.requests).unwrap_or_default();
    let vnis = links.iter().filter_map(|link| Some((link, link.device.vxlan.as_ref()?)));
    let mut same_vni = vnis.filter(|(_, vxlan)| vxlan.vni == vtep.vni.get());
    // The default port is a module parameter: without a configured one only the VNI tells.
    let Some((holder, vxlan)) = same_vni.find(|(_, vxlan)| vtep.port.is_none() || vxlan.port == port) else {
        return refusal;
    };
    let words = format!(
        "device {} already uses VNI {} and port {}; delete it (ip link del {}) or choose another VNI or Port in the \
         network config",
        holder.name, vxlan.vni, vxlan.port, holder.name
    );
    Refusal { words: Some(words), ..refusal }
}

/// `sysctl net.ipv6.conf.DEV.accept_ra=0`: an advertisement out of the overlay must not change the host's routes.
///
/// Failing is harmless: there is no such file on a host without IPv6.
fn refuse_router_advertisements(device: &IfName) {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"));
    let result = fs::read_to_string(&path).and_then(|value| match value.trim() {
        "0" => Ok(()),
        _ => fs::write(&path, "0"),
    });
    if let Err(error) = result {
        debug!(%device, %error, "accept_ra is left as it is");
    }
}

/// The command that would do the same.
#[must_use]
pub fn command(scope: &Scope, step: &DeviceStep) -> String {
    let dev = &scope.vtep;
    match step {
        DeviceStep::Delete => format!("ip link del {dev}"),
        DeviceStep::Create(vtep) => format!(
            "ip link add {} type vxlan id {} dev {} local {}",
            vtep.name, vtep.vni, vtep.parent, vtep.local
        ),
        DeviceStep::SetMac(mac) => format!("ip link set {dev} address {mac}"),
        DeviceStep::SetMtu(mtu) => format!("ip link set {dev} mtu {mtu}"),
        DeviceStep::SetLearning(true) => format!("ip link set {dev} type vxlan learning"),
        DeviceStep::SetLearning(false) => format!("ip link set {dev} type vxlan nolearning"),
        DeviceStep::SetTxChecksum(true) => format!("ethtool -K {dev} tx on"),
        DeviceStep::SetTxChecksum(false) => format!("ethtool -K {dev} tx off"),
        DeviceStep::AddAddress(ip) => format!("ip addr add {ip}/32 dev {dev}"),
        DeviceStep::DeleteAddress(address) => format!("ip addr del {address} dev {dev}"),
        DeviceStep::SetUp => format!("ip link set {dev} up"),
    }
}
