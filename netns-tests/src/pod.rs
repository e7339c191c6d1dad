//! A pod: a network namespace inside a node, attached through the node's CNI chain.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::cni::{Attachment, ConfigList};
use crate::namespaces::Entry;
use crate::node::Node;

/// A pod. It ends with its node; [`Pod::remove`] ends it earlier, as a container runtime does.
#[derive(Debug)]
pub struct Pod {
    node: Arc<Node>,
    entry: Entry,
    chain: ConfigList,
    attachment: Attachment,
    address: Ipv4Addr,
}

impl Pod {
    /// Makes a namespace and runs ADD.
    ///
    /// # Errors
    /// A plugin's error.
    pub fn attach(node: &Arc<Node>, name: &str) -> Result<Self> {
        Self::attach_with(node, name, Map::new())
    }

    /// Like [`Pod::attach`], with values for the plugins' capabilities.
    ///
    /// # Errors
    /// A plugin's error.
    pub fn attach_with(node: &Arc<Node>, name: &str, capabilities: Map<String, Value>) -> Result<Self> {
        node.run(&format!("ip netns add {name}"))?;
        let entry = node.open_netns(name)?;
        node.run_in(&entry, "ip link set lo up")?;
        let attachment = Attachment {
            container: format!("lab-{name}"),
            netns: format!("/run/netns/{name}"),
            device: "eth0".to_owned(),
            capabilities,
        };
        let chain = ConfigList::of_node(node)?;
        let result = chain.add(node, &attachment)?;
        let address = address(&result).with_context(|| format!("no IPv4 address in {result}"))?;
        Ok(Self { node: Arc::clone(node), entry, chain, attachment, address })
    }

    /// Runs DEL and removes the namespace.
    ///
    /// # Errors
    /// A plugin's error.
    pub fn remove(self) -> Result<()> {
        self.chain.del(&self.node, &self.attachment)?;
        self.node.run(&format!("ip netns delete {}", self.name())).map(drop)
    }

    /// Its name, which is also that of its namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.attachment.netns.trim_start_matches("/run/netns/")
    }

    /// The address the chain gave it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Where a process starts that is to run in it.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Runs a line of words in the pod.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        self.node.run_in(&self.entry, line)
    }

    /// Starts a command in the pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<std::process::Child> {
        self.node.spawn(command, &self.entry)
    }

    /// Runs `work` on a thread inside the pod's network namespace.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.node.namespaces().in_network(&self.entry, work)
    }
}

/// The first address of a CNI result (0.3.0 and later): `ips[0].address` without its prefix length.
fn address(result: &Value) -> Option<Ipv4Addr> {
    let cidr = result.get("ips")?.as_array()?.first()?.get("address")?.as_str()?;
    cidr.split_once('/')?.0.parse().ok()
}
