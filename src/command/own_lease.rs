//! Finds this node's lease in the store as the daemon would at its start: same interface, same store, same decision. For
//! commands that have to do without a daemon; changes nothing.

use crate::kernel::{Kernel, LinuxKernel, Scope};
use crate::model::acquire::{Claimant, Decision, Listed, decide};
use crate::model::ext_iface::selectors;
use crate::model::underlay::{self, Underlay};
use crate::model::{IfName, MacAddr, NetworkConfig, NodeId};
use crate::options::Options;
use crate::store::{self, Choice, LeaseStore, Ourselves, Snapshot, Store};
use crate::subnet_env::Previous;

/// What was found.
pub(super) struct Found {
    /// The store that holds the network.
    pub(super) store: Store,
    /// The network config.
    pub(super) config: NetworkConfig,
    /// The interface the daemon would choose, and what follows from it.
    pub(super) underlay: Underlay,
    /// All leases.
    pub(super) snapshot: Snapshot,
    /// What a daemon that starts now would do.
    pub(super) decision: Decision,
}

/// Looks; `Ok(None)`: no store holds a network config.
///
/// # Errors
/// With words for the operator.
pub(super) async fn find(
    options: &Options,
    previous: &Previous,
    kernel: &mut LinuxKernel,
) -> Result<Option<Found>, String> {
    let in_words = |error: store::StoreError| error.to_string();
    let candidates = store::open(&options.etcd).map_err(in_words)?;
    let own = Ourselves { public_ip: options.iface.public_ip, node_id: node_id() };
    let Choice::Chosen(store, _) = candidates.choose(own).await.map_err(in_words)? else { return Ok(None) };
    let Some(text) = store.network_config().await.map_err(in_words)? else { return Ok(None) };
    let config = NetworkConfig::from_json(&text).map_err(|error| error.to_string())?;
    let underlay = underlay(options, &config, kernel)?;
    let snapshot = store.list().await.map_err(in_words)?;
    let claimant = Claimant {
        config: &config,
        public_ip: underlay.public_ip,
        node_id: own.node_id,
        previous: previous.subnet,
        mac: device_mac(kernel, &config),
    };
    let decision = decide(&claimant, Listed::read(&claimant, snapshot.entries()));
    Ok(Some(Found { store, config, underlay, snapshot, decision }))
}

fn underlay(options: &Options, config: &NetworkConfig, kernel: &mut LinuxKernel) -> Result<Underlay, String> {
    let iface = &options.iface;
    let host = kernel.host().map_err(|error| error.to_string())?;
    let selectors = selectors(&iface.ifaces, &iface.regexes, iface.can_reach, iface.public_ip);
    let lookup = |ip| kernel.route_to(ip).map_err(|error| error.to_string());
    let choice = underlay::Choice::new(&selectors, iface.public_ip, config);
    choice.on(&host, lookup).map_err(|error| error.to_string())
}

fn node_id() -> Option<NodeId> {
    let text = std::fs::read_to_string("/etc/machine-id").ok()?;
    (!text.trim().is_empty()).then(|| NodeId::from_machine_id(&text))
}

fn device_mac(kernel: &mut LinuxKernel, config: &NetworkConfig) -> Option<MacAddr> {
    let name = IfName::of_vtep(config.vxlan.vni);
    let scope = Scope { vtep: name.clone(), parent: name, network: config.network };
    kernel.device(&scope).ok()?.map(|device| device.mac)
}
