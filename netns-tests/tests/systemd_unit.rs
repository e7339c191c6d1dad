//! The shipped unit and the one that the Ansible role renders, under a real systemd: sandbox, notification, `ExecStartPost`, reload,
//! restart, watchdog, journal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use netns_tests::command::install::install;
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::systemd::property;
use netns_tests::{Lab, Node, Spec, Underlay, binaries, eventually, lab, lease, observe};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CONFIG_FILE: &str = "/etc/flannel/flanneld.yml";
const UNIT: &str = "flanneld.service";
const ROLE_UNIT: &str = include_str!("../fixtures/role/flanneld-execstartpost.service");
const DROP_IN: &str = include_str!("../../systemd/flanneld.service.d/10-options.conf");

/// A node as in the role's examples: `wg0` with 10.8.0.111, etcd behind TLS at 10.8.0.101, our programs installed, one peer.
fn host() -> Result<(Lab, Arc<Node>)> {
    let underlay = Underlay::Veth { device: "wg0".to_owned(), mtu: 1420 };
    let mut lab = Lab::start(&Spec { nodes: 0, underlay, etcd_tls: true, ..Spec::default() })?;
    let node = lab.add_node_with_systemd()?;
    lab.etcd().put(
        &format!("{PREFIX}/subnets/10.200.201.0-24"),
        &lease::value("10.8.0.112", "02:00:00:00:00:0a"),
    )?;
    install(&binaries::cni_folder()?, &node.host_path("/"))?;
    Ok((lab, node))
}

fn journal(node: &Node) -> Result<String> {
    node.run(&format!("journalctl --no-pager --output=cat --unit={UNIT}"))
}

/// `systemctl VERB flanneld`; when it fails, the error holds the journal.
fn systemctl(node: &Node, verb: &str) -> Result<()> {
    let done = node.run(&format!("systemctl {verb} {UNIT}"));
    done.map(drop).map_err(|error| error.context(journal(node).unwrap_or_default()))
}

/// Waits until systemd has started it so many times by itself and it is ready again.
fn wait_restarted(node: &Node, times: u32) -> Result<()> {
    eventually(lab::CONVERGENCE, "it is started again", || {
        ensure!(property(node, UNIT, "NRestarts")? == times.to_string(), "not yet");
        ensure!(property(node, UNIT, "ActiveState")? == "active", "not ready yet");
        Ok(())
    })
    .map_err(|error| error.context(journal(node).unwrap_or_default()))
}

fn main_pid(node: &Node) -> Result<String> {
    property(node, UNIT, "MainPID")
}

/// The process as the host counts; in the node it has another number.
fn signal(node: &Node, which: Signal) -> Result<()> {
    let inside = main_pid(node)?;
    let namespace = std::fs::read_link(format!("/proc/{}/ns/pid", node.namespaces().init()))?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let is_there = std::fs::read_link(entry.path().join("ns/pid")).is_ok_and(|found| found == namespace);
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        if is_there && numbers.is_some_and(|numbers| numbers.split_whitespace().last() == Some(&inside)) {
            let outside = entry.file_name().to_string_lossy().parse()?;
            return kill(Pid::from_raw(outside), which).context("signal the daemon");
        }
    }
    anyhow::bail!("process {inside} of the node is not found")
}

fn is_programmed(node: &Node) -> Result<()> {
    let routes = node.run(&format!("ip route show dev {DEVICE}"))?;
    ensure!(routes.contains("10.200.201.0/24"), "{routes}");
    ensure!(node.read("/run/flannel/subnet.env")?.contains("FLANNEL_MTU=1370"), "subnet.env");
    Ok(())
}

/// Notification, watchdog and restart, whichever unit it is.
fn stop_and_kill(node: &Node, has_watchdog: bool) -> Result<()> {
    let mac = observe::mac(node, DEVICE)?;
    systemctl(node, "restart")?;
    is_programmed(node)?;
    signal(node, Signal::SIGKILL)?;
    wait_restarted(node, 1)?;
    if has_watchdog {
        let before = main_pid(node)?;
        signal(node, Signal::SIGSTOP)?;
        wait_restarted(node, 2)?;
        assert_ne!(main_pid(node)?, before);
        assert!(journal(node)?.contains("Watchdog timeout"), "{}", journal(node)?);
    }
    assert_eq!(observe::mac(node, DEVICE)?, mac, "the data plane outlives it");
    is_programmed(node)?;
    systemctl(node, "stop")?;
    is_programmed(node)
}

/// `systemctl reload` ends when the options of the file are in effect, or else with the old ones, and never ends the process.
fn reload_takes_over_the_file(node: &Node) -> Result<()> {
    let accepts = || anyhow::Ok(node.run("nft list table ip flannel-ipv4")?.contains(" accept comment "));
    let process = main_pid(node)?;
    assert!(accepts()?, "{}", node.run("nft list table ip flannel-ipv4")?);
    for (option, expected) in [("no", false), ("[", false), ("yes", true)] {
        node.write(CONFIG_FILE, &format!("iptables-forward-rules: {option}\n"))?;
        systemctl(node, "reload")?;
        eventually(lab::CONVERGENCE, "the rules follow the file", || {
            ensure!(accepts()? == expected, "iptables-forward-rules: {option}");
            ensure!(property(node, UNIT, "ActiveState")? == "active", "still reloading");
            Ok(())
        })?;
    }
    assert_eq!(main_pid(node)?, process, "no restart");
    Ok(())
}

/// What the sandbox leaves, seen from inside the running process.
fn is_closed_in(node: &Node) -> Result<()> {
    let status = node.read(&format!("/proc/{}/status", main_pid(node)?))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    // CAP_NET_ADMIN is 12, CAP_NET_RAW 13 (linux/capability.h).
    for set in ["CapBnd:", "CapPrm:", "CapEff:"] {
        assert_eq!(field(set), Some("0000000000003000"), "{set}");
    }
    assert_eq!((field("Seccomp:"), field("NoNewPrivs:")), (Some("2"), Some("1")));
    assert_eq!(
        node.run("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra")?.trim(),
        "0",
        "the one switch it may set"
    );
    Ok(())
}

/// It asked the kernel for time slices of 0.3 ms and got them.
fn has_short_slices(node: &Node) -> Result<()> {
    let shown = node.read(&format!("/proc/{}/sched", main_pid(node)?))?;
    let slice = shown.lines().find_map(|line| line.strip_prefix("se.slice")?.split(':').nth(1));
    let kernel = node.read("/proc/sys/kernel/osrelease")?;
    assert_eq!(slice.map(str::trim), Some("300000"), "ns; this needs Linux 6.12, here is {kernel}\n{shown}");
    Ok(())
}

#[test]
fn the_shipped_unit_runs_closed_in_watched_and_restarted() -> Result<()> {
    let (_lab, node) = host()?;
    let verified = node.run(&format!("systemd-analyze verify --man=no /etc/systemd/system/{UNIT}"))?;
    assert_eq!(verified, "", "systemd-analyze verify");
    let security = node.run(&format!("systemd-analyze security --no-pager {UNIT}"))?;
    println!("{}", security.lines().last().unwrap_or_default());

    node.write("/etc/systemd/system/flanneld.service.d/10-options.conf", DROP_IN)?;
    // As for a real host, but quicker.
    node.write(
        "/etc/systemd/system/flanneld.service.d/50-lab.conf",
        "[Service]\nWatchdogSec=2\nRestartSec=100ms\n",
    )?;
    for firewall in ["nftables", "iptables"] {
        node.write(CONFIG_FILE, "iptables-forward-rules: yes\n")?;
        node.write(
            "/etc/default/flanneld",
            &format!("FLANNELD_FIREWALL={firewall}\nFLANNELD_CONFIG_FILE={CONFIG_FILE}\n"),
        )?;
        node.run("systemctl daemon-reload")?;
        systemctl(&node, "start")?;
        is_programmed(&node)?;
        is_closed_in(&node)?;
        has_short_slices(&node)?;
        let rules = if firewall == "nftables" {
            "nft list table ip flannel-ipv4"
        } else {
            "iptables -t nat -S FLANNEL-POSTRTG"
        };
        eventually(lab::CONVERGENCE, "rules", || {
            let shown = node.run(rules)?;
            ensure!(shown.to_lowercase().contains("masquerade"), "{firewall}: {shown}");
            Ok(())
        })?;
        eventually(lab::CONVERGENCE, "systemctl status", || {
            let status = property(&node, UNIT, "StatusText")?;
            ensure!(status.contains("peers: 1"), "{status}");
            Ok(())
        })?;
        node.run(&format!("ip link del {DEVICE}"))?;
        eventually(lab::CONVERGENCE, "the device is back", || is_programmed(&node))?;
        if firewall == "nftables" {
            reload_takes_over_the_file(&node)?;
            stop_and_kill(&node, true)?;
        } else {
            systemctl(&node, "stop")?;
        }
    }
    let journal = journal(&node)?;
    for line in ["flanneld starts", "subnet leased", "ready", "flanneld stops"] {
        assert!(journal.contains(line), "{line:?} is missing in the journal:\n{journal}");
    }
    assert!(!journal.contains("not permitted"), "{journal}");
    Ok(())
}

#[test]
fn the_role_s_own_unit_works_as_it_is() -> Result<()> {
    let (_lab, node) = host()?;
    node.write("/etc/systemd/system/flanneld.service", ROLE_UNIT)?;
    node.write("/etc/systemd/system/flanneld.service.d/50-lab.conf", "[Service]\nRestartSec=100ms\n")?;
    let verified = node.run(&format!("systemd-analyze verify --man=no /etc/systemd/system/{UNIT}"))?;
    assert_eq!(verified, "", "systemd-analyze verify");
    node.run("systemctl daemon-reload")?;
    let offload = || node.run(&format!("ethtool -k {DEVICE}"));
    systemctl(&node, "start")?;
    is_programmed(&node)?;
    assert_eq!(property(&node, UNIT, "Result")?, "success");
    assert!(
        offload()?.contains("\ntx-checksumming: off\n"),
        "ExecStartPost finds the device when READY is sent"
    );
    assert_eq!(property(&node, UNIT, "NotifyAccess")?, "main");
    has_short_slices(&node)?;
    stop_and_kill(&node, false)?;
    systemctl(&node, "start")?;
    // What ExecStartPost did is what a device made anew has as well.
    node.run(&format!("ip link del {DEVICE}"))?;
    eventually(lab::CONVERGENCE, "the device is back", || is_programmed(&node))?;
    assert!(offload()?.contains("\ntx-checksumming: off\n"), "{}", offload()?);
    Ok(())
}
