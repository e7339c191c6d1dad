//! Labs that `demo --keep` left running: what is written about them, entering them, ending them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::eventually::eventually;
use crate::folder;
use crate::lab::Lab;
use crate::namespaces::Entry;
use crate::node::Node;
use crate::pod::Pod;

const STATE_FILE: &str = "kept.json";

/// What is needed to find a kept lab's nodes again.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// node name → number of its init process
    nodes: BTreeMap<String, u32>,
    /// pod name → node name
    pods: BTreeMap<String, String>,
}

/// Lets a lab outlive this process and writes down how to find it.
///
/// # Errors
/// When a holder is gone or the file cannot be written.
pub fn keep(lab: &Lab, pods: &[Pod]) -> Result<()> {
    let nodes = lab.nodes().iter().chain(lab.etcd().nodes()).chain([lab.switch().node()]);
    let mut state = State { nodes: BTreeMap::new(), pods: BTreeMap::new() };
    for node in nodes {
        state.nodes.insert(node.name().to_owned(), node.namespaces().init());
        node.namespaces().keep()?;
    }
    state.pods = pods.iter().map(|pod| (pod.name().to_owned(), pod.node().name().to_owned())).collect();
    let path = lab.folder().path().join(STATE_FILE);
    fs::write(&path, serde_json::to_string_pretty(&state)?).context("write the kept lab's state")?;
    lab.folder().keep()
}

/// Runs a command in a node or pod of the kept lab, on this terminal, and returns its exit code.
///
/// # Errors
/// When there is no such lab or node.
pub fn exec(place: &str, words: &[String]) -> Result<ExitCode> {
    let (folder, state) = the_kept_lab()?;
    let name = state.pods.get(place).map_or(place, String::as_str);
    let Some(&init) = state.nodes.get(name) else {
        let known: Vec<&String> = state.nodes.keys().chain(state.pods.keys()).collect();
        bail!("no {place} in the kept lab; there are {known:?}");
    };
    let node = Node::attach(&folder, name, init)?;
    let entry = if name == place { Entry::Node } else { node.open_netns(place)? };
    let (program, arguments) = words.split_first().context("no command given")?;
    let status = node.spawn(Command::new(program).args(arguments), &entry)?.wait()?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Ends every kept lab and removes its folder.
///
/// # Errors
/// When a process or folder does not go.
pub fn down() -> Result<()> {
    let kept = kept_labs()?;
    if kept.is_empty() {
        println!("no lab is kept running");
    }
    for (folder, state) in kept {
        for &init in state.nodes.values() {
            // Process 1 of a process namespace takes everything in it along.
            if belongs_to(init, &folder) {
                kill(Pid::from_raw(i32::try_from(init)?), Signal::SIGKILL).context("end a node")?;
            }
        }
        eventually(Duration::from_secs(10), "the nodes are gone", || {
            ensure!(!state.nodes.values().any(|&init| belongs_to(init, &folder)), "a node is still there");
            Ok(())
        })?;
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        println!("ended the lab in {}", folder.display());
    }
    Ok(())
}

fn the_kept_lab() -> Result<(PathBuf, State)> {
    let mut kept = kept_labs()?;
    ensure!(kept.len() < 2, "several labs are kept running; `cargo lab down` ends them all");
    kept.pop().context("no lab is kept running; start one with `cargo lab demo --keep`")
}

fn kept_labs() -> Result<Vec<(PathBuf, State)>> {
    let mut kept = Vec::new();
    for folder in folder::all()? {
        if let Ok(text) = fs::read_to_string(folder.join(STATE_FILE)) {
            let state = serde_json::from_str(&text);
            kept.push((folder.clone(), state.with_context(|| format!("the state in {}", folder.display()))?));
        }
    }
    Ok(kept)
}

/// Whether a process is a node's init of the lab in `folder`: numbers are used again, command lines are not.
fn belongs_to(pid: u32, folder: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(&format!("--lab={}", folder.display()))
}
