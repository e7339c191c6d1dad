//! Carries out what `model::acquire` decides: list, decide, write conditionally; on a lost race again from a fresh list.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tracing::{debug, info, warn};

use crate::clock::{BootTime, Now};
use crate::model::acquire::{Claimant, Decision, Listed, decide, who_has_the_former_subnet};
use crate::model::{BootId, LeaseAttrs, MacAddr, NetworkConfig, NodeId, VxlanData, lease};
use crate::store::{Held, LeaseStore, Record, Renewal, Snapshot, StoreError, Written};

/// Everything a claim depends on.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    /// The network to lease from.
    pub(super) config: NetworkConfig,
    /// Our public IP.
    pub(super) public_ip: Ipv4Addr,
    /// Our machine.
    pub(super) node_id: Option<NodeId>,
    /// Our machine's run since its last boot.
    pub(super) boot_id: Option<BootId>,
    /// The subnet we had before.
    pub(super) previous: Option<Ipv4Network>,
    /// The MAC of our device, if it exists and can be kept.
    pub(super) device_mac: Option<MacAddr>,
    /// A MAC to publish when neither the device nor our lease has one.
    pub(super) fresh_mac: MacAddr,
    /// How long the lease shall live.
    pub(super) ttl: Duration,
}

/// Our lease, counted on the local clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnLease {
    /// The key as we know it.
    pub(super) held: Held,
    /// When it runs out unless it is renewed; `None` for a reservation.
    pub(super) expires: Option<BootTime>,
    /// When it was last confirmed by the store.
    pub(super) confirmed: BootTime,
}

impl OwnLease {
    /// Counts from the moment the request was sent, so that we never believe in the lease longer than the store does.
    #[must_use]
    pub(super) fn new(held: Held, sent: BootTime) -> Self {
        let expires = held.ttl.map(|ttl| sent.after(ttl));
        Self { held, expires, confirmed: sent }
    }

    /// The MAC that the peers know.
    #[must_use]
    pub(super) fn mac(&self) -> Option<MacAddr> {
        self.held.attrs.vxlan.map(|data| data.mac)
    }
}

/// A claim that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acquired {
    /// Our lease.
    pub(super) lease: OwnLease,
    /// The listing it was decided on, with our own key as it is now. A watch from its end misses nothing.
    pub(super) snapshot: Snapshot,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AcquireError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another machine uses our public IP.
    #[error(
        "public IP {public_ip} is already used by another node: machine {other} holds {subnet} with it. \
         Two nodes need two addresses: set -public-ip or -iface. If that node is gone for good, delete its key \
         .../subnets/{key}", key = lease::key_of(*.subnet)
    )]
    SamePublicIp {
        /// The address both use.
        public_ip: Ipv4Addr,
        /// The other node's subnet.
        subnet: Ipv4Network,
        /// The other machine.
        other: NodeId,
    },
    /// The network is full.
    #[error(
        "no free subnet: {leased} leases cover {min} to {max} (/{length}). \
         Remove stale leases or widen SubnetMin/SubnetMax in the network config"
    )]
    OutOfSubnets {
        /// How many leases there are.
        leased: usize,
        /// `SubnetMin`.
        min: Ipv4Addr,
        /// `SubnetMax`.
        max: Ipv4Addr,
        /// `SubnetLen`.
        length: u8,
    },
}

impl AcquireError {
    /// Whether time alone can cure it.
    #[must_use]
    pub(super) fn is_fatal(&self) -> bool {
        matches!(self, Self::SamePublicIp { .. } | Self::Store(StoreError::Config(_)))
    }
}

/// Acquires a lease. `first` spares the first listing when the caller has just made one; `random` chooses among free subnets.
///
/// # Errors
/// When the store fails, the network is full, or another machine has our public IP. Nothing is held then.
pub(super) async fn acquire<S: LeaseStore>(
    store: &S,
    claim: &Claim,
    now: Now,
    mut first: Option<Snapshot>,
) -> Result<Acquired, AcquireError> {
    loop {
        let mut snapshot = match first.take() {
            Some(snapshot) => snapshot,
            None => store.list().await?,
        };
        let claimant = Claimant {
            config: &claim.config,
            public_ip: claim.public_ip,
            node_id: claim.node_id,
            previous: claim.previous,
            mac: claim.device_mac,
        };
        let sent = now.now();
        let written = match decide(&claimant, Listed::read(&claimant, snapshot.entries())) {
            Decision::Adopt(lease) => adopt(store, claim, &lease, &snapshot).await?,
            Decision::Create(candidates) => {
                if claim.previous.is_some()
                    && let Some(message) =
                        who_has_the_former_subnet(&claimant, &Listed::read(&claimant, snapshot.entries()))
                {
                    warn!("{message}");
                }
                create(store, claim, &candidates).await?
            }
            Decision::Release(lease) => {
                release(store, &lease, &snapshot).await?;
                Written::Conflict
            }
            Decision::Refuse { subnet, other } => {
                return Err(AcquireError::SamePublicIp { public_ip: claim.public_ip, subnet, other });
            }
            Decision::OutOfSubnets => {
                return Err(AcquireError::OutOfSubnets {
                    leased: snapshot.records.len(),
                    min: claim.config.subnet_min,
                    max: claim.config.subnet_max,
                    length: claim.config.subnet_len,
                });
            }
        };
        match written {
            Written::Held(held) => {
                let own = lease::key_of(held.subnet);
                if let Some(record) = snapshot.records.iter_mut().find(|record| record.name == own) {
                    (record.value, record.modified) = (held.attrs.to_json().into_bytes(), held.modified);
                }
                return Ok(Acquired { lease: OwnLease::new(held, sent), snapshot });
            }
            Written::Conflict => debug!("the leases changed meanwhile; deciding again on a fresh list"),
        }
    }
}

fn attrs(claim: &Claim, mac: MacAddr) -> LeaseAttrs {
    let data = VxlanData { vni: claim.config.vxlan.vni.get(), mac };
    LeaseAttrs::vxlan(claim.public_ip, data, claim.node_id).since_boot(claim.boot_id)
}

/// A key that already says exactly what we would write is only prolonged: no event for the peers.
async fn adopt<S: LeaseStore>(
    store: &S,
    claim: &Claim,
    lease: &Listed,
    snapshot: &Snapshot,
) -> Result<Written, StoreError> {
    let Some(record) = snapshot.records.get(lease.index) else { return Ok(Written::Conflict) };
    let published = lease.attrs.as_ref().and_then(|attrs| attrs.vxlan).map(|data| data.mac);
    let published = published.filter(|mac| mac.is_unicast());
    let attrs = attrs(claim, claim.device_mac.or(published).unwrap_or(claim.fresh_mac));
    if lease.attrs.as_ref() == Some(&attrs) {
        match prolong(store, claim, held(lease.subnet, attrs.clone(), record)).await? {
            Some(written) => return Ok(written),
            None => {
                debug!(subnet = %lease.subnet, "lease has another TTL than configured and is written anew");
            }
        }
    }
    info!(subnet = %lease.subnet, reservation = record.lease.is_none(), "taking over our lease");
    store.update(lease.subnet, record, &attrs, claim.ttl).await
}

fn held(subnet: Ipv4Network, attrs: LeaseAttrs, record: &Record) -> Held {
    Held { subnet, attrs, modified: record.modified, lease: record.lease, ttl: None }
}

/// `None`: the lease lives, but with another TTL than wanted.
async fn prolong<S: LeaseStore>(store: &S, claim: &Claim, held: Held) -> Result<Option<Written>, StoreError> {
    match store.renew(&held, claim.ttl).await? {
        Renewal::Held(held) if held.ttl.is_none_or(|ttl| ttl == claim.ttl) => Ok(Some(Written::Held(held))),
        Renewal::Held(_) => Ok(None),
        Renewal::Lost(_) => Ok(Some(Written::Conflict)),
    }
}

async fn create<S: LeaseStore>(
    store: &S,
    claim: &Claim,
    candidates: &[Ipv4Network],
) -> Result<Written, StoreError> {
    let choice = usize::from(u16::from_be_bytes(random_bytes())) % candidates.len().max(1);
    let Some(subnet) = candidates.get(choice) else { return Ok(Written::Conflict) };
    let mac = claim.device_mac.unwrap_or(claim.fresh_mac);
    store.create(*subnet, &attrs(claim, mac), claim.ttl).await
}

async fn release<S: LeaseStore>(store: &S, lease: &Listed, snapshot: &Snapshot) -> Result<(), StoreError> {
    let Some(record) = snapshot.records.get(lease.index) else { return Ok(()) };
    warn!(subnet = %lease.subnet, "our lease does not fit the network config any more and is given back");
    store.delete(lease.subnet, record.modified).await.map(|_| ())
}

/// Random bytes. Without a random source the nodes would only collide more often.
#[must_use]
pub(super) fn random_bytes<const N: usize>() -> [u8; N] {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(bytes) = crate::store::seeded::bytes() {
        return bytes;
    }
    let mut bytes = [0; N];
    if getrandom::fill(&mut bytes).is_err() {
        warn!("the kernel gives no random numbers");
    }
    bytes
}
