//! Data that nobody should have written: each key is skipped and counted, and no other peer is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use anyhow::{Result, ensure};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::lease;
use netns_tests::monitor::Recorder;
use netns_tests::observe::PeerState;
use netns_tests::{Flanneld, Lab, Spec};

const MAC: &str = "02:00:00:00:00:0f";

/// Key (below `subnets/`; `OWN` stands for the subnet under test), value, and the reason it is counted under.
fn cases() -> Vec<(&'static str, String, &'static str)> {
    let good = lease::value("10.8.0.201", MAC);
    let at = |public_ip: &str| lease::value(public_ip, MAC);
    let with_mac = |mac: &str| lease::value("10.8.0.201", mac);
    vec![
        ("junk", good.clone(), "bad_key"),
        ("10.200.201.0-99", good.clone(), "bad_key"),
        ("10.200.201.0-24/more", good.clone(), "bad_key"),
        ("10.200.201.0-24", "{junk".to_owned(), "bad_value"),
        ("10.200.201.0-24", String::new(), "bad_value"),
        ("10.200.201.0-24", "[]".to_owned(), "bad_value"),
        ("10.200.201.0-24", with_mac("not a MAC"), "bad_value"),
        ("10.200.201.0-24", at("null"), "bad_value"),
        ("10.200.201.0-24", good.replace("\"vxlan\"", "\"host-gw\""), "other_backend"),
        ("10.201.1.0-24", good.clone(), "outside_network"),
        ("10.0.0.0-8", good.clone(), "outside_network"),
        ("0.0.0.0-0", good.clone(), "outside_network"),
        ("10.200.250.0-25", good.clone(), "overlap"),
        ("10.200.250.128-25", good.clone(), "overlap"),
        ("10.200.240.0-20", good, "overlap"),
        ("10.200.201.0-24", at("0.0.0.0"), "bad_public_ip"),
        ("10.200.201.0-24", at("127.0.0.1"), "bad_public_ip"),
        ("10.200.201.0-24", at("224.0.0.1"), "bad_public_ip"),
        ("10.200.201.0-24", at("255.255.255.255"), "bad_public_ip"),
        ("10.200.201.0-24", at("10.200.3.4"), "bad_public_ip"),
        ("10.200.201.0-24", at("10.8.0.111"), "own_public_ip"),
        ("10.200.201.0-24", with_mac("01:00:5e:00:00:01"), "bad_mac"),
        ("10.200.201.0-24", with_mac("ff:ff:ff:ff:ff:ff"), "bad_mac"),
        ("10.200.201.0-24", with_mac("00:00:00:00:00:00"), "bad_mac"),
    ]
}

fn skipped(daemon: &Flanneld, reason: &str) -> Result<f64> {
    daemon.metric(&format!("flanneld_skipped_keys{{reason=\"{reason}\"}}"))
}

fn wait_skipped(lab: &Lab, daemon: &Flanneld, reason: &str, count: f64) -> Result<()> {
    lab.eventually(daemon, &format!("{count} keys skipped as {reason}"), || {
        let now = skipped(daemon, reason)?;
        ensure!((now - count).abs() < 0.5, "{now}");
        Ok(())
    })
}

#[test]
fn junk_is_skipped_and_counted_and_touches_no_other_peer() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = lab.flanneld(1)?;
    lab.etcd().put(
        &format!("{PREFIX}/subnets/10.200.250.0-24"),
        &lease::value("10.8.0.250", "02:00:00:00:00:fa"),
    )?;
    lab.wait_node_converged(&daemon)?;
    let before = PeerState::observe(daemon.node(), DEVICE)?;
    assert_eq!(before.routes.len(), 1);
    let recorder = Recorder::start(daemon.node())?;
    for (name, value, reason) in cases() {
        let key = format!("{PREFIX}/subnets/{name}");
        lab.etcd().put(&key, &value)?;
        wait_skipped(&lab, &daemon, reason, 1.0).map_err(|error| error.context(format!("{name} {value}")))?;
        assert_eq!(PeerState::observe(daemon.node(), DEVICE)?, before, "{name} {value}");
        lab.etcd().delete(&key)?;
        wait_skipped(&lab, &daemon, reason, 0.0).map_err(|error| error.context(format!("{name} {value}")))?;
    }
    assert_eq!(recorder.changes(DEVICE)?, Vec::<String>::new(), "no other peer was touched");
    Ok(())
}

#[test]
fn junk_that_is_there_at_start_is_skipped_too() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let good = lease::value("10.8.0.250", "02:00:00:00:00:fa");
    lab.etcd().put(&format!("{PREFIX}/subnets/10.200.250.0-24"), &good)?;
    lab.etcd().put(&format!("{PREFIX}/subnets/junk"), "junk")?;
    lab.etcd().put(&format!("{PREFIX}/subnets/10.200.251.0-24"), "junk")?;
    lab.etcd().put(&format!("{PREFIX}/subnets/10.201.251.0-24"), &good)?;
    let daemon = lab.flanneld(1)?;
    for reason in ["bad_key", "bad_value", "outside_network"] {
        wait_skipped(&lab, &daemon, reason, 1.0)?;
    }
    let state = PeerState::observe(daemon.node(), DEVICE)?;
    assert_eq!((state.routes.len(), state.neighbours.len(), state.fdb.len()), (1, 1, 1), "{state:#?}");
    Ok(())
}

#[test]
fn a_good_key_that_turns_to_junk_loses_only_its_own_entries() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let key = format!("{PREFIX}/subnets/10.200.250.0-24");
    lab.etcd().put(&key, &lease::value("10.8.0.250", "02:00:00:00:00:fa"))?;
    lab.wait_converged(&daemons)?;
    let recorder = Recorder::start(daemons[0].node())?;
    lab.etcd().put(&key, &lease::value("10.8.0.250", "01:00:5e:00:00:01"))?;
    wait_skipped(&lab, &daemons[0], "bad_mac", 1.0)?;
    let other = lab.lease(2)?;
    lab.eventually(&daemons[0], "only the other node is left", || {
        PeerState::expected([&other]).ensure_on(daemons[0].node(), DEVICE)
    })?;
    let changes = recorder.changes(DEVICE)?;
    assert!(changes.iter().all(|line| !line.contains(&other.network().to_string())), "{changes:#?}");
    Ok(())
}

#[test]
fn a_second_key_for_our_own_subnet_changes_nothing() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let own = lab.lease(1)?;
    let recorder = Recorder::start(daemons[0].node())?;
    for length in [25, 26] {
        let key = format!("{PREFIX}/subnets/{}-{length}", own.network());
        lab.etcd().put(&key, &lease::value("10.8.0.201", MAC))?;
    }
    wait_skipped(&lab, &daemons[0], "overlap", 2.0)?;
    assert_eq!(recorder.changes(DEVICE)?, Vec::<String>::new());
    assert_eq!(lab.lease(1)?, own);
    Ok(())
}

#[test]
fn of_two_peers_with_one_mac_only_one_is_programmed() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = lab.flanneld(1)?;
    lab.etcd().put(&format!("{PREFIX}/subnets/10.200.201.0-24"), &lease::value("10.8.0.201", MAC))?;
    lab.etcd().put(&format!("{PREFIX}/subnets/10.200.202.0-24"), &lease::value("10.8.0.202", MAC))?;
    wait_skipped(&lab, &daemon, "duplicate_mac", 1.0)?;
    lab.eventually(&daemon, "one peer is programmed", || {
        let state = PeerState::observe(daemon.node(), DEVICE)?;
        ensure!((state.routes.len(), state.neighbours.len(), state.fdb.len()) == (1, 1, 1), "{state:?}");
        Ok(())
    })?;
    let log = daemon.process().log();
    let line = log.lines().find(|line| line.contains("lease is skipped")).unwrap_or_default();
    let later = lab.etcd().get(&format!("{PREFIX}/subnets/10.200.202.0-24"))?.mod_revision;
    let rival = format!("10.200.202.0-24 (public IP 10.8.0.202, revision {later})");
    ensure!(line.contains("10.200.201.0-24") && line.contains(&rival), "which two is not said: {line}");
    Ok(())
}
