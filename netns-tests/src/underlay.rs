//! The network below the overlay: a bridge in a namespace of its own with a veth pair to each node.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::folder::LabFolder;
use crate::namespaces::Entry;
use crate::node::Node;

/// What connects the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Underlay {
    /// a veth pair to a bridge: the name of the node's end and its MTU
    Veth {
        /// name of the interface inside the node
        device: String,
        /// its MTU
        mtu: u32,
    },
    /// `wg0` of wireguard-go (MTU 1420, point-to-point) over a veth pair `eth0`
    WireGuard,
}

impl Underlay {
    /// `eth0` with MTU 1500.
    #[must_use]
    pub fn veth() -> Self {
        Self::Veth { device: "eth0".to_owned(), mtu: 1500 }
    }

    /// The interface that carries the encapsulated packets, as `-iface` names it.
    #[must_use]
    pub fn device(&self) -> &str {
        match self {
            Self::Veth { device, .. } => device,
            Self::WireGuard => "wg0",
        }
    }
}

/// The bridge `br0` in a namespace of its own.
#[derive(Debug)]
pub struct Switch {
    node: Arc<Node>,
}

impl Switch {
    /// Makes the bridge (`ip link add br0 type bridge`).
    ///
    /// # Errors
    /// When a command fails.
    pub fn start(lab: &Arc<LabFolder>) -> Result<Self> {
        let node = Node::start(lab, "switch")?;
        // Without multicast snooping and IPv6 the bridge says nothing of its own.
        node.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")?;
        node.run("ip link add br0 type bridge stp_state 0 mcast_snooping 0")?;
        node.run("ip link set br0 up")?;
        Ok(Self { node })
    }

    /// The node the bridge lives in.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Gives `node` an interface on the bridge, with an address in a /24.
    ///
    /// # Errors
    /// When a command fails.
    pub fn connect(&self, node: &Node, device: &str, mtu: u32, address: Ipv4Addr) -> Result<()> {
        let port = port(node);
        let peer = node.namespaces().init();
        // The network namespace only: the kernel takes the number in `netns` as one of the caller's process namespace.
        let add = format!("ip link add {port} mtu {mtu} type veth peer name {device} mtu {mtu} netns {peer}");
        self.node.run_in(&Entry::NetworkOnly, &add).with_context(|| format!("connect {}", node.name()))?;
        self.node.run(&format!("ip link set {port} master br0 up"))?;
        node.run(&format!("ip address add {address}/24 dev {device}"))?;
        node.run(&format!("ip link set {device} up"))?;
        Ok(())
    }

    /// Gives `node` a further interface on the bridge, up and without an address.
    ///
    /// # Errors
    /// When a command fails.
    pub fn connect_second(&self, node: &Node, device: &str, mtu: u32) -> Result<()> {
        let (port, peer) = (format!("q-{}", node.name()), node.namespaces().init());
        let add = format!("ip link add {port} mtu {mtu} type veth peer name {device} mtu {mtu} netns {peer}");
        self.node.run_in(&Entry::NetworkOnly, &add)?;
        self.node.run(&format!("ip link set {port} master br0 up"))?;
        node.run(&format!("ip link set {device} up")).map(drop)
    }

    /// Lets no packet of `node` through, without the node noticing: its interface keeps its carrier.
    ///
    /// # Errors
    /// When the command fails.
    pub fn cut(&self, node: &Node) -> Result<()> {
        self.node.run(&format!("bridge link set dev {} state 0", port(node))).map(drop)
    }

    /// Undoes [`Switch::cut`].
    ///
    /// # Errors
    /// When the command fails.
    pub fn mend(&self, node: &Node) -> Result<()> {
        self.node.run(&format!("bridge link set dev {} state 3", port(node))).map(drop)
    }

    /// Pulls the cable: the node's interface loses its carrier.
    ///
    /// # Errors
    /// When the command fails.
    pub fn unplug(&self, node: &Node) -> Result<()> {
        self.node.run(&format!("ip link set {} down", port(node))).map(drop)
    }

    /// Undoes [`Switch::unplug`].
    ///
    /// # Errors
    /// When the command fails.
    pub fn plug(&self, node: &Node) -> Result<()> {
        self.node.run(&format!("ip link set {} up", port(node))).map(drop)
    }
}

fn port(node: &Node) -> String {
    format!("p-{}", node.name())
}
