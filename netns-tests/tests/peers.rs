//! Peers that come, change and go are followed, and nothing stale stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::observe::PeerState;
use netns_tests::random::Random;
use netns_tests::{Lab, Pod, Spec, eventually, lease, ping, scenario, throughout};
use nix::sys::signal::Signal;

fn key(host: u8) -> String {
    format!("{PREFIX}/subnets/10.200.{host}.0-24")
}

#[test]
fn a_joining_and_a_leaving_node_are_seen_by_all() -> Result<()> {
    let mut lab = Lab::three_nodes()?;
    let mut daemons = lab.flanneld_everywhere()?;
    lab.add_node()?;
    daemons.push(lab.flanneld(4)?);
    lab.wait_converged(&daemons)?;
    let (first, last) = (Pod::attach(lab.node(1)?, "pod")?, Pod::attach(lab.node(4)?, "pod")?);
    eventually(Duration::from_secs(10), "a ping to the new node", || {
        ping::ping_once(&first, last.address())
    })?;
    let key = lab.lease(4)?.stored.key;
    daemons.pop().unwrap().stop(Signal::SIGTERM)?;
    lab.etcd().delete(&key)?;
    lab.wait_converged(&daemons)?;
    for daemon in &daemons {
        assert_eq!(PeerState::observe(daemon.node(), DEVICE)?.routes.len(), 2);
    }
    Ok(())
}

#[test]
fn a_changed_mac_or_public_ip_is_followed_with_no_stale_entry() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = lab.flanneld(1)?;
    let steps = [
        ("10.8.0.201", "02:00:00:00:00:0a"),
        ("10.8.0.201", "02:00:00:00:00:0b"),
        ("10.8.0.202", "02:00:00:00:00:0b"),
        ("10.8.0.203", "02:00:00:00:00:0c"),
    ];
    for (public_ip, mac) in steps {
        lab.etcd().put(&key(201), &lease::value(public_ip, mac))?;
        lab.wait_node_converged(&daemon)?;
        let fdb = PeerState::observe(daemon.node(), DEVICE)?.fdb;
        assert_eq!(fdb.len(), 1, "stale entries: {fdb:?}");
    }
    lab.etcd().delete(&key(201))?;
    lab.wait_node_converged(&daemon)
}

#[test]
fn two_peers_that_swap_their_macs_end_up_right() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = lab.flanneld(1)?;
    let (one, other) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b");
    for (first, second) in [(one, other), (other, one)] {
        lab.etcd().put(&key(201), &lease::value("10.8.0.201", first))?;
        lab.etcd().put(&key(202), &lease::value("10.8.0.202", second))?;
        lab.wait_node_converged(&daemon)?;
    }
    Ok(())
}

#[test]
fn unchanged_renewals_of_a_peer_write_nothing() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = lab.flanneld(1)?;
    let value = lease::value("10.8.0.201", "02:00:00:00:00:0a");
    lab.etcd().put(&key(201), &value)?;
    lab.wait_node_converged(&daemon)?;
    let recorder = netns_tests::monitor::Recorder::start(daemon.node())?;
    for _ in 0..10 {
        lab.etcd().put(&key(201), &value)?;
    }
    // A later change has been applied, so the renewals before it have been handled.
    lab.etcd().put(&key(202), &lease::value("10.8.0.202", "02:00:00:00:00:0b"))?;
    lab.wait_node_converged(&daemon)?;
    let changes = recorder.changes(DEVICE)?;
    assert!(changes.iter().all(|line| !line.contains("10.200.201.0")), "{changes:#?}");
    Ok(())
}

#[test]
fn keys_beside_the_leases_are_not_leases() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = lab.flanneld(1)?;
    let value = lease::value("10.8.0.201", "02:00:00:00:00:0a");
    for key in ["subnets2/10.200.201.0-24", "subnets-old/10.200.202.0-24", "10.200.203.0-24"] {
        lab.etcd().put(&format!("{PREFIX}/{key}"), &value)?;
    }
    lab.etcd().put(&key(204), &value)?;
    lab.eventually(&daemon, "the one peer", || {
        let routes = PeerState::observe(daemon.node(), DEVICE)?.routes;
        ensure!(routes.len() == 1 && routes[0]["dst"] == "10.200.204.0/24", "{routes:?}");
        Ok(())
    })?;
    throughout(Duration::from_millis(500), "only the one peer", || {
        let routes = PeerState::observe(daemon.node(), DEVICE)?.routes;
        ensure!(routes.len() == 1, "{routes:?}");
        Ok(())
    })
}

#[test]
fn a_churn_of_peers_ends_in_the_state_of_the_store() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    scenario::churn_of_peers(&lab, &daemons[0], &mut Random::new(1), 100)?;
    lab.wait_converged(&daemons)
}
