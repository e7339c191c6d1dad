//! `ip-blackhole-route`: what is sent to an address of the node's subnet that no pod bridge has is dropped, pods are reached.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use anyhow::{Result, ensure};
use netns_tests::ping::ping_once;
use netns_tests::{Flanneld, Lab, Pod, Spec};
use nix::sys::signal::Signal;

fn blackholes(lab: &Lab) -> Result<String> {
    lab.node(1)?.run("ip -d route show type blackhole")
}

fn with_blackhole(lab: &Lab, on: &str) -> Result<Flanneld> {
    let mut daemon = Flanneld::start(lab.node(1)?, &lab.options(1).flag("ip-blackhole-route", on))?;
    daemon.wait_ready()?;
    Ok(daemon)
}

#[test]
fn a_blackhole_is_kept_beside_the_pods_and_goes_with_the_option() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let node = lab.node(1)?;
    let peer = lab.flanneld(2)?;
    let daemon = with_blackhole(&lab, "true")?;
    lab.wait_node_converged(&peer)?;
    let subnet = lab.lease(1)?.subnet;
    let ours = format!("blackhole {subnet} proto 149 scope global metric 4294967295 \n");
    assert_eq!(blackholes(&lab)?, ours);

    // The order in which Go's blackhole, of metric 0, cuts the bridge off.
    let (pod, far) = (Pod::attach(node, "pod")?, Pod::attach(lab.node(2)?, "pod")?);
    ping_once(&far, pod.address())?;
    node.run(&format!("ping -c 1 -W 5 {}", pod.address()))?;

    node.run(&format!("ip route flush {subnet} type blackhole"))?;
    lab.eventually(&daemon, "the blackhole again", || {
        ensure!(blackholes(&lab)? == ours, "{}", blackholes(&lab)?);
        ensure!(daemon.metric("flanneld_repairs_total{kind=\"route\"}")? > 0.0, "no repair is counted");
        Ok(())
    })?;
    daemon.stop(Signal::SIGTERM)?;
    assert_eq!(blackholes(&lab)?, ours, "stopping leaves it");

    let daemon = with_blackhole(&lab, "false")?;
    lab.wait_node_converged(&daemon)?;
    assert_eq!(blackholes(&lab)?, "");
    ping_once(&pod, far.address())?;
    daemon.stop(Signal::SIGTERM)?;

    // As the Go daemon leaves it: first the blackhole, later the bridge.
    node.run("ip link set cni0 down")?;
    node.run(&format!("ip route add blackhole {subnet}"))?;
    node.run("ip link set cni0 up")?;
    assert!(ping_once(&pod, far.address()).is_err(), "the premise: Go's blackhole wins over the bridge");
    let daemon = with_blackhole(&lab, "true")?;
    lab.wait_node_converged(&daemon)?;
    assert_eq!(blackholes(&lab)?, ours);
    ping_once(&pod, far.address()).map(drop)
}
