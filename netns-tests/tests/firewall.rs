//! The daemon puts the firewall's rules into force before it is ready, keeps them, and takes them back when told to. What the
//! rules do to packets is tested beside them, in `tests/firewall_netns.rs` of the package flanneld.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use netns_tests::lab::PREFIX;
use netns_tests::{Flanneld, Lab, Node, Spec, lease};
use nix::sys::signal::Signal;

const RULES: &str = "nft list table ip flannel-ipv4";

fn masquerading(lab: &Lab, on: &str) -> Result<Flanneld> {
    let options = lab.options(1).flag("ip-masq", on).flag("firewall", "nftables");
    let mut daemon = Flanneld::start(lab.node(1)?, &options)?;
    daemon.wait_ready()?;
    Ok(daemon)
}

/// A daemon that did not say that it is ready without the rules: a loaded machine may have no time for them within a second.
fn in_time(lab: &Lab) -> Result<Flanneld> {
    for _ in 0..10 {
        let daemon = masquerading(lab, "true")?;
        if !daemon.log_of_this_start().contains("the firewall rules are not in force yet") {
            return Ok(daemon);
        }
        daemon.stop(Signal::SIGKILL)?;
        lab.node(1)?.run("nft flush ruleset")?;
    }
    bail!("ready without the rules ten times")
}

#[test]
fn rules_stand_when_ready_are_repaired_and_follow_the_option() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let node = lab.node(1)?;
    let daemon = in_time(&lab)?;
    let rules = node.run(RULES)?;
    let subnet = lab.lease(1)?.subnet;
    assert!(rules.contains("masquerade fully-random") && rules.contains(&subnet), "{rules}");
    assert!(node.read("/run/flannel/subnet.env")?.ends_with("FLANNEL_IPMASQ=true\n"));
    node.run("nft flush ruleset")?;
    lab.eventually(&daemon, "the rules again", || {
        let now = node.run(RULES)?;
        ensure!(now == rules, "{now}");
        ensure!(daemon.metric("flanneld_repairs_total{kind=\"firewall\"}")? > 0.0, "no repair is counted");
        Ok(())
    })?;
    daemon.stop(Signal::SIGTERM)?;
    assert_eq!(node.run(RULES)?, rules, "stopping leaves them");
    let daemon = masquerading(&lab, "false")?;
    lab.eventually(&daemon, "no masquerade rule any more", || {
        let now = node.run(RULES)?;
        ensure!(!now.contains("masquerade fully-random") && now.contains("accept"), "{now}");
        Ok(())
    })
}

/// A node whose `iptables` is in use, so that `auto` takes that variant; nothing done: nftables.
fn node_with(firewall: &str) -> Result<Lab> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    if firewall != "nftables" {
        lab.node(1)?.run(&format!("{firewall} -A INPUT -i lo -j ACCEPT"))?;
    }
    Ok(lab)
}

/// The number the node gave to its last process or thread. Reading it takes one itself.
fn last_process(node: &Node) -> Result<u64> {
    Ok(node.run("cat /proc/sys/kernel/ns_last_pid")?.trim().parse()?)
}

/// A node has process numbers of its own, given one after the other: whatever is started there shows.
#[test]
fn an_idle_daemon_starts_no_program_and_with_legacy_one_a_period() -> Result<()> {
    for (firewall, reason) in [
        ("nftables", "nftables (no installed iptables has rules)"),
        ("iptables-nft", "iptables-nft (the host has rules in iptables-nft)"),
        ("iptables-legacy", "iptables-legacy (the host has rules in iptables-legacy)"),
    ] {
        let lab = node_with(firewall)?;
        let node = lab.node(1)?;
        let own = last_process(node)?;
        let own = last_process(node)? - own;
        let options = lab.options(1).flag("ip-masq", "true").flag("iptables-resync", "1");
        let mut daemon = Flanneld::start(node, &options)?;
        daemon.wait_ready()?;
        daemon.wait_rules()?;
        assert!(daemon.process().log().contains(reason), "{}", daemon.process().log());
        let (before, start) = (last_process(node)?, Instant::now());
        // The time itself is what is measured.
        std::thread::sleep(Duration::from_millis(3_500));
        let started = last_process(node)? - before - own;
        let periods = start.elapsed().as_secs();
        println!("{firewall}: {started} processes in {periods} periods");
        if firewall == "iptables-legacy" {
            assert!((1..=periods + 1).contains(&started), "{started} processes in {periods} periods");
        } else {
            assert_eq!(started, 0, "{firewall}");
        }
        daemon.process_mut().ensure_running()?;
    }
    Ok(())
}

#[test]
fn a_lock_held_for_a_minute_delays_the_rules_and_nothing_else() -> Result<()> {
    let lab = node_with("iptables-legacy")?;
    let node = lab.node(1)?;
    let lock = File::create(node.host_path("/run/xtables.lock"))?;
    lock.lock()?;
    // Shorter than the minute: without a renewal the lease would be gone by then.
    let options = lab.options(1).flag("ip-masq", "true").flag("subnet-lease-ttl", "40");
    let start = Instant::now();
    let mut daemon = Flanneld::start(node, &options)?;
    daemon.wait_ready()?;
    let lease = lab.lease(1)?;
    let mut peer = 0;
    while start.elapsed() < Duration::from_secs(60) {
        peer += 1;
        let value = lease::value(&format!("10.8.1.{peer}"), &format!("02:00:00:00:01:{peer:02x}"));
        lab.etcd().put(&format!("{PREFIX}/subnets/10.200.2{peer:02}.0-24"), &value)?;
        lab.wait_node_converged(&daemon)?;
        assert_eq!(lab.lease(1)?.stored.lease, lease.stored.lease, "the lease is kept");
        assert_eq!(daemon.http("/readyz")?.0, 200);
        std::thread::sleep(Duration::from_secs(5));
    }
    let log = daemon.process().log();
    assert!(log.contains("the rules in iptables-legacy wait for the lock /run/xtables.lock"), "{log}");
    assert!(log.contains("everything else goes on"), "{log}");
    assert!(!node.run("iptables-legacy-save")?.contains("FLANNEL"));
    drop(lock);
    lab.eventually(&daemon, "the rules", || {
        let save = node.run("iptables-legacy-save")?;
        ensure!(save.contains("-j FLANNEL-POSTRTG") && save.contains("-j FLANNEL-FWD"), "{save}");
        ensure!(daemon.process().log().contains("the firewall works again"), "the end is not told");
        Ok(())
    })
}

#[test]
fn what_the_host_lacks_is_said_with_its_cure_and_left_as_it_is() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let node = lab.node(1)?;
    let bad = [("ip_forward", "0"), ("conf.all.rp_filter", "0"), ("conf.eth0.rp_filter", "1")];
    for (name, value) in bad {
        node.run(&format!("sysctl -q -w net.ipv4.{name}={value}"))?;
    }
    let daemon = lab.flanneld(1)?;
    for cure in ["sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"] {
        lab.eventually(&daemon, "the cure is named", || {
            ensure!(daemon.process().log().contains(cure), "not {cure}");
            Ok(())
        })?;
    }
    for (name, value) in bad {
        assert_eq!(node.run(&format!("sysctl -n net.ipv4.{name}"))?.trim(), value, "{name}");
    }
    Ok(())
}
