//! A small container runtime's half of CNI: runs a conflist as libcni does.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::binaries;
use crate::namespaces::Entry;
use crate::node::Node;

/// Where Debian puts the plugins.
pub const DEBIAN_PLUGINS: &str = "/usr/lib/cni";
/// The conflist's place in a node.
pub const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";
/// The conflist the role writes.
pub const ROLE_CONFLIST: &str = include_str!("../fixtures/role/10-flannel.conflist");

/// What a container runtime says about one attachment.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_NETNS`, a path inside the node
    pub netns: String,
    /// `CNI_IFNAME`
    pub device: String,
    /// values for the capabilities that plugins declare, e.g. `{"portMappings": […]}`
    pub capabilities: Map<String, Value>,
}

/// A network configuration list and the folders its plugins are in.
#[derive(Debug, Clone)]
pub struct ConfigList {
    list: Value,
    folders: Vec<String>,
}

impl ConfigList {
    /// Reads the conflist of a node.
    ///
    /// # Errors
    /// When it is not there or not JSON, or when the CNI plugin cannot be built.
    pub fn of_node(node: &Node) -> Result<Self> {
        let list = serde_json::from_str(&node.read(CONFLIST)?).context("the conflist")?;
        let own = binaries::cni_folder()?.to_string_lossy().into_owned();
        Ok(Self { list, folders: vec![own, DEBIAN_PLUGINS.to_owned()] })
    }

    /// This list, whose plugins are looked for in these folders.
    #[must_use]
    pub fn new(list: Value, folders: &[&str]) -> Self {
        Self { list, folders: folders.iter().map(|folder| (*folder).to_owned()).collect() }
    }

    /// Runs ADD through the plugins, each getting its predecessor's result, and returns the last result.
    ///
    /// # Errors
    /// A plugin's error, with its code and message.
    pub fn add(&self, node: &Node, attachment: &Attachment) -> Result<Value> {
        let mut result = Value::Null;
        for plugin in self.plugins()? {
            let config = self.config(plugin, attachment, &result)?;
            result = self.call(node, "ADD", attachment, &config)?;
        }
        Ok(result)
    }

    /// Runs DEL through the plugins in reverse order. The role's conflist is of version 0.3.1, which passes no result.
    ///
    /// # Errors
    /// A plugin's error, with its code and message.
    pub fn del(&self, node: &Node, attachment: &Attachment) -> Result<()> {
        for plugin in self.plugins()?.iter().rev() {
            let config = self.config(plugin, attachment, &Value::Null)?;
            self.call(node, "DEL", attachment, &config)?;
        }
        Ok(())
    }

    fn plugins(&self) -> Result<&Vec<Value>> {
        self.list.get("plugins").and_then(Value::as_array).context("the conflist lists no plugins")
    }

    /// What a plugin reads on its standard input: its entry with the list's name and version, the previous result, and
    /// the capabilities it declares.
    fn config(&self, plugin: &Value, attachment: &Attachment, previous: &Value) -> Result<Value> {
        let mut config = plugin.as_object().context("a plugin's entry is no object")?.clone();
        for key in ["name", "cniVersion"] {
            let value = self.list.get(key).with_context(|| format!("the conflist has no {key}"))?;
            config.insert(key.to_owned(), value.clone());
        }
        if !previous.is_null() {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        let declared = plugin.get("capabilities").and_then(Value::as_object).cloned().unwrap_or_default();
        let given: Map<String, Value> = attachment
            .capabilities
            .iter()
            .filter(|(name, _)| declared.get(*name) == Some(&Value::Bool(true)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !given.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(given));
        }
        Ok(Value::Object(config))
    }

    fn call(&self, node: &Node, verb: &str, attachment: &Attachment, config: &Value) -> Result<Value> {
        let kind = config.get("type").and_then(Value::as_str).context("a plugin without a type")?;
        let paths = self.folders.iter().map(|folder| Path::new(folder).join(kind));
        let program = paths.into_iter().find(|path| path.is_file());
        let program = program.with_context(|| format!("no CNI plugin {kind} in {:?}", self.folders))?;
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &attachment.container)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", &attachment.device)
            .env("CNI_PATH", self.folders.join(":"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = node.spawn(&mut command, &Entry::Node)?;
        child.stdin.take().context("no standard input")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {verb} of {kind} failed: {}{}", node.name(), said.trim(), stderr.trim());
        }
        if said.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&said).with_context(|| format!("what {kind} printed: {said}"))
    }
}

/// `{"portMappings": [{"hostPort": …, "containerPort": …, "protocol": "tcp"}]}`
#[must_use]
pub fn port_mapping(host: u16, container: u16) -> Map<String, Value> {
    let mapping = json!([{ "hostPort": host, "containerPort": container, "protocol": "tcp" }]);
    Map::from_iter([("portMappings".to_owned(), mapping)])
}
