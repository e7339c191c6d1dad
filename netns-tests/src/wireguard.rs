//! The underlay of the first users: a full mesh of wireguard-go processes, one `wg0` a node.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::eventually::eventually;
use crate::namespaces::Entry;
use crate::node::Node;
use crate::process::Process;

const PORT: u16 = 51820;
const SOCKET: &str = "/run/wireguard/wg0.sock";
const START: Duration = Duration::from_secs(10);

/// All nodes of the mesh.
#[derive(Debug, Default)]
pub struct Mesh {
    members: Mutex<Vec<Member>>,
}

#[derive(Debug)]
struct Member {
    node: Arc<Node>,
    public_key: String,
    inner: Ipv4Addr,
    outer: Ipv4Addr,
    process: Option<Process>,
}

impl Mesh {
    /// Gives `node` a `wg0` with address `inner`/24; packets travel to its address `outer`. The members so far learn of
    /// it.
    ///
    /// # Errors
    /// When wireguard-go or `wg` fails.
    pub fn join(&self, node: &Arc<Node>, inner: Ipv4Addr, outer: Ipv4Addr) -> Result<()> {
        let key_file = node.folder().join("wg0.key");
        let private_key = node.run("wg genkey")?;
        fs::write(&key_file, private_key).context("write the WireGuard key")?;
        let public_key = public_key(node, &key_file)?;
        let mut members = self.members();
        let mut member = Member { node: Arc::clone(node), public_key, inner, outer, process: None };
        member.start(&members)?;
        for other in members.iter() {
            other.learn(&member)?;
        }
        members.push(member);
        Ok(())
    }

    /// Kills the wireguard-go of a node: its `wg0` goes, and everything that sits on it.
    ///
    /// # Errors
    /// When the node is no member or nothing runs there.
    pub fn kill(&self, node: &Node) -> Result<()> {
        let mut members = self.members();
        let member = members.iter_mut().find(|member| member.node.name() == node.name());
        member.and_then(|member| member.process.take()).context("no wireguard-go runs there")?.kill()?;
        node.run(&format!("rm -f {SOCKET}")).map(drop)
    }

    /// Starts the wireguard-go of a node again, with the same key and address.
    ///
    /// # Errors
    /// When the node is no member or the programs fail.
    pub fn restart(&self, node: &Node) -> Result<()> {
        self.restart_with(node, None)
    }

    /// The same with another address, of which the other members learn.
    ///
    /// # Errors
    /// As [`Mesh::restart`].
    pub fn restart_as(&self, node: &Node, inner: Ipv4Addr) -> Result<()> {
        self.restart_with(node, Some(inner))
    }

    fn restart_with(&self, node: &Node, inner: Option<Ipv4Addr>) -> Result<()> {
        let mut members = self.members();
        let position = members.iter().position(|member| member.node.name() == node.name());
        let mut member = members.swap_remove(position.context("not in the mesh")?);
        let mut started = member.start_at(inner, &members);
        if inner.is_some() && started.is_ok() {
            started = members.iter().try_for_each(|other| other.learn(&member));
        }
        members.push(member);
        started
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    fn start_at(&mut self, inner: Option<Ipv4Addr>, others: &[Self]) -> Result<()> {
        self.inner = inner.unwrap_or(self.inner);
        self.start(others)
    }

    fn start(&mut self, others: &[Self]) -> Result<()> {
        let mut command = Command::new("wireguard-go");
        command.args(["-f", "wg0"]).env("LOG_LEVEL", "error");
        let mut process = Process::start(&self.node, "wireguard", &mut command)?;
        let key_file = self.node.folder().join("wg0.key");
        eventually(START, "wireguard-go listens", || {
            process.ensure_running()?;
            ensure!(listens(&self.node)?, "no control socket");
            Ok(())
        })?;
        self.node.run(&format!("wg set wg0 listen-port {PORT} private-key {}", key_file.display()))?;
        self.process = Some(process);
        for other in others {
            self.learn(other)?;
        }
        self.node.run(&format!("ip address add {}/24 dev wg0", self.inner))?;
        self.node.run("ip link set wg0 up").map(drop)
    }

    fn learn(&self, other: &Self) -> Result<()> {
        let Self { public_key, inner, outer, .. } = other;
        let line = format!("wg set wg0 peer {public_key} allowed-ips {inner}/32 endpoint {outer}:{PORT}");
        self.node.run(&line).map(drop)
    }
}

/// `wg pubkey < FILE`
fn public_key(node: &Node, key_file: &Path) -> Result<String> {
    let mut command = Command::new("wg");
    command.arg("pubkey").stdin(File::open(key_file)?).stdout(Stdio::piped());
    let output = node.spawn(&mut command, &Entry::Node)?.wait_with_output()?;
    ensure!(output.status.success(), "wg pubkey ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Whether the control socket accepts connections. `wg` must not try before: it takes a socket that refuses for a dead
/// one and removes its file.
fn listens(node: &Node) -> Result<bool> {
    const ACCEPTS: &str = " 00010000 ";
    let sockets = node.run("cat /proc/net/unix")?;
    Ok(sockets.lines().any(|line| line.ends_with("wg0.sock") && line.contains(ACCEPTS)))
}
