//! What `flanneld check` knows about the host when it judges. Values only; `gather` fills them in.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::firewall::Obstacle;
use crate::firewall::checks::KernelSettings;
use crate::model::{IfName, KernelVersion};

/// Everything that was looked at. What could not be learnt is absent and no rule judges it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// The daemon.
    pub(super) daemon: Daemon,
    /// Why the store did not answer; `None`: it did, or there was no need to ask.
    pub(super) store: Option<String>,
    /// What this node should hold, if the daemon or the store told; else why not.
    pub(super) node: Result<Node, String>,
    /// The device with its entries, against what they should be.
    pub(super) drift: Drift,
    /// MTU of the interface below the tunnel, as it is now.
    pub(super) underlay_mtu: Option<u32>,
    /// Interfaces beside our device that have an address within the overlay network.
    pub(super) bridges: Vec<Bridge>,
    /// What `subnet.env` says.
    pub(super) subnet_env: Option<Ipv4Network>,
    /// The firewall's rules are not in force, or something beside them failed.
    pub(super) rules: Option<String>,
    /// What drops forwarded packets although our rules accept them, or while there are none.
    pub(super) obstacles: Vec<Obstacle>,
    /// Settings that forwarding depends on.
    pub(super) settings: KernelSettings,
    /// Its version.
    pub(super) kernel: Option<KernelVersion>,
    /// TX checksum offload of the device is on.
    pub(super) tx_checksum: Option<bool>,
    /// Programs that want to configure the device as well.
    pub(super) managers: Vec<Manager>,
    /// The kernel's table of IPv4 neighbours.
    pub(super) neighbours: Option<Neighbours>,
    /// How far each member of etcd is ahead of this host's clock, in seconds.
    pub(super) skews: Vec<(String, i64)>,
    /// What became of echo requests to the peers.
    pub(super) echoes: Vec<Echo>,
    /// What could not be looked at, and why.
    pub(super) unchecked: Vec<String>,
}

/// The daemon, as its socket tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Daemon {
    /// It answers and pods can rely on the node.
    Ready,
    /// It answers, and this is how far it is.
    NotReady(String),
    /// There is none.
    Absent,
    /// It cannot be asked.
    Silent(String),
}

/// This node as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// Its subnet.
    pub(super) subnet: Ipv4Network,
    /// The overlay network.
    pub(super) network: Ipv4Network,
    /// The device.
    pub(super) device: IfName,
    /// The interface below it.
    pub(super) parent: IfName,
    /// The device's MTU.
    pub(super) mtu: u32,
    /// UDP port of the tunnel.
    pub(super) port: u16,
}

/// What differs, as the commands that would put it right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Drift {
    /// Of the device.
    pub(super) device: Vec<String>,
    /// Of neighbours, FDB entries and routes.
    pub(super) entries: Vec<String>,
    /// Subnets of peers to which somebody else's route leads.
    pub(super) conflicts: Vec<(Ipv4Network, String)>,
}

/// An interface that pods are behind, most likely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bridge {
    /// Its name.
    pub(super) name: IfName,
    /// The address within the overlay network.
    pub(super) address: Ipv4Addr,
    /// Its MTU.
    pub(super) mtu: u32,
}

/// A program that configures network interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manager {
    /// systemd-networkd
    Networkd,
    /// NetworkManager
    NetworkManager,
}

/// How full the table of neighbours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neighbours {
    /// Entries that count.
    pub(super) used: u32,
    /// `net.ipv4.neigh.default.gc_thresh3`
    pub(super) limit: u32,
}

/// What became of echo requests to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Echo {
    /// The peer's subnet; its network address is that of the peer's device.
    pub(super) subnet: Ipv4Network,
    /// The peer's public IP.
    pub(super) public_ip: Ipv4Addr,
    /// Answered through the tunnel.
    pub(super) inside: bool,
    /// Answered outside of it.
    pub(super) outside: bool,
    /// A packet as large as the tunnel makes them was answered outside of it, in one piece.
    pub(super) full_size: bool,
    /// The peer is reached without the tunnel.
    pub(super) direct: bool,
}
