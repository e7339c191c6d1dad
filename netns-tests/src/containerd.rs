//! Debian's containerd and its client `ctr`, as a client of the plugin that nobody here wrote. Without its CRI part.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::eventually::eventually;
use crate::namespaces::Entry;
use crate::node::Node;
use crate::process::Process;
use crate::{binaries, cgroups, containers};

const SOCKET: &str = "/run/containerd/containerd.sock";
const CONFIG_FILE: &str = "/etc/containerd/config.toml";
/// The plugin `opt` would make a folder in `/opt`, which a node shares with the host; CRI wants its own CNI set-up.
const CONFIG: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
"#;
const DEADLINE: Duration = Duration::from_secs(20);

/// A running containerd. Its containers end with the node.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    cgroup_parent: String,
}

impl Containerd {
    /// Prepares a node, starts containerd there and waits until it answers.
    ///
    /// # Errors
    /// When it is not unpacked or does not answer.
    pub fn start(node: &Arc<Node>) -> Result<Self> {
        containers::prepare(node)?;
        node.write(CONFIG_FILE, CONFIG)?;
        let mut command = command("containerd")?;
        let process = Process::start(node, "containerd", command.args(["--config", CONFIG_FILE]))?;
        let containerd = Self { process, cgroup_parent: cgroups::parent_of(node)? };
        eventually(DEADLINE, "containerd answers", || containerd.ctr(&["version"]))
            .with_context(|| format!("its log:\n{}", containerd.process.log_tail(30)))?;
        Ok(containerd)
    }

    /// `ctr WORD…`: its standard output.
    ///
    /// # Errors
    /// When it fails; the error holds its standard error.
    pub fn ctr(&self, words: &[&str]) -> Result<String> {
        let node = self.process.node();
        let output = node.output(ctr()?.args(words), &Entry::Node)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = words.join(" ");
        ensure!(output.status.success(), "{}: ctr {line}: {}", node.name(), stderr.trim());
        String::from_utf8(output.stdout).context("ctr's output")
    }

    /// `ctr run --rm --cni`, to its end: what the container printed.
    ///
    /// # Errors
    /// When ctr or the command in the container fails.
    pub fn run(&self, name: &str, command: &[&str]) -> Result<String> {
        let cgroup = self.cgroup(name);
        self.ctr(&[&run_words(&cgroup, name), command].concat())
    }

    /// The same, and leaves it running.
    ///
    /// # Errors
    /// When ctr cannot be started.
    pub fn launch(&self, name: &str, command: &[&str]) -> Result<Process> {
        let cgroup = self.cgroup(name);
        let mut ctr = ctr()?;
        ctr.args(run_words(&cgroup, name)).args(command);
        Process::start(self.process.node(), &format!("ctr-{name}"), &mut ctr)
    }

    fn cgroup(&self, name: &str) -> String {
        format!("{}/{name}", self.cgroup_parent)
    }
}

fn run_words<'a>(cgroup: &'a str, name: &'a str) -> [&'a str; 8] {
    ["run", "--rm", "--cni", "--cgroup", cgroup, "--rootfs", containers::ROOT, name]
}

fn ctr() -> Result<Command> {
    let mut command = command("ctr")?;
    command.args(["--address", SOCKET]);
    Ok(command)
}

/// A program of the unpacked package, which finds its shims beside itself and runc where Debian has it.
fn command(name: &str) -> Result<Command> {
    let program = binaries::unpacked(&format!("usr/bin/{name}"))?;
    let own = binaries::unpacked_packages().join("usr/bin");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", own.display());
    let mut command = Command::new(program);
    command.env_clear().env("PATH", path);
    Ok(command)
}
