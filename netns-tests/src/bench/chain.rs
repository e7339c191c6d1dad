//! What a container runtime waits for when a pod begins and ends: the plugin with the real `bridge` behind it, beside `bridge` called
//! directly with the configuration that the plugin hands it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::plugin::SUBNET_ENV;
use super::report::Results;
use super::sample::ms;
use crate::cni::{Attachment, ConfigList, DEBIAN_PLUGINS};
use crate::flanneld::SUBNET_FILE;
use crate::lab::{Lab, Spec};

/// The column of `bridge` called directly.
pub(super) const BRIDGE: &str = "floor: bridge";
/// Calls of each kind that are measured.
const CALLS: usize = 30;

/// Measures ADD and DEL of each plugin: name and path.
pub(super) fn measure(plugins: &[(String, PathBuf)], results: &mut Results) -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let node = lab.node(1)?;
    node.write(SUBNET_FILE, SUBNET_ENV)?;
    node.run("ip netns add pod")?;
    let attachment = Attachment {
        container: "chain".to_owned(),
        netns: "/run/netns/pod".to_owned(),
        device: "eth0".to_owned(),
        capabilities: Map::new(),
    };
    let mut chains = vec![(BRIDGE.to_owned(), directly())];
    for (name, program) in plugins {
        chains.push((name.clone(), through(program)?));
    }
    // The first of all makes the bridge, and each finds its files in no cache.
    for round in 0..=CALLS {
        for (name, chain) in &chains {
            let start = Instant::now();
            chain.add(node, &attachment)?;
            let added = Instant::now();
            chain.del(node, &attachment)?;
            let times = [("ADD", added - start), ("DEL", added.elapsed())];
            for (verb, took) in times.into_iter().filter(|_| round > 0) {
                results.add(&format!("CNI {verb}, the whole chain to bridge"), "ms", name, ms(took));
            }
        }
    }
    Ok(())
}

fn directly() -> ConfigList {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.200.17.0/24" }]],
        "routes": [{ "dst": "10.200.0.0/16" }],
    });
    let bridge = json!({
        "type": "bridge", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false, "mtu": 1450,
        "ipam": ipam,
    });
    ConfigList::new(list("directly", &bridge), &[DEBIAN_PLUGINS])
}

fn through(program: &Path) -> Result<ConfigList> {
    let text = |part: Option<&std::ffi::OsStr>| Some(part?.to_str()?.to_owned());
    let (folder, kind) = (text(program.parent().map(Path::as_os_str)), text(program.file_name()));
    let (folder, kind) =
        folder.zip(kind).with_context(|| format!("no folder and name in {}", program.display()))?;
    let plugin = json!({ "type": kind, "delegate": { "isDefaultGateway": true, "hairpinMode": true } });
    Ok(ConfigList::new(list("through", &plugin), &[&folder, DEBIAN_PLUGINS]))
}

fn list(name: &str, plugin: &Value) -> Value {
    json!({ "cniVersion": "0.3.1", "name": name, "plugins": [plugin] })
}
