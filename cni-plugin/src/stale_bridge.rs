//! A bridge that still carries the gateway address of a former subnet. The bridge plugin refuses
//! such a bridge with words that lead nowhere; here the case is recognised beforehand, explained
//! and, where the operator allows it and nothing is attached, repaired.
//!
//! [`claim`], [`conflict`] and [`uses`] decide from values; the rest asks the kernel through `netlink`.

use crate::cidr::Cidr;
use crate::delegate_config::DelegateConfig;
use crate::env::IfName;
use crate::log;
use crate::netconf::NetConf;
use crate::netlink;
use crate::state::{Entry, StateDir};
use crate::subnet_env::SubnetEnv;
use serde_json::Value;
use std::ffi::OsStr;
use std::fmt::Write;

/// The bridge carries an address that the bridge plugin will not replace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "bridge {bridge:?} still carries {address} of subnet {}, but this node's subnet is now {} (gateway {wanted})",
    .address.network(), .wanted.network()
)]
pub struct StaleBridge {
    bridge: String,
    address: Cidr,
    wanted: Cidr,
    /// What stands in the way of a repair; empty when none is wanted.
    users: Vec<String>,
    repair_allowed: bool,
}

impl StaleBridge {
    /// What the operator can do about it.
    pub fn cure(&self) -> String {
        let Self { bridge, address, users, .. } = self;
        let mut text = String::new();
        if self.repair_allowed {
            let _ = write!(text, "not repaired: {}. ", users.join(", "));
        }
        let _ = write!(
            text,
            "drain the node so that no pod of {} is left, then run 'ip addr del {address} dev {bridge}'; \
             or set \"repairBridgeAddress\": true in the flannel entry of the CNI config, and it is done as \
             soon as nothing is attached; or set \"forceAddress\": true in delegate, which cuts off the pods \
             of the old subnet",
            address.network()
        );
        text
    }
}

/// The addresses a delegate will want on its bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    bridge: String,
    gateways: Vec<Cidr>,
}

/// What the bridge plugin will put where, as far as that can be foretold: only with addresses from
/// host-local's own choice, on the bridge itself, and without the user's `forceAddress`.
pub fn claim(config: &DelegateConfig, env: &SubnetEnv) -> Option<Claim> {
    let object = config.object();
    let yes = |key: &str| object.get(key) == Some(&Value::Bool(true));
    let gateway = yes("isGateway") || yes("isDefaultGateway");
    let on_a_vlan = object.get("vlan").is_some_and(|vlan| vlan.as_u64() != Some(0));
    let ipam = object.get("ipam")?;
    let foretold = ipam.get("type")?.as_str()? == "host-local" && ipam.get("subnet").is_none();
    let bridge = Some(config.text("bridge")).filter(|name| !name.is_empty()).unwrap_or("cni0");
    let ours = config.text("type") == "bridge" && gateway && foretold;
    (ours && !on_a_vlan && !yes("forceAddress")).then(|| Claim {
        bridge: bridge.to_owned(),
        gateways: env.subnets.iter().map(|subnet| subnet.first_host()).collect(),
    })
}

/// The address the bridge plugin would stumble over, and the one it would want instead. Follows
/// its rule: any other IPv4 address, or an IPv6 one whose network overlaps, unless the wanted
/// address comes first.
pub fn conflict(claim: &Claim, addresses: &[Cidr]) -> Option<(Cidr, Cidr)> {
    let stumbles = |wanted: Cidr| {
        let blocks =
            |found: &Cidr| found.is_ipv4() == wanted.is_ipv4() && (found.is_ipv4() || found.overlaps(wanted));
        let first = addresses.iter().copied().find(blocks)?;
        (first != wanted).then_some((first, wanted))
    };
    claim.gateways.iter().copied().find_map(stumbles)
}

/// Whether a saved configuration hands out addresses of `subnet` on `bridge`. What cannot be
/// understood counts as a yes.
pub fn uses(config: &DelegateConfig, bridge: &str, subnet: Cidr) -> bool {
    let named = Some(config.text("bridge")).filter(|name| !name.is_empty()).unwrap_or("cni0");
    if config.text("type") != "bridge" || named != bridge {
        return false;
    }
    let ranges = config.object().get("ipam").and_then(|ipam| ipam.get("ranges")).and_then(Value::as_array);
    let Some(ranges) = ranges else { return true };
    let mut subnets = ranges.iter().filter_map(Value::as_array).flatten().map(|range| range.get("subnet"));
    subnets.any(|text| {
        let parsed: Option<Cidr> = text.and_then(Value::as_str).and_then(|text| text.parse().ok());
        parsed.is_none_or(|range| range.overlaps(subnet))
    })
}

/// What was found on the bridge a delegate will use.
enum Finding {
    Fine,
    Repairable { bridge: IfName, obstacle: StaleBridge },
    Blocked(StaleBridge),
}

/// Lets ADD go on when the bridge is fine or could be repaired.
///
/// A kernel that does not answer is no reason to refuse: then the bridge plugin decides.
///
/// # Errors
/// The bridge carries an address of another subnet and it is in use, or no repair is wanted.
pub fn settle(conf: &NetConf, config: &DelegateConfig, env: &SubnetEnv) -> Result<(), StaleBridge> {
    // One address a round, two families; a bridge with more addresses than this is not ours to mend.
    const ROUNDS: usize = 8;
    for _ in 0..ROUNDS {
        match examine(conf, config, env) {
            Finding::Fine => return Ok(()),
            Finding::Blocked(obstacle) => return Err(obstacle),
            Finding::Repairable { bridge, obstacle } => repair(&bridge, obstacle)?,
        }
    }
    look(conf, config, env)
}

/// The same look without a touch, for STATUS: what [`settle`] would repair is fine.
///
/// # Errors
/// As [`settle`].
pub fn look(conf: &NetConf, config: &DelegateConfig, env: &SubnetEnv) -> Result<(), StaleBridge> {
    match examine(conf, config, env) {
        Finding::Fine | Finding::Repairable { .. } => Ok(()),
        Finding::Blocked(obstacle) => Err(obstacle),
    }
}

fn examine(conf: &NetConf, config: &DelegateConfig, env: &SubnetEnv) -> Finding {
    let Some(claim) = claim(config, env) else { return Finding::Fine };
    let Some(bridge) = IfName::new(OsStr::new(&claim.bridge)) else { return Finding::Fine };
    let seen = netlink::addresses(&bridge).unwrap_or_default();
    let Some((address, wanted)) = conflict(&claim, &seen) else { return Finding::Fine };
    let repair_allowed = conf.repair_bridge_address;
    let users = if repair_allowed { users(conf, &bridge, address) } else { Vec::new() };
    let repairable = repair_allowed && users.is_empty();
    let obstacle = StaleBridge { bridge: claim.bridge, address, wanted, users, repair_allowed };
    if repairable { Finding::Repairable { bridge, obstacle } } else { Finding::Blocked(obstacle) }
}

fn repair(bridge: &IfName, mut obstacle: StaleBridge) -> Result<(), StaleBridge> {
    match netlink::remove_address(bridge, obstacle.address) {
        Ok(()) => {
            log::note(format_args!("removed the former address: {obstacle}"));
            Ok(())
        }
        Err(error) => {
            obstacle.users.push(format!("removing the address failed ({error})"));
            Err(obstacle)
        }
    }
}

/// Everything that may still need the address: what is plugged into the bridge, and every saved
/// attachment of its subnet. What cannot be read counts.
fn users(conf: &NetConf, bridge: &IfName, address: Cidr) -> Vec<String> {
    let ports = match netlink::ports(bridge) {
        Ok(0) => None,
        Ok(count) => Some(format!("interfaces attached to the bridge: {count}")),
        Err(error) => Some(format!("interfaces attached to the bridge cannot be listed ({error})")),
    };
    let saved = match StateDir::new(&conf.data_dir).list() {
        Ok(listed) => {
            let named = bridge.to_text();
            let using = listed.into_iter().filter(|item| match &item.entry {
                Entry::Saved(config, _) => uses(config, &named, address.network()),
                Entry::Bad | Entry::Absent => false,
            });
            using.map(|item| format!("container {}", item.container.as_str())).collect()
        }
        Err(error) => vec![format!("{error}")],
    };
    ports.into_iter().chain(saved).collect()
}

#[cfg(test)]
mod tests;
