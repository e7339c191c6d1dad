//! What the daemon answers to `flanneld status`: the status and every peer, with times counted from now. Goes over the socket
//! as JSON and is what `flanneld status --json` prints; never a secret.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Link, PeerState, Phase, Status, ready, status_line};
use crate::model::state::Vtep;
use crate::model::{IfName, MacAddr, Mtu, Vni};

/// Everything the daemon tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The daemon's version.
    pub version: String,
    /// The daemon's process, as it counts itself.
    pub pid: u32,
    /// Pods can rely on this node.
    pub ready: bool,
    /// How far the daemon is.
    pub phase: String,
    /// The line of `systemctl status`.
    pub summary: String,
    /// The lease on this node's subnet.
    pub lease: Option<Lease>,
    /// The interface that carries the traffic.
    pub external: Option<External>,
    /// The device as it should be.
    pub device: Option<Device>,
    /// `subnet.env` says what it should.
    pub subnet_env_written: bool,
    /// The firewall's rules; absent before the first look.
    pub rules: Option<Rules>,
    /// The store.
    pub store: Store,
    /// How many keys are skipped, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// The newest first.
    pub repairs: Vec<Repair>,
    /// Every other node; absent when the daemon's loop did not answer in time.
    pub peers: Option<Vec<Peer>>,
}

/// The lease on this node's subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The subnet.
    #[serde(with = "as_text")]
    pub subnet: Ipv4Network,
    /// Where the other nodes send.
    pub public_ip: Ipv4Addr,
    /// The device's hardware address as published.
    #[serde(with = "as_text")]
    pub vtep_mac: MacAddr,
    /// Since it was taken or renewed.
    pub renewed_seconds_ago: u64,
    /// Until it ends, negative afterwards; `null` for a reservation, which never does.
    pub expires_in_seconds: Option<i64>,
}

/// The interface that carries the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Its name.
    #[serde(with = "as_text")]
    pub name: IfName,
    /// The address that is used.
    pub address: Ipv4Addr,
    /// Its MTU when it was chosen.
    pub mtu: u32,
}

/// The device as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// `flannel.VNI`
    #[serde(with = "as_text")]
    pub name: IfName,
    /// Its hardware address.
    #[serde(with = "as_text")]
    pub mac: MacAddr,
    /// Its VXLAN id.
    pub vni: u32,
    /// The interface it is bound to.
    #[serde(with = "as_text")]
    pub parent: IfName,
    /// Source address of encapsulated packets.
    pub local: Ipv4Addr,
    /// UDP port; `null`: the kernel's.
    pub port: Option<u16>,
    /// Its MTU.
    pub mtu: u32,
    /// `learning`
    pub learning: bool,
    /// `gbp`
    pub gbp: bool,
    /// TX checksum offload; `null`: as it is.
    pub tx_checksum: Option<bool>,
    /// Its address, a /32.
    pub address: Ipv4Addr,
    /// The overlay network.
    #[serde(with = "as_text")]
    pub network: Ipv4Network,
}

/// The firewall's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Where they are and why there.
    pub firewall: Option<String>,
    /// They are in force.
    pub in_force: bool,
    /// Why not, or what failed beside them.
    pub problem: Option<String>,
    /// What drops pods' packets in spite of them.
    pub obstacles: Vec<Obstacle>,
}

/// Something that drops what our rules accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// What, in words.
    pub problem: String,
    /// What to do.
    pub cure: String,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// API and endpoints.
    pub describe: String,
    /// `untried`, `up` or `down`
    pub state: String,
    /// How long that is so.
    pub since_seconds_ago: Option<u64>,
    /// Why it is down.
    pub error: Option<String>,
    /// The newest revision that was seen.
    pub revision: u64,
    /// How often the watch had to be opened again.
    pub watch_restarts: u64,
}

/// Something that was put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// As the metric `flanneld_repairs_total` labels it.
    pub kind: String,
    /// How many of them.
    pub count: u64,
    /// When.
    pub seconds_ago: u64,
}

/// One other node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its subnet.
    #[serde(with = "as_text")]
    pub subnet: Ipv4Network,
    /// Where encapsulated packets go.
    pub public_ip: Ipv4Addr,
    /// The hardware address of its device.
    #[serde(with = "as_text")]
    pub vtep_mac: MacAddr,
    /// Reached without the tunnel.
    pub direct: bool,
    /// Why the kernel does not hold it whole.
    pub problem: Option<String>,
}

impl Answer {
    /// The answer at `now`, which is on the clock of `status`.
    #[must_use]
    pub fn new(status: &Status, peers: Option<Vec<PeerState>>, pid: u32, now: Duration) -> Self {
        let ago = |then: Duration| now.saturating_sub(then).as_secs();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid,
            ready: ready(status, now),
            phase: phase(&status.phase).to_owned(),
            summary: status_line(status, now),
            lease: status.lease.as_ref().map(|lease| Lease {
                subnet: lease.subnet,
                public_ip: lease.public_ip,
                vtep_mac: lease.mac,
                renewed_seconds_ago: ago(lease.renewed),
                expires_in_seconds: lease.expires.map(|expires| until(expires, now)),
            }),
            external: status.external.as_ref().map(|external| External {
                name: external.name.clone(),
                address: external.address,
                mtu: external.mtu,
            }),
            device: status.device.as_ref().map(Device::from),
            subnet_env_written: status.subnet_env_written,
            rules: status.rules.as_ref().map(Rules::from),
            store: Store::at(&status.store, now),
            skipped: status.skipped.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            repairs: status
                .repairs
                .iter()
                .rev()
                .map(|repair| Repair {
                    kind: repair.what.to_owned(),
                    count: repair.count,
                    seconds_ago: ago(repair.at),
                })
                .collect(),
            peers: peers.map(|peers| peers.into_iter().map(Peer::from).collect()),
        }
    }
}

fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::WaitingForConfig { .. } => "waiting for config",
        Phase::ChoosingInterface => "choosing interface",
        Phase::AcquiringLease => "acquiring lease",
        Phase::Programming => "programming",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
    }
}

fn until(then: Duration, now: Duration) -> i64 {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    if then >= now { seconds(then.saturating_sub(now)) } else { -seconds(now.saturating_sub(then)) }
}

impl Store {
    fn at(store: &super::Store, now: Duration) -> Self {
        let (state, since, error) = match &store.link {
            Link::Untried => ("untried", None, None),
            Link::Up { since } => ("up", Some(*since), None),
            Link::Down { since, error } => ("down", Some(*since), Some(error.clone())),
        };
        Self {
            describe: store.describe.clone(),
            state: state.to_owned(),
            since_seconds_ago: since.map(|since| now.saturating_sub(since).as_secs()),
            error,
            revision: store.revision,
            watch_restarts: store.watch_restarts,
        }
    }
}

impl From<&super::Rules> for Rules {
    fn from(rules: &super::Rules) -> Self {
        let obstacles = rules.obstacles.iter();
        Self {
            firewall: rules.firewall.clone(),
            in_force: rules.in_force,
            problem: rules.problem.clone(),
            obstacles: obstacles
                .map(|obstacle| Obstacle { problem: obstacle.problem.clone(), cure: obstacle.cure.clone() })
                .collect(),
        }
    }
}

impl From<PeerState> for Peer {
    fn from(peer: PeerState) -> Self {
        let PeerState { subnet, public_ip, mac, direct, problem } = peer;
        Self { subnet, public_ip, vtep_mac: mac, direct, problem }
    }
}

impl From<&super::Device> for Device {
    fn from(device: &super::Device) -> Self {
        let vtep = &device.vtep;
        Self {
            name: vtep.name.clone(),
            mac: vtep.mac,
            vni: vtep.vni.get(),
            parent: vtep.parent.clone(),
            local: vtep.local,
            port: vtep.port,
            mtu: vtep.mtu.get(),
            learning: vtep.learning,
            gbp: vtep.gbp,
            tx_checksum: vtep.tx_checksum,
            address: device.address,
            network: device.network,
        }
    }
}

impl Device {
    /// The device as the model knows it; `None` when another version of the daemon told something impossible.
    #[must_use]
    pub fn wanted(&self) -> Option<super::Device> {
        let vtep = Vtep {
            name: self.name.clone(),
            mac: self.mac,
            vni: Vni::try_from(u64::from(self.vni)).ok()?,
            parent: self.parent.clone(),
            local: self.local,
            port: self.port,
            mtu: Mtu::try_from(u64::from(self.mtu)).ok()?,
            learning: self.learning,
            gbp: self.gbp,
            tx_checksum: self.tx_checksum,
        };
        Some(super::Device { vtep, address: self.address, network: self.network })
    }
}

/// Values that have a text of their own.
mod as_text {
    use super::{Deserialize, Deserializer, Display, FromStr, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'a, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'a>,
    {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}
