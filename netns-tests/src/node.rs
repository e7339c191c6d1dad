//! A node: a machine made of namespaces, and how to run commands and reach files in it.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::folder::LabFolder;
use crate::holder::HoldArgs;
use crate::namespaces::{Entry, Namespaces};

/// A machine made of namespaces. It ends when this value is dropped.
#[derive(Debug)]
pub struct Node {
    name: String,
    folder: PathBuf,
    // Order matters: the namespaces end before the lab's folder is given up.
    namespaces: Namespaces,
    _lab: Option<Arc<LabFolder>>,
}

impl Node {
    /// Starts a node with a machine id nobody else has.
    ///
    /// # Errors
    /// When the namespaces or mounts cannot be made.
    pub fn start(lab: &Arc<LabFolder>, name: &str) -> Result<Arc<Self>> {
        Self::start_with_machine_id(lab, name, &random_hex())
    }

    /// Starts a node with the given `/etc/machine-id`, as a cloned disk has it.
    ///
    /// # Errors
    /// When the namespaces or mounts cannot be made.
    pub fn start_with_machine_id(lab: &Arc<LabFolder>, name: &str, machine_id: &str) -> Result<Arc<Self>> {
        Self::start_as(lab, name, machine_id, false)
    }

    /// Starts a node whose process 1 is systemd ([`crate::systemd`]), without waiting for its boot.
    ///
    /// # Errors
    /// When the namespaces or mounts cannot be made.
    pub fn start_with_systemd(lab: &Arc<LabFolder>, name: &str) -> Result<Arc<Self>> {
        Self::start_as(lab, name, &random_hex(), true)
    }

    fn start_as(lab: &Arc<LabFolder>, name: &str, machine_id: &str, systemd: bool) -> Result<Arc<Self>> {
        let folder = lab.path().join(name);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let args = HoldArgs {
            lab: lab.path().to_path_buf(),
            name: name.to_owned(),
            machine_id: machine_id.to_owned(),
            systemd,
        };
        let namespaces = Namespaces::create(&args)?;
        Ok(Arc::new(Self { name: name.to_owned(), folder, namespaces, _lab: Some(Arc::clone(lab)) }))
    }

    /// Opens a node that another lab command left running.
    ///
    /// # Errors
    /// When it is gone.
    pub fn attach(lab: &Path, name: &str, init: u32) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            folder: lab.join(name),
            namespaces: Namespaces::attach(init)?,
            _lab: None,
        })
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder of its own on the host, visible inside under the same path: logs, sockets, keys.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its namespaces.
    #[must_use]
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Runs a line of words split at blanks and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or does not end with 0; the error holds its standard error.
    pub fn run(&self, line: &str) -> Result<String> {
        self.run_in(&Entry::Node, line)
    }

    /// Like [`Node::run`], in one of the node's other entries (a pod).
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn run_in(&self, entry: &Entry, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().context("an empty command line")?);
        command.args(words);
        let output = self.output(&mut command, entry)?;
        ensure!(
            output.status.success(),
            "{}: `{line}` ended with {}: {}{}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command to its end, whatever its exit code, and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, command: &mut Command, entry: &Entry) -> Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(command, entry)?;
        child.wait_with_output().context("wait for a command")
    }

    /// Starts a command and leaves it running.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command, entry: &Entry) -> Result<Child> {
        self.namespaces.spawn(command, entry).with_context(|| format!("node {}", self.name))
    }

    /// Runs a command that prints JSON, e.g. `ip -j -d link show flannel.1`. No output counts as an empty list, which
    /// is what `ip -j` means by it.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, line: &str) -> Result<Value> {
        let text = self.run(line)?;
        if text.trim().is_empty() {
            return Ok(Value::Array(Vec::new()));
        }
        serde_json::from_str(&text).with_context(|| format!("{}: the output of `{line}`", self.name))
    }

    /// Runs `work` on a thread inside the node's network namespace.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.namespaces.in_network(&Entry::Node, work)
    }

    /// How a path inside the node is reached from the host.
    #[must_use]
    pub fn host_path(&self, inside: &str) -> PathBuf {
        self.namespaces.host_path(inside)
    }

    /// Reads a file of the node.
    ///
    /// # Errors
    /// When it is not there or not text.
    pub fn read(&self, inside: &str) -> Result<String> {
        fs::read_to_string(self.host_path(inside)).with_context(|| format!("{}: read {inside}", self.name))
    }

    /// Writes a file of the node, making its folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, inside: &str, content: &str) -> Result<()> {
        let path = self.host_path(inside);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("{}: make {}", self.name, folder.display()))?;
        }
        fs::write(path, content).with_context(|| format!("{}: write {inside}", self.name))
    }

    /// Says whether a path exists in the node.
    #[must_use]
    pub fn exists(&self, inside: &str) -> bool {
        self.host_path(inside).exists()
    }

    /// Opens the network namespace that `ip netns add NAME` made inside the node.
    ///
    /// # Errors
    /// When there is none.
    pub fn open_netns(&self, name: &str) -> Result<Entry> {
        let path = self.host_path(&format!("/run/netns/{name}"));
        let file = File::open(&path).with_context(|| format!("{}: open netns {name}", self.name))?;
        Ok(Entry::Pod(Arc::new(file)))
    }

    /// What a person would look at first: addresses, routes, neighbours, FDB, rules.
    #[must_use]
    pub fn dump(&self) -> String {
        let commands = [
            "ip -d address",
            "ip -d route show table all type unicast",
            "ip neigh show nud all",
            "bridge fdb show",
            "iptables-save",
            "cat /run/flannel/subnet.env",
        ];
        let mut text = String::new();
        for line in commands {
            let shown = self.run(line).unwrap_or_else(|error| format!("{error:#}"));
            text.push_str(&format!("--- {}: {line}\n{}\n", self.name, shown.trim_end()));
        }
        text
    }
}

/// 32 hex digits that differ from call to call. Not for secrets: it takes the seed of a standard hash map.
#[must_use]
pub fn random_hex() -> String {
    format!("{:016x}{:016x}", RandomState::new().build_hasher().finish(), random_u64())
}

/// A number that differs from call to call.
#[must_use]
pub fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}
