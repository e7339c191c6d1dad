//! The lab's own promises: isolation, nothing left behind, two labs side by side, and observers that see what they
//! should. No daemon is needed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::monitor::Recorder;
use netns_tests::{Lab, Spec, Underlay, eventually};

/// Links, mounts and processes of the host that a lab could leave behind.
fn host_traces() -> BTreeSet<String> {
    let links =
        fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().path().display().to_string());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = mounts.lines().map(str::to_owned).collect::<Vec<_>>();
    links.chain(mounts).collect()
}

#[test]
fn nodes_reach_each_other_and_etcd_and_nothing_shows_on_the_host() -> Result<()> {
    let before = host_traces();
    let lab = Lab::three_nodes()?;
    lab.node(1)?.run("ping -n -c 1 -W 2 10.8.0.113")?;
    assert_eq!(lab.etcd().get("/kubernetes-cluster/network/config")?.lease, 0);
    lab.node(1)?.write("/run/flannel/subnet.env", "one\n")?;
    assert!(!lab.node(2)?.exists("/run/flannel/subnet.env"));
    assert_ne!(lab.node(1)?.read("/etc/machine-id")?, lab.node(2)?.read("/etc/machine-id")?);
    assert_eq!(lab.node(1)?.run("hostname")?.trim(), "node1");
    assert_eq!(host_traces(), before);
    let folder = lab.folder().path().to_path_buf();
    assert!(folder.exists());
    drop(lab);
    assert!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

#[test]
fn wireguard_carries_the_underlay() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, underlay: Underlay::WireGuard, ..Spec::default() })?;
    let node = lab.node(1)?;
    node.run("ping -n -c 1 -W 5 10.8.0.112")?;
    let link = node.run("ip link show wg0")?;
    assert!(link.contains("POINTOPOINT") && link.contains("mtu 1420"), "{link}");
    lab.mesh().kill(node)?;
    assert!(node.run("ip link show wg0").is_err());
    lab.mesh().restart(node)?;
    node.run("ping -n -c 1 -W 5 10.8.0.112").map(drop)
}

#[test]
fn a_cut_node_keeps_its_carrier_and_an_unplugged_one_does_not() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let node = lab.node(1)?;
    lab.switch().cut(node)?;
    assert!(node.run("ping -n -c 1 -W 1 10.8.0.112").is_err());
    assert!(node.run("ip link show eth0")?.contains("LOWER_UP"));
    lab.switch().mend(node)?;
    // The neighbour may still count as unreachable, and the kernel tells of a carrier in its own time.
    let soon = Duration::from_secs(10);
    eventually(soon, "the node is reached again", || node.run("ping -n -c 1 -W 2 10.8.0.112"))?;
    lab.switch().unplug(node)?;
    eventually(soon, "no carrier", || {
        let shown = node.run("ip link show eth0")?;
        ensure!(shown.contains("NO-CARRIER"), "{shown}");
        Ok(())
    })?;
    lab.switch().plug(node)
}

#[test]
fn the_recorder_hears_a_change_and_reports_silence_otherwise() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let node = lab.node(1)?;
    let recorder = Recorder::start(node)?;
    assert_eq!(recorder.changes("eth0")?, Vec::<String>::new());
    node.run("ip route add 203.0.113.0/24 dev eth0")?;
    node.run("ip neigh add 203.0.113.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent")?;
    // Replacing a route by itself is no change to the kernel: it tells nobody.
    node.run("ip route replace 203.0.113.0/24 dev eth0")?;
    let changes = recorder.changes("eth0")?;
    assert_eq!(changes.len(), 2, "{changes:?}");
    Ok(())
}

#[test]
fn several_etcd_members_survive_the_loss_of_one() -> Result<()> {
    let mut lab = Lab::start(&Spec { nodes: 0, etcd_members: 3, ..Spec::default() })?;
    lab.etcd_mut().kill(1)?;
    eventually(Duration::from_secs(30), "a put with two members", || lab.etcd().put("/x", "1"))?;
    lab.etcd_mut().launch(1)?;
    lab.etcd().wait_healthy()
}

#[test]
fn a_killed_lab_leaves_no_process_and_no_folder() -> Result<()> {
    let program = netns_tests::binaries::lab()?;
    let mut child = std::process::Command::new(program)
        .args(["__hang"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("start a lab of its own")?;
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut said)?;
    let folder = said.trim().to_owned();
    assert!(processes_of(&folder) > 0);
    child.kill()?;
    child.wait()?;
    eventually(Duration::from_secs(30), "the killed lab's remains are gone", || {
        ensure!(processes_of(&folder) == 0, "processes are left");
        ensure!(!std::path::Path::new(&folder).exists(), "{folder} is left");
        Ok(())
    })
}

/// How many processes of the host have the folder in their command line.
fn processes_of(folder: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(folder)).count()
}
