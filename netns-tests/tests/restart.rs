//! A restart is not noticed by anybody; a stop leaves the data plane up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::lab::DEVICE;
use netns_tests::observe::PeerState;
use netns_tests::recorded::DeviceState;
use netns_tests::scenario::{Traffic, restart_unnoticed};
use netns_tests::{Lab, Pod, Spec, eventually, lease, throughout};
use nix::sys::signal::Signal;

fn restarts_under_traffic(signal: Signal) -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    let from = Pod::attach(lab.node(1)?, "pod")?;
    let to = Pod::attach(lab.node(2)?, "pod")?;
    let traffic = Traffic::start(&from, &to)?;
    for _ in 0..3 {
        let daemon = restart_unnoticed(&lab, 1, daemons.remove(0), signal)?;
        daemons.insert(0, daemon);
        let daemon = restart_unnoticed(&lab, 2, daemons.remove(1), signal)?;
        daemons.insert(1, daemon);
    }
    let stream = traffic.finish_without_loss()?;
    assert!(stream.bytes > 0);
    Ok(())
}

#[test]
fn sigterm_and_start_lose_nothing_and_change_nothing() -> Result<()> {
    restarts_under_traffic(Signal::SIGTERM)
}

#[test]
fn sigkill_and_start_lose_nothing_and_change_nothing() -> Result<()> {
    restarts_under_traffic(Signal::SIGKILL)
}

#[test]
fn a_stop_leaves_everything_in_place() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemons = lab.flanneld_everywhere()?;
        let node = lab.node(1)?;
        let before = DeviceState::observe(node, DEVICE)?;
        let (file, lease) = (node.read("/run/flannel/subnet.env")?, lab.lease(1)?);
        let mut daemon = daemons.remove(0);
        daemon.process().signal(signal)?;
        let status = daemon.process_mut().wait(Duration::from_secs(10))?;
        assert_eq!(status.code(), Some(0), "{signal}");
        eventually(Duration::from_secs(20), "STOPPING=1", || {
            ensure!(daemon.notify().first("STOPPING=1").is_some(), "{:?}", daemon.notify().received());
            Ok(())
        })?;
        DeviceState::observe(node, DEVICE)?.ensure_equals(&before)?;
        assert_eq!(node.read("/run/flannel/subnet.env")?, file);
        assert_eq!(lab.lease(1)?, lease);
    }
    Ok(())
}

#[test]
fn ready_comes_once_and_after_everything_is_in_place() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 3, ..Spec::default() })?;
    let _others = [lab.flanneld(2)?, lab.flanneld(3)?];
    let daemon = lab.flanneld(1)?;
    // Looked at once, without waiting: at READY the first list has been programmed.
    let leases = lab.leases()?;
    let own = lab.lease(1)?.public_ip;
    PeerState::expected(leases.iter().filter(|lease| lease.public_ip != own))
        .ensure_on(daemon.node(), DEVICE)?;
    assert!(daemon.node().exists("/run/flannel/subnet.env"));
    assert_eq!(daemon.http("/readyz")?, (200, "flanneld is ready".to_owned()));
    assert_eq!(daemon.http("/healthz")?, (200, "flanneld is running".to_owned()));
    assert_eq!(daemon.http("/nothing")?.0, 404);
    let ready = daemon.notify().received().iter().filter(|message| message.text == "READY=1").count();
    assert_eq!(ready, 1);
    Ok(())
}

#[test]
fn a_hangup_does_not_end_the_daemon() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    daemons[0].process().signal(Signal::SIGHUP)?;
    throughout(Duration::from_millis(500), "the daemon after SIGHUP", || {
        daemons[0].process_mut().ensure_running()
    })?;
    let key = "/kubernetes-cluster/network/subnets/10.200.201.0-24";
    lab.etcd().put(key, &lease::value("10.8.0.201", "02:00:00:00:00:0a"))?;
    lab.wait_converged(&daemons)
}

#[test]
fn what_changed_during_the_downtime_is_caught_up_at_start() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let key = |host: u8| format!("/kubernetes-cluster/network/subnets/10.200.{host}.0-24");
    for host in [201, 202, 203, 204] {
        let value = lease::value(&format!("10.8.0.{host}"), &format!("02:00:00:00:00:{host:02x}"));
        lab.etcd().put(&key(host), &value)?;
    }
    let mut daemons = lab.flanneld_everywhere()?;
    daemons.remove(0).stop(Signal::SIGKILL)?;
    lab.etcd().delete(&key(201))?;
    lab.etcd().put(&key(202), &lease::value("10.8.0.202", "02:00:00:00:00:ff"))?;
    lab.etcd().put(&key(203), &lease::value("10.8.0.233", "02:00:00:00:00:cb"))?;
    lab.etcd().put(&key(205), &lease::value("10.8.0.205", "02:00:00:00:00:cd"))?;
    let daemon = lab.flanneld(1)?;
    lab.wait_node_converged(&daemon)?;
    let state = PeerState::observe(daemon.node(), DEVICE)?;
    assert!(!format!("{state:?}").contains("10.200.201.0"), "{state:#?}");
    assert_eq!((state.routes.len(), state.neighbours.len(), state.fdb.len()), (5, 5, 5));
    Ok(())
}
