//! A whole lab: switch, etcd, nodes, and the daemons' view of them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::certificates::{Authority, CLIENT_FILES};
use crate::cni::{CONFLIST, ROLE_CONFLIST};
use crate::etcd::{Api, Etcd};
use crate::eventually::eventually;
use crate::flanneld::{Flanneld, HEALTH_PORT, Options, SUBNET_FILE};
use crate::folder::LabFolder;
use crate::lease::Lease;
use crate::node::Node;
use crate::observe::PeerState;
use crate::ping::Ping;
use crate::pod::Pod;
use crate::systemd;
use crate::underlay::{Switch, Underlay};
use crate::wireguard::Mesh;

/// How long a change may need to reach every node, on a loaded machine.
pub const CONVERGENCE: Duration = Duration::from_secs(15);
/// Where the first users keep flannel's keys.
pub const PREFIX: &str = "/kubernetes-cluster/network";
/// The overlay device with the default VNI.
pub const DEVICE: &str = "flannel.1";

/// What a lab consists of.
#[derive(Debug, Clone)]
pub struct Spec {
    /// number of nodes, at most 100
    pub nodes: u8,
    /// what connects them
    pub underlay: Underlay,
    /// number of etcd members, at most 9
    pub etcd_members: u8,
    /// the store that holds the network; the other one stays empty, and v2 is served only if it is this one
    pub etcd_api: Api,
    /// etcd wants TLS and client certificates; every node gets its own, and [`Lab::options`] names it
    pub etcd_tls: bool,
    /// further words for each member's command line
    pub etcd_arguments: Vec<String>,
    /// the network config, as the role writes it
    pub network_config: String,
}

/// Says what is missing when this is not root.
///
/// # Errors
/// When it is not.
pub fn ensure_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the lab makes network namespaces and mounts: run it as root");
    Ok(())
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            nodes: 3,
            underlay: Underlay::veth(),
            etcd_members: 1,
            etcd_api: Api::V3,
            etcd_tls: false,
            etcd_arguments: Vec::new(),
            network_config: r#"{"Network":"10.200.0.0/16","Backend":{"Type": "vxlan"}}"#.to_owned(),
        }
    }
}

/// A running lab. It ends, with everything in it, when this value and all handles on its nodes are dropped.
#[derive(Debug)]
pub struct Lab {
    // Fields are dropped in this order: processes before the nodes, nodes before the folder.
    etcd: Etcd,
    mesh: Mesh,
    nodes: Vec<Arc<Node>>,
    switch: Switch,
    underlay: Underlay,
    authority: Option<Authority>,
    folder: Arc<LabFolder>,
}

impl Lab {
    /// Builds a lab: the switch, a running etcd that holds the network config, and the nodes with the role's conflist.
    ///
    /// # Errors
    /// When this is not root, a Debian package is missing, or a part does not start.
    pub fn start(spec: &Spec) -> Result<Self> {
        let mut lab = Self::without_etcd(spec)?;
        lab.etcd.start()?;
        lab.etcd.put(&format!("{PREFIX}/config"), &spec.network_config)?;
        Ok(lab)
    }

    /// A lab of three nodes with everything at its default.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn three_nodes() -> Result<Self> {
        Self::start(&Spec::default())
    }

    /// Like [`Lab::start`], but etcd is not started and holds nothing.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn without_etcd(spec: &Spec) -> Result<Self> {
        ensure_root()?;
        let folder = LabFolder::create()?;
        let mut lab = Self {
            etcd: Etcd::default(),
            mesh: Mesh::default(),
            nodes: Vec::new(),
            switch: Switch::start(&folder)?,
            underlay: spec.underlay.clone(),
            authority: if spec.etcd_tls { Some(Authority::new()?) } else { None },
            folder,
        };
        let mut members = Vec::new();
        for number in 1..=spec.etcd_members {
            let node = Node::start(&lab.folder, &format!("etcd{number}"))?;
            let address = lab.connect(&node, 100 + number)?;
            if let Some(authority) = &lab.authority {
                authority.equip_server(&node, address)?;
            }
            members.push((node, address));
        }
        lab.etcd = Etcd::new(members, spec);
        for _ in 0..spec.nodes {
            lab.add_node()?;
        }
        Ok(lab)
    }

    /// Adds a node named `nodeN` with the next number.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn add_node(&mut self) -> Result<Arc<Node>> {
        let name = format!("node{}", self.nodes.len() + 1);
        let node = Node::start(&self.folder, &name)?;
        self.adopt(&node)?;
        Ok(node)
    }

    /// Adds a node whose process 1 is a real systemd, and waits for its boot.
    ///
    /// # Errors
    /// When it cannot be made or does not boot.
    pub fn add_node_with_systemd(&mut self) -> Result<Arc<Node>> {
        let name = format!("node{}", self.nodes.len() + 1);
        let node = Node::start_with_systemd(&self.folder, &name)?;
        self.adopt(&node)?;
        systemd::wait_booted(&node)?;
        Ok(node)
    }

    /// Adds a node that has the machine id of another, as a cloned disk has.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn add_clone_of(&mut self, original: &Node) -> Result<Arc<Node>> {
        let name = format!("node{}", self.nodes.len() + 1);
        let machine_id = original.read("/etc/machine-id")?;
        let node = Node::start_with_machine_id(&self.folder, &name, machine_id.trim())?;
        self.adopt(&node)?;
        Ok(node)
    }

    fn adopt(&mut self, node: &Arc<Node>) -> Result<()> {
        let number = u8::try_from(self.nodes.len() + 1).context("too many nodes")?;
        ensure!(number <= 100, "at most 100 nodes");
        // Duplicate address detection would show up in `ip monitor` a second later.
        node.run("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0")?;
        self.connect(node, 110 + number)?;
        node.write(CONFLIST, ROLE_CONFLIST)?;
        if let Some(authority) = &self.authority {
            authority.equip_client(node)?;
        }
        self.nodes.push(Arc::clone(node));
        Ok(())
    }

    /// Connects a node so that it has 10.8.0.`host` on the underlay's device.
    fn connect(&self, node: &Arc<Node>, host: u8) -> Result<Ipv4Addr> {
        let address = Ipv4Addr::new(10, 8, 0, host);
        match &self.underlay {
            Underlay::Veth { device, mtu } => self.switch.connect(node, device, *mtu, address)?,
            Underlay::WireGuard => {
                let outer = Ipv4Addr::new(192, 168, 77, host);
                self.switch.connect(node, "eth0", 1500, outer)?;
                self.mesh.join(node, address, outer)?;
            }
        }
        Ok(address)
    }

    /// etcd.
    #[must_use]
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// etcd, to stop and start it.
    pub fn etcd_mut(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// The switch, to cut nodes off.
    #[must_use]
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// The WireGuard mesh, which is empty with a veth underlay.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Who signs the lab's certificates.
    ///
    /// # Errors
    /// When etcd wants no TLS.
    pub fn authority(&self) -> Result<&Authority> {
        self.authority.as_ref().context("a lab without TLS")
    }

    /// The lab's folder.
    #[must_use]
    pub fn folder(&self) -> &Arc<LabFolder> {
        &self.folder
    }

    /// The underlay.
    #[must_use]
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// All nodes that can run a daemon.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Node `number`, counted from 1 as the names are.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, number: u8) -> Result<&Arc<Node>> {
        let position = usize::from(number).checked_sub(1).context("nodes are counted from 1")?;
        self.nodes.get(position).with_context(|| format!("no node{number}"))
    }

    /// The underlay address of node `number`: 10.8.0.111 for the first.
    #[must_use]
    pub fn public_ip(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 8, 0, 110 + number)
    }

    /// The options the role would give the daemon of node `number`.
    #[must_use]
    pub fn options(&self, number: u8) -> Options {
        let mut options = Options::default();
        if self.authority.is_some() {
            let names = ["etcd-cafile", "etcd-certfile", "etcd-keyfile"];
            let files = names.iter().zip(CLIENT_FILES);
            options = files.fold(options, |options, (name, file)| options.flag(name, file));
        }
        options
            .flag("etcd-endpoints", self.etcd.endpoints())
            .flag("etcd-prefix", PREFIX)
            .flag("healthz-ip", "127.0.0.1")
            .flag("healthz-port", HEALTH_PORT.to_string())
            .flag("iface", self.underlay.device())
            .flag("public-ip", Self::public_ip(number).to_string())
            .flag("subnet-file", SUBNET_FILE)
    }

    /// Starts the daemon of node `number` with the role's options, without waiting for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&self, number: u8) -> Result<Flanneld> {
        Flanneld::start(self.node(number)?, &self.options(number))
    }

    /// Starts the daemon of node `number` and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn flanneld(&self, number: u8) -> Result<Flanneld> {
        let mut daemon = self.launch(number)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts the daemons of all nodes at once, waits until they are ready and every node holds exactly the entries for
    /// the others.
    ///
    /// # Errors
    /// When one does not become ready or the kernels do not converge.
    pub fn flanneld_everywhere(&self) -> Result<Vec<Flanneld>> {
        let count = u8::try_from(self.nodes.len()).context("too many nodes")?;
        let mut daemons = (1..=count).map(|number| self.launch(number)).collect::<Result<Vec<_>>>()?;
        for daemon in &mut daemons {
            daemon.wait_ready()?;
        }
        self.wait_converged(&daemons)?;
        Ok(daemons)
    }

    /// 500 pings a second from a new pod of one node to a new one of another, which end with their nodes.
    ///
    /// # Errors
    /// When the pods cannot be made or do not reach each other.
    pub fn ping(&self, from: u8, to: u8) -> Result<Ping> {
        let (from, to) = (Pod::attach(self.node(from)?, "from")?, Pod::attach(self.node(to)?, "to")?);
        Ping::start(&from, to.address(), "0.002")
    }

    /// The leases in etcd. Fails on a key that is not a vxlan lease.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        self.etcd.list(&format!("{PREFIX}/subnets/"))?.into_iter().map(Lease::parse).collect()
    }

    /// The lease of node `number`.
    ///
    /// # Errors
    /// When it has none or several.
    pub fn lease(&self, number: u8) -> Result<Lease> {
        let public_ip = Self::public_ip(number);
        let mut own = self.leases()?.into_iter().filter(|lease| lease.public_ip == public_ip);
        let found = own.next().with_context(|| format!("node{number} has no lease"))?;
        ensure!(own.next().is_none(), "node{number} has several leases");
        Ok(found)
    }

    /// Waits until the node of each daemon holds exactly what etcd's leases demand.
    ///
    /// # Errors
    /// When they do not; the error shows nodes and logs.
    pub fn wait_converged(&self, daemons: &[Flanneld]) -> Result<()> {
        for daemon in daemons {
            self.wait_node_converged(daemon)?;
        }
        Ok(())
    }

    /// Waits until the node of one daemon holds exactly what etcd's leases demand.
    ///
    /// # Errors
    /// When it does not; the error shows the node and the log.
    pub fn wait_node_converged(&self, daemon: &Flanneld) -> Result<()> {
        let what = "the kernel equals the leases in etcd";
        self.eventually(daemon, what, || self.ensure_node_converged(daemon))
    }

    /// Fails when the node of a daemon holds something else than etcd's leases demand now.
    ///
    /// # Errors
    /// When it does, or etcd does not answer.
    pub fn ensure_node_converged(&self, daemon: &Flanneld) -> Result<()> {
        let leases = self.leases()?;
        let node = daemon.node();
        let own = self.nodes.iter().position(|other| other.name() == node.name());
        let own = Self::public_ip(u8::try_from(own.context("a foreign node")? + 1)?);
        PeerState::expected(leases.iter().filter(|lease| lease.public_ip != own)).ensure_on(node, DEVICE)
    }

    /// [`eventually`] with the usual deadline; on failure the error holds what the daemon's node looks like and the end
    /// of the daemon's log.
    ///
    /// # Errors
    /// When it does not happen.
    pub fn eventually<T>(&self, daemon: &Flanneld, what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
        eventually(CONVERGENCE, what, look).map_err(|error| {
            let log = daemon.process().log_tail(40);
            // What failed comes first, then what there is to look at.
            anyhow!("{error:#}\n{}\n--- log of flanneld:\n{log}", daemon.node().dump())
        })
    }
}
