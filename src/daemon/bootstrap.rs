//! From nothing to a lease: read the network config, choose the interface, look at the kernel once, claim a subnet.
//!
//! Every wait here ends by itself or repeats with a message; what only the operator can cure ends the start.

use tokio::task::JoinSet;
use tracing::info;

use super::acquire::{AcquireError, Acquired, Claim, acquire, random_bytes};
use super::rules::FirstLook;
use super::underlay::Look;
use super::waiting::{Waiting, no_config};
use super::{Fatal, Reporter, Settings, underlay};
use crate::clock::Now;
use crate::kernel::{Kernel, Scope};
use crate::model::device;
use crate::model::ext_iface::candidates;
use crate::model::host::Host;
use crate::model::state::{ObservedVtep, Vtep};
use crate::model::underlay::{Choice, Underlay};
use crate::model::{MacAddr, NetworkConfig};
use crate::status::Phase;
use crate::store::{LeaseStore, Snapshot, StoreError};

/// What the start found out and got.
#[derive(Debug)]
pub(super) struct Started {
    /// How the underlay is chosen.
    pub(super) choice: Choice,
    /// What was chosen.
    pub(super) underlay: Underlay,
    /// The device to make.
    pub(super) vtep: Vtep,
    /// What the claim was made from; a later claim starts from it.
    pub(super) claim: Claim,
    /// The lease and the listing it was decided on.
    pub(super) acquired: Acquired,
    /// The first look at the firewall, waiting to hear of the subnet.
    pub(super) first_look: Option<FirstLook>,
}

/// Runs the start up to the lease.
///
/// # Errors
/// When only the operator can help: unsupported config, no such interface, another node with our public IP.
pub(super) async fn start<S: LeaseStore, K: Kernel>(
    settings: &Settings,
    store: &S,
    kernel: &mut K,
    reporter: &mut Reporter,
    now: Now,
) -> Result<Started, Fatal> {
    let (config, mut listing) = wait_for_config(store, reporter).await?;
    let first_look = FirstLook::prepare(settings, &config);
    let choice = Choice::new(&settings.selectors, settings.public_ip, &config);
    let (underlay, host) = choose_underlay(&choice, kernel)?;
    let public_ip = underlay.public_ip;
    let mut vtep = wanted_vtep(&config, &underlay);
    vtep.tx_checksum = wanted_tx_checksum(settings, &config, &host);
    reporter.underlay(&underlay);
    reporter.acquiring();
    let scope = Scope { vtep: vtep.name.clone(), parent: vtep.parent.clone(), network: config.network };
    kernel.watch(&scope)?;
    let found = kernel.look_ahead(&scope)?;
    let claim = Claim {
        public_ip,
        node_id: settings.node_id,
        boot_id: settings.boot_id,
        previous: settings.previous_subnet,
        device_mac: kept_mac(&vtep, found.as_ref()),
        fresh_mac: vtep.mac,
        ttl: settings.lease_ttl,
        config,
    };
    let snapshot = listing.join_next().await.and_then(Result::ok).and_then(Result::ok);
    let acquired = wait_for_lease(store, &claim, reporter, now, snapshot).await?;
    let lease = &acquired.lease.held;
    vtep.mac = acquired.lease.mac().unwrap_or(vtep.mac);
    info!(subnet = %lease.subnet, public_ip = %public_ip, mac = %vtep.mac,
        ttl_s = lease.ttl.map(|ttl| ttl.as_secs()), reservation = lease.ttl.is_none(), "subnet leased");
    Ok(Started { choice, underlay, vtep, claim, acquired, first_look })
}

/// The MAC of a device that can stay: its MAC is what the peers know.
fn kept_mac(vtep: &Vtep, found: Option<&ObservedVtep>) -> Option<MacAddr> {
    let found = found.filter(|found| device::incompatibility(vtep, found).is_none())?;
    found.mac.is_unicast().then_some(found.mac)
}

/// The first listing, under way.
type Listing = JoinSet<Result<Snapshot, StoreError>>;

/// Reads the config until it is there and valid. The first listing is asked for beside it, and etcd gathers the leases while the
/// kernel is read.
async fn wait_for_config<S: LeaseStore>(
    store: &S,
    reporter: &mut Reporter,
) -> Result<(NetworkConfig, Listing), Fatal> {
    let mut waiting = Waiting::new("the network config");
    loop {
        let (mut listing, of) = (Listing::new(), store.clone());
        listing.spawn(async move { of.list().await });
        let problem = match store.network_config().await {
            Ok(Some(value)) => match NetworkConfig::from_json(&value) {
                Ok(config) => {
                    info!(network = %config.network, subnet_len = config.subnet_len, vni = %config.vxlan.vni, "network config read");
                    return Ok((config, listing));
                }
                Err(error) if error.is_fatal() => return Err(Fatal::Config(error.to_string())),
                Err(error) => error.to_string(),
            },
            Ok(None) => no_config(&store.describe(), store.decides(), &store.config_key()),
            Err(StoreError::Config(text)) => return Err(Fatal::Config(text)),
            Err(error) => error.to_string(),
        };
        let phase = Phase::WaitingForConfig { reason: problem.clone() };
        waiting.pause(problem, phase, reporter).await;
    }
}

/// Chooses the underlay; without one there is nothing to start with.
fn choose_underlay<K: Kernel>(choice: &Choice, kernel: &mut K) -> Result<(Underlay, Host), Fatal> {
    let Look { chosen, host } = underlay::look(choice, kernel)?;
    let underlay = chosen.map_err(|none| Fatal::Interface(none.to_string()))?;
    let external = &underlay.external;
    info!(interface = %external.name, address = %external.address, mtu = %external.mtu, because = %external.reason,
        public_ip = %underlay.public_ip, candidates = %candidates(&host), "external interface chosen");
    Ok((underlay, host))
}

/// The device with a MAC drawn for the case that none is known.
fn wanted_vtep(config: &NetworkConfig, underlay: &Underlay) -> Vtep {
    device::wanted(config, underlay, MacAddr::local_from_random(random_bytes()))
}

/// The node's own option counts more than the network config.
fn wanted_tx_checksum(settings: &Settings, config: &NetworkConfig, host: &Host) -> Option<bool> {
    let chosen = settings.tx_checksum.or(config.vxlan.tx_checksum).unwrap_or_default();
    let wanted = chosen.wanted(host.kernel);
    if wanted == Some(false) {
        info!(option = ?chosen, "TX checksum offload is off: correct on every kernel, at half the throughput of TCP");
    }
    wanted
}

async fn wait_for_lease<S: LeaseStore>(
    store: &S,
    claim: &Claim,
    reporter: &mut Reporter,
    now: Now,
    mut first: Option<Snapshot>,
) -> Result<Acquired, Fatal> {
    let mut waiting = Waiting::new("a subnet");
    loop {
        let problem = match acquire(store, claim, now, first.take()).await {
            Ok(acquired) => return Ok(acquired),
            Err(error) if error.is_fatal() => return Err(error.into()),
            Err(error) => error.to_string(),
        };
        waiting.pause(problem, Phase::AcquiringLease, reporter).await;
    }
}

impl From<AcquireError> for Fatal {
    fn from(error: AcquireError) -> Self {
        Self::Lease(error.to_string())
    }
}
