//! Debian's podman with its CNI backend, as a client of the plugin that nobody here wrote.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::namespaces::Entry;
use crate::node::Node;
use crate::{binaries, cgroups, containers};

/// Each line is there because podman fails without it in a node that has no systemd and not every capability.
/// `default_network` is not set on purpose: should podman not like the conflist, it would make a bridge network of that
/// name by itself, and a test could pass without flannel.
const CONTAINERS_CONF: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
"#;
const STORAGE_CONF: &str = r#"[storage]
driver = "vfs"
graphroot = "/run/podman/graph"
runroot = "/run/podman/run"
"#;

/// podman in a node. Its containers end with the node.
#[derive(Debug)]
pub struct Podman {
    node: Arc<Node>,
    cgroup_parent: String,
}

impl Podman {
    /// Prepares a node for podman.
    ///
    /// # Errors
    /// When podman is not unpacked or the node cannot be prepared.
    pub fn on(node: &Arc<Node>) -> Result<Self> {
        containers::prepare(node)?;
        node.write("/etc/containers/containers.conf", CONTAINERS_CONF)?;
        node.write("/etc/containers/storage.conf", STORAGE_CONF)?;
        let podman = Self { node: Arc::clone(node), cgroup_parent: cgroups::parent_of(node)? };
        let backend = podman.call(&["info", "--format", "{{.Host.NetworkBackend}}"])?;
        ensure!(backend.trim() == "cni", "podman's network backend is {backend}");
        Ok(podman)
    }

    /// `podman WORD…`: its standard output.
    ///
    /// # Errors
    /// When it fails; the error holds its standard error.
    pub fn call(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(binaries::unpacked("usr/bin/podman")?);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(words);
        let output = self.node.output(&mut command, &Entry::Node)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = words.join(" ");
        ensure!(output.status.success(), "{}: podman {line}: {}", self.node.name(), stderr.trim());
        String::from_utf8(output.stdout).context("podman's output")
    }

    /// `podman run --rm` in flannel's network, to its end.
    ///
    /// # Errors
    /// When podman or the command in the container fails.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Result<String> {
        self.call(&self.words(&["run", "--rm"], options, command))
    }

    /// `podman run -d` in flannel's network.
    ///
    /// # Errors
    /// When podman fails.
    pub fn start(&self, name: &str, options: &[&str], command: &[&str]) -> Result<()> {
        self.call(&self.words(&["run", "-d", "--name", name], options, command)).map(drop)
    }

    /// `podman exec NAME sh -c SCRIPT`.
    ///
    /// # Errors
    /// When the script fails.
    pub fn exec(&self, name: &str, script: &str) -> Result<String> {
        self.call(&["exec", name, "/bin/sh", "-c", script])
    }

    fn words<'a>(&'a self, run: &[&'a str], options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        let network = ["--network", "cni0", "--cgroup-parent", &self.cgroup_parent];
        [run, &network, options, &["--rootfs", containers::ROOT], command].concat()
    }
}
