//! The daemon over etcd's v2 store, beside peers that do what Go flannel v0.16 and operators do there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::observe::{self, PeerState};
use netns_tests::{Api, Flanneld, Lab, Spec, eventually, lab, lease};
use nix::sys::signal::Signal;
use serde_json::Value;

fn lab_over_v2(nodes: u8) -> Result<Lab> {
    Lab::start(&Spec { nodes, etcd_api: Api::V2, ..Spec::default() })
}

fn key(host: u8) -> String {
    format!("{PREFIX}/subnets/10.200.{host}.0-24")
}

/// The first event since `index`, asked for as Go flannel v0.16 does (contract section 7); the server remembers 1000.
fn event_since(lab: &Lab, index: i64) -> Result<Value> {
    let target = format!("{PREFIX}/subnets?recursive=true&wait=true&waitIndex={index}");
    lab.etcd().v2().request("GET", &target, "").map(|(_, event)| event)
}

#[test]
fn a_renewal_is_no_event_and_an_expiry_is_one() -> Result<()> {
    let lab = lab_over_v2(2)?;
    let options = lab.options(1).flag("subnet-lease-ttl", "10");
    let mut renewing = Flanneld::start(lab.node(1)?, &options)?;
    renewing.wait_ready()?;
    let watching = lab.flanneld(2)?;
    lab.wait_node_converged(&watching)?;
    let [own, other] = [lab.lease(1)?, lab.lease(2)?];
    let time = lab.etcd().v2().time_to_live(&other.stored.key)?;
    assert!((86_300..=86_400).contains(&time), "a day, as Go's: {time}");
    // A renewal shows in nothing but the time that is left and the index of the key.
    for _ in 0..2 {
        let before = lab.lease(1)?.stored.mod_revision;
        eventually(lab::CONVERGENCE, "a renewal", || {
            ensure!(lab.lease(1)?.stored.mod_revision > before, "not yet");
            Ok(())
        })?;
    }
    assert_eq!(lab.lease(1)?.stored.value, own.stored.value);
    renewing.stop(Signal::SIGKILL)?;
    eventually(Duration::from_secs(30), "the lease runs out", || {
        ensure!(lab.leases()?.len() == 1, "still there");
        Ok(())
    })?;
    let after = own.stored.create_revision.max(other.stored.create_revision) + 1;
    let event = event_since(&lab, after)?;
    assert_eq!((&event["action"], &event["node"]["key"]), (&"expire".into(), &own.stored.key.into()));
    lab.wait_node_converged(&watching)?;
    assert_eq!(PeerState::observe(watching.node(), DEVICE)?, PeerState::default());
    Ok(())
}

#[test]
fn peers_come_change_and_leave_in_every_way_v2_knows() -> Result<()> {
    let lab = lab_over_v2(1)?;
    let daemon = lab.flanneld(1)?;
    let v2 = lab.etcd().v2();
    let value = |mac: u8| lease::value("10.8.0.201", &format!("02:00:00:00:00:{mac:02x}"));
    let day = Some(Duration::from_secs(86_400));
    let leave: [&dyn Fn() -> Result<()>; 3] = [
        &|| v2.delete(&key(201), ""),
        // Of an operator or a newer tool; Go flannel v0.16 skips it.
        &|| v2.delete(&key(201), &format!("?prevIndex={}", v2.get(&key(201))?.mod_revision)),
        &|| v2.put(&key(201), &value(2), Some(Duration::from_secs(1))),
    ];
    for leave in leave {
        v2.put(&key(201), &value(1), day)?;
        lab.wait_node_converged(&daemon)?;
        v2.put(&key(201), &value(2), day)?;
        lab.wait_node_converged(&daemon)?;
        leave()?;
        lab.eventually(&daemon, "the peer is gone", || {
            PeerState::default().ensure_on(daemon.node(), DEVICE)
        })?;
    }
    Ok(())
}

#[test]
fn a_reservation_in_v2_stays_one_and_a_deleted_key_is_taken_again() -> Result<()> {
    let lab = lab_over_v2(2)?;
    lab.etcd().put(&key(42), &lease::value("10.8.0.111", "02:00:00:00:00:42"))?;
    let daemons = lab.flanneld_everywhere()?;
    let [reserved, leased] = [lab.lease(1)?, lab.lease(2)?];
    assert_eq!((reserved.subnet.as_str(), reserved.stored.lease), ("10.200.42.0/24", 0));
    lab.etcd().delete(&leased.stored.key)?;
    lab.eventually(&daemons[1], "the same lease again", || {
        let now = lab.lease(2)?;
        ensure!((&now.subnet, &now.vtep_mac) == (&leased.subnet, &leased.vtep_mac), "{now:?}");
        ensure!(now.stored.create_revision > leased.stored.create_revision, "{now:?}");
        Ok(())
    })?;
    assert_eq!(lab.etcd().get(&key(42))?.lease, 0, "no time to live was added");
    lab.wait_converged(&daemons)
}

#[test]
fn a_subnet_that_no_longer_fits_is_given_back_so_that_go_sees_it() -> Result<()> {
    let lab = lab_over_v2(1)?;
    lab.flanneld(1)?.stop(Signal::SIGTERM)?;
    let before = lab.lease(1)?;
    let config = r#"{"Network":"10.200.0.0/16","SubnetMin":"10.200.128.0","Backend":{"Type":"vxlan"}}"#;
    lab.etcd().put(&format!("{PREFIX}/config"), config)?;
    let daemon = lab.flanneld(1)?;
    let now = lab.lease(1)?;
    assert!(now.network().octets()[2] >= 128, "{now:?}");
    assert_eq!(observe::mac(daemon.node(), DEVICE)?, before.vtep_mac);
    let event = event_since(&lab, before.stored.create_revision + 1)?;
    assert_eq!((&event["action"], &event["node"]["key"]), (&"expire".into(), &before.stored.key.into()));
    Ok(())
}

/// Go's v2 client asks it. A proxy between a node and its etcd is never wanted: nothing answers at this one.
#[test]
fn the_proxy_of_the_environment_is_not_asked() -> Result<()> {
    const VARIABLES: [&str; 6] =
        ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    for etcd_api in [Api::V2, Api::V3] {
        let lab = Lab::start(&Spec { nodes: 1, etcd_api, ..Spec::default() })?;
        let options = VARIABLES
            .iter()
            .fold(lab.options(1), |options, variable| options.env(variable, "http://127.0.0.1:9"));
        Flanneld::start(lab.node(1)?, &options)?.wait_ready()?;
        lab.lease(1)?;
    }
    Ok(())
}
