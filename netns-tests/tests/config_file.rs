//! The configuration file of a running daemon: the network config it seeds, and what SIGHUP changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::flanneld::HEALTH_PORT;
use netns_tests::lab::PREFIX;
use netns_tests::{Flanneld, Lab, Options, Spec, eventually};
use nix::sys::signal::Signal;

const FILE: &str = "/etc/flannel/flanneld.yml";
const RULES: &str = "nft list table ip flannel-ipv4";

/// The lab's options for a node, written as a file; `more` stands behind them.
fn write(lab: &Lab, number: u8, more: &str) -> Result<()> {
    let text = format!(
        "etcd-endpoints: [{}]\nflannel_etcd_prefix: {PREFIX}\nflannel_settings: {{etcd-prefix: '{{{{flannel_etcd_prefix}}}}'}}\n\
         public-ip: '{{{{ansible_eth0.ipv4.address}}}}'\niface: eth0\nfirewall: nftables\n\
         healthz-ip: 127.0.0.1\nhealthz-port: {HEALTH_PORT}\n{more}",
        lab.etcd().endpoints()
    );
    lab.node(number)?.write(FILE, &text)
}

fn start(lab: &Lab, number: u8) -> Result<Flanneld> {
    let mut daemon = Flanneld::start(lab.node(number)?, &Options::default().flag("config-file", FILE))?;
    daemon.wait_ready()?;
    Ok(daemon)
}

fn told(daemon: &Flanneld, text: &str) -> usize {
    daemon.notify().received().iter().filter(|told| told.text == text).count()
}

/// Sends SIGHUP and waits until systemd has been told of the end of the reload.
fn reload(daemon: &Flanneld) -> Result<()> {
    let (before, reloads) = (told(daemon, "READY=1"), told(daemon, "RELOADING=1"));
    daemon.process().signal(Signal::SIGHUP)?;
    eventually(Duration::from_secs(10), "READY=1 after a reload", || {
        ensure!(told(daemon, "RELOADING=1") == reloads + 1, "no RELOADING=1");
        ensure!(told(daemon, "READY=1") == before + 1, "no READY=1");
        Ok(())
    })
}

#[test]
fn a_missing_network_config_is_seeded_and_never_overwritten() -> Result<()> {
    let mut lab = Lab::without_etcd(&Spec { nodes: 2, ..Spec::default() })?;
    lab.etcd_mut().start()?;
    let seed = "flannel_ip_range: 10.200.0.0/16\nflannel_backend_type: vxlan\nflannel_seed_config: true\n";
    write(&lab, 1, seed)?;
    let first = start(&lab, 1)?;
    let config = lab.etcd().get(&format!("{PREFIX}/config"))?;
    let written = include_str!("../fixtures/role/etcd-config.json").trim_end();
    assert_eq!((config.value.as_str(), config.lease), (written, 0));
    write(&lab, 2, &seed.replace("10.200", "10.77"))?;
    let second = start(&lab, 2)?;
    assert_eq!(lab.etcd().get(&format!("{PREFIX}/config"))?, config, "created once, never written over");
    lab.wait_converged(&[first, second])
}

#[test]
fn sighup_applies_what_can_change_and_a_broken_file_changes_nothing() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let node = lab.node(1)?;
    // Renewed a minute before the end of the hour: not in the time of this test.
    let slow = "subnet-lease-ttl: 3601\nsubnet-lease-renew-margin: 1\n";
    write(&lab, 1, slow)?;
    let mut daemon = start(&lab, 1)?;
    let subnet = lab.lease(1)?.subnet;
    assert!(node.read("/run/flannel/subnet.env")?.ends_with("FLANNEL_IPMASQ=false\n"));
    daemon.wait_rules()?;
    assert!(!node.run(RULES)?.contains("masquerade"));
    eventually(Duration::from_secs(20), "some seconds of the lease have passed", || {
        let left = lab.etcd().time_to_live(lab.lease(1)?.stored.lease)?;
        ensure!(left <= 3597, "{left}");
        Ok(())
    })?;

    // Renewed an hour before the end: at once.
    let fast = "subnet-lease-ttl: 3601\nsubnet-lease-renew-margin: 60\n\
                ip-masq: yes\nip-masq-exclude: [10.99.0.0/16]\niptables-forward-rules: no\nv: 1\nsubnet-file: /x/y\n";
    write(&lab, 1, fast)?;
    reload(&daemon)?;
    lab.eventually(&daemon, "everything that can change has changed", || {
        let left = lab.etcd().time_to_live(lab.lease(1)?.stored.lease)?;
        ensure!(left > 3597, "the lease is not renewed: {left}");
        let rules = node.run(RULES)?;
        ensure!(rules.contains("masquerade") && rules.contains("10.99.0.0/16"), "{rules}");
        ensure!(!rules.contains(" accept comment "), "{rules}");
        ensure!(node.read("/run/flannel/subnet.env")?.ends_with("FLANNEL_IPMASQ=true\n"), "subnet.env");
        ensure!(daemon.process().log().contains("DEBUG"), "the log says no more than before");
        Ok(())
    })?;
    let restart = "RESTART for subnet-file=/x/y (configuration file, line 15)";
    assert!(daemon.process().log().contains(restart), "{}", daemon.process().log_tail(20));
    assert_eq!(lab.lease(1)?.subnet, subnet);

    let rules = node.run(RULES)?;
    for broken in ["iface: [", "ip-mask: false\n", "ip-masq: maybe\n", "etcd-prefix: '{{nothing}}'\n"] {
        node.write(FILE, broken)?;
        reload(&daemon)?;
        daemon.process_mut().ensure_running()?;
        let log = daemon.process().log_tail(5);
        assert!(log.contains("SIGHUP: nothing is changed") && log.contains("configuration file"), "{log}");
    }
    assert_eq!(node.run(RULES)?, rules);
    assert!(node.read("/run/flannel/subnet.env")?.ends_with("FLANNEL_IPMASQ=true\n"));

    // Back: what is not wanted any more goes, and that is no repair of what somebody else did.
    write(&lab, 1, slow)?;
    reload(&daemon)?;
    lab.eventually(&daemon, "masquerading is over", || {
        let rules = node.run(RULES)?;
        ensure!(!rules.contains("masquerade") && rules.contains(" accept comment "), "{rules}");
        ensure!(node.read("/run/flannel/subnet.env")?.ends_with("FLANNEL_IPMASQ=false\n"), "subnet.env");
        Ok(())
    })?;
    for kind in ["firewall", "subnet_env", "lease"] {
        assert_eq!(daemon.metric(&format!("flanneld_repairs_total{{kind=\"{kind}\"}}"))?, 0.0, "{kind}");
    }
    Ok(())
}

#[test]
fn without_a_file_sighup_changes_nothing_and_systemd_is_answered() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let mut daemon = lab.flanneld(1)?;
    reload(&daemon)?;
    daemon.process_mut().ensure_running()?;
    assert!(daemon.process().log_tail(3).contains("there is no configuration file to read again"));
    Ok(())
}
