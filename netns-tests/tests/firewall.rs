//! The daemon puts the firewall's rules into force before it is ready, keeps them, and takes them back when told to. What the
//! rules do to packets is tested beside them, in `tests/firewall_netns.rs` of the package flanneld.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use anyhow::{Result, ensure};
use netns_tests::{Flanneld, Lab, Spec};
use nix::sys::signal::Signal;

const RULES: &str = "nft list table ip flannel-ipv4";

fn masquerading(lab: &Lab, on: &str) -> Result<Flanneld> {
    let options = lab.options(1).flag("ip-masq", on).flag("firewall", "nftables");
    let mut daemon = Flanneld::start(lab.node(1)?, &options)?;
    daemon.wait_ready()?;
    Ok(daemon)
}

#[test]
fn rules_stand_when_ready_are_repaired_and_follow_the_option() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = masquerading(&lab, "true")?;
    let node = lab.node(1)?;
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
