//! TX checksum offload of the device: what option and network config order, and what becomes of a later `ethtool -K`. Judged by the
//! kernel's own feature flags (`ethtool -k`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use anyhow::{Context, Result, ensure};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::{Flanneld, Lab, Node, Spec, lease};
use nix::sys::signal::Signal;

/// A peer whose route tells when the daemon has looked.
const PEER: &str = "10.200.201.0/24";

/// What `ethtool -k` says: `on` or `off`.
fn offload(node: &Node) -> Result<String> {
    let shown = node.run(&format!("ethtool -k {DEVICE}"))?;
    let line = shown.lines().find_map(|line| line.strip_prefix("tx-checksumming: "));
    Ok(line.context("no line tx-checksumming")?.to_owned())
}

fn started(lab: &Lab, flags: &[(&str, &str)]) -> Result<Flanneld> {
    let options = flags.iter().fold(lab.options(1), |options, (name, value)| options.flag(name, *value));
    let mut daemon = Flanneld::start(lab.node(1)?, &options)?;
    daemon.wait_ready()?;
    wait_for_peer(lab, &daemon)?;
    Ok(daemon)
}

fn wait_for_peer(lab: &Lab, daemon: &Flanneld) -> Result<()> {
    lab.eventually(daemon, "the peer's route", || {
        let routes = daemon.node().run(&format!("ip route show {PEER} dev {DEVICE}"))?;
        ensure!(!routes.trim().is_empty(), "there is none");
        Ok(())
    })
}

/// Somebody switches the offload. Afterwards the daemon has seen it: notifications come in order, so once a route taken away
/// later is back, what happened before is known.
fn switch(lab: &Lab, daemon: &Flanneld, state: &str) -> Result<()> {
    daemon.node().run(&format!("ethtool -K {DEVICE} tx {state}"))?;
    daemon.node().run(&format!("ip route del {PEER} dev {DEVICE}"))?;
    wait_for_peer(lab, daemon)
}

/// Somebody deletes the device; returns once it is back with everything on it.
fn delete_device(lab: &Lab, daemon: &Flanneld) -> Result<()> {
    let index = |node: &Node| node.run(&format!("cat /sys/class/net/{DEVICE}/ifindex"));
    let before = index(daemon.node())?;
    daemon.node().run(&format!("ip link del {DEVICE}"))?;
    lab.eventually(daemon, "another device", || {
        ensure!(index(daemon.node())? != before, "the former one is still there");
        Ok(())
    })?;
    wait_for_peer(lab, daemon)
}

/// `auto` on the kernel these tests run on. Which kernels are old is a table in `model::tx_checksum`.
fn auto() -> Result<&'static str> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let series = (numbers.next().context("major")?, numbers.next().context("minor")?);
    Ok(if series < (5, 8) { "off" } else { "on" })
}

#[test]
fn orders_are_carried_out_and_a_later_switch_survives_the_device() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    lab.etcd().put(
        &format!("{PREFIX}/subnets/10.200.201.0-24"),
        &lease::value("10.8.0.112", "02:00:00:00:00:0a"),
    )?;
    let node = lab.node(1)?;
    for (option, expected) in [("auto", auto()?), ("keep", "on"), ("on", "on"), ("off", "off")] {
        let daemon = started(&lab, &[("vxlan-tx-checksum", option)])?;
        assert_eq!(offload(node)?, expected, "{option}: a new device");
        delete_device(&lab, &daemon)?;
        assert_eq!(offload(node)?, expected, "{option}: made anew");
        let other = if expected == "on" { "off" } else { "on" };
        switch(&lab, &daemon, other)?;
        assert_eq!(offload(node)?, other, "{option}: an operator's switch is left alone");
        delete_device(&lab, &daemon)?;
        assert_eq!(offload(node)?, other, "{option}: and restored on the device made anew");
        assert!(daemon.stop(Signal::SIGTERM)?.success());
        let daemon = started(&lab, &[("vxlan-tx-checksum", option)])?;
        let after = if matches!(option, "on" | "off") || expected == "off" { expected } else { other };
        assert_eq!(
            offload(node)?,
            after,
            "{option}: an order counts again at the next start, no order does not"
        );
        assert!(daemon.stop(Signal::SIGTERM)?.success());
        node.run(&format!("ip link del {DEVICE}"))?;
    }
    Ok(())
}

#[test]
fn the_network_config_orders_for_nodes_that_are_not_told_themselves() -> Result<()> {
    let network_config = r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","TxChecksum":"off"}}"#;
    let lab = Lab::start(&Spec { nodes: 1, network_config: network_config.to_owned(), ..Spec::default() })?;
    lab.etcd().put(
        &format!("{PREFIX}/subnets/10.200.201.0-24"),
        &lease::value("10.8.0.112", "02:00:00:00:00:0a"),
    )?;
    for (flags, expected) in [(&[][..], "off"), (&[("vxlan-tx-checksum", "on")], "on")] {
        let daemon = started(&lab, flags)?;
        assert_eq!(offload(daemon.node())?, expected, "{flags:?}");
        assert!(daemon.stop(Signal::SIGTERM)?.success());
    }
    Ok(())
}
