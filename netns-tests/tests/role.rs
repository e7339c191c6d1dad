//! What the Ansible role installs works as it stands: the rendered units' command lines, and its README's variables as a
//! configuration file, over TLS with client certificates and with the network config in etcd's v2 store, where the role puts it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use netns_tests::lab::DEVICE;
use netns_tests::{Api, Flanneld, Lab, Node, Options, Spec, Underlay, binaries, observe};
use nix::sys::signal::Signal;

const UNITS: [&str; 2] = [
    include_str!("../fixtures/role/flanneld.service"),
    include_str!("../fixtures/role/flanneld-execstartpost.service"),
];
const README: &str = include_str!("../fixtures/role/readme-variables.yml");
const NETWORK_CONFIG: &str = include_str!("../fixtures/role/etcd-config.json");
const PROGRAM: &str = "/usr/local/sbin/flanneld";

/// Puts the daemon where the role does, without anybody else seeing it.
fn install(node: &Node) -> Result<()> {
    node.run("mount -t tmpfs none /usr/local/sbin")?;
    let inside = node.host_path(PROGRAM);
    fs::copy(binaries::flanneld()?, &inside).context("copy the daemon")?;
    Ok(fs::set_permissions(&inside, fs::Permissions::from_mode(0o750))?)
}

fn installed() -> Options {
    let mut options = Options::default();
    options.program = Some(PROGRAM.into());
    options
}

/// The command lines of a directive, continued lines joined.
fn commands(unit: &str, directive: &str) -> Vec<String> {
    let joined = unit.replace("\\\n", " ");
    let lines = joined.lines().filter_map(|line| line.strip_prefix(directive));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Starts what `ExecStart` says, between what `ExecStartPre` and `ExecStartPost` say.
fn start_unit(node: &std::sync::Arc<Node>, unit: &str) -> Result<Flanneld> {
    for command in commands(unit, "ExecStartPre=") {
        node.run(&command)?;
    }
    let line = commands(unit, "ExecStart=").remove(0);
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some(PROGRAM));
    // The lab's options are spelled and sorted as the role's are, so this is the same command line.
    let options = words.fold(installed(), |options, word| {
        let (name, value) = word.trim_start_matches('-').split_once('=').unwrap();
        options.flag(name, value)
    });
    let mut daemon = Flanneld::start(node, &options)?;
    daemon.wait_ready()?;
    let argv = fs::read_to_string(format!("/proc/{}/cmdline", daemon.process().pid()))?;
    assert_eq!(argv.trim_end_matches('\0').replace('\0', " "), line);
    for command in commands(unit, "ExecStartPost=") {
        node.run(&command)?;
    }
    Ok(daemon)
}

fn lab_of_the_role() -> Result<Lab> {
    let lab = Lab::start(&Spec {
        nodes: 2,
        underlay: Underlay::Veth { device: "wg0".to_owned(), mtu: 1420 },
        etcd_api: Api::V2,
        etcd_tls: true,
        network_config: NETWORK_CONFIG.trim_end().to_owned(),
        ..Spec::default()
    })?;
    lab.nodes().iter().try_for_each(|node| install(node))?;
    Ok(lab)
}

#[test]
fn the_role_s_units_and_its_readme_s_variables_run_as_they_stand() -> Result<()> {
    let lab = lab_of_the_role()?;
    let (first, second) = (lab.node(1)?, lab.node(2)?);

    // The README's interface is tap0: so is this node's. Only the endpoints come from elsewhere, as they do for the role.
    for line in ["down", "name tap0", "up"] {
        let device = if line == "up" { "tap0" } else { "wg0" };
        second.run(&format!("ip link set dev {device} {line}"))?;
    }
    second.write("/etc/flannel/flanneld.yml", README)?;
    let options = installed()
        .env("FLANNELD_CONFIG_FILE", "/etc/flannel/flanneld.yml")
        .flag("etcd-endpoints", lab.etcd().endpoints());
    let mut by_file = Flanneld::start(second, &options)?;
    by_file.wait_ready()?;
    assert!(Path::exists(&second.host_path("/run/flannel/subnet.env")));

    let mut before = None;
    for unit in UNITS {
        let daemon = start_unit(first, unit)?;
        lab.wait_node_converged(&daemon)?;
        lab.wait_node_converged(&by_file)?;
        assert_eq!(observe::mac(first, DEVICE)?, lab.lease(1)?.vtep_mac);
        let subnet = lab.lease(1)?.subnet;
        assert_eq!(before.replace(subnet.clone()).unwrap_or(subnet), lab.lease(1)?.subnet);
        let file = first.read("/run/flannel/subnet.env")?;
        assert!(file.ends_with("FLANNEL_MTU=1370\nFLANNEL_IPMASQ=true\n"), "{file}");
        daemon.stop(Signal::SIGTERM)?;
    }
    let offload = first.run(&format!("ethtool -k {DEVICE}"))?;
    assert!(offload.contains("tx-checksumming: off"), "ExecStartPost has found the device: {offload}");
    Ok(())
}
