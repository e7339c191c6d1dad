//! Getting, keeping and losing a lease.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::observe::{self, PeerState};
use netns_tests::ping::ping_once;
use netns_tests::scenario::{lab_without_a_spare_subnet, race_for_subnets};
use netns_tests::{Flanneld, Lab, Pod, Spec, eventually, lab, lease, throughout};
use nix::sys::signal::Signal;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";

#[test]
fn twelve_daemons_at_once_on_twelve_subnets_all_succeed_twenty_times() -> Result<()> {
    let lab = lab_without_a_spare_subnet(12)?;
    for round in 1..=20 {
        race_for_subnets(&lab).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

#[test]
fn a_reservation_stays_one() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let key = format!("{PREFIX}/subnets/10.200.42.0-24");
    lab.etcd().put(&key, &lease::value("10.8.0.111", "02:00:00:00:00:42"))?;
    let daemon = lab.flanneld(1)?;
    assert_eq!(lab.lease(1)?.subnet, "10.200.42.0/24");
    assert_eq!(lab.etcd().get(&key)?.lease, 0, "no lease was bound to it");
    assert_eq!(observe::mac(daemon.node(), DEVICE)?, lab.lease(1)?.vtep_mac);
    daemon.stop(Signal::SIGTERM)?;
    let _daemon = lab.flanneld(1)?;
    assert_eq!(lab.etcd().get(&key)?.lease, 0);
    Ok(())
}

#[test]
fn a_lease_has_the_form_and_the_time_to_live_of_gos() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = lab.flanneld(1)?;
    let lease = lab.lease(1)?;
    let mac = observe::mac(daemon.node(), DEVICE)?;
    let gos = lease::value("10.8.0.111", &mac);
    let start = gos.trim_end_matches('}').to_owned() + "},\"NodeID\":\"";
    assert!(lease.stored.value.starts_with(&start), "{}", lease.stored.value);
    let [a, b, c, d] = lease.network().octets();
    assert_eq!(lease.stored.key, format!("{PREFIX}/subnets/{a}.{b}.{c}.{d}-24"));
    assert!((1..=100).contains(&c), "one of the first hundred free: {}", lease.subnet);
    let time = lab.etcd().time_to_live(lease.stored.lease)?;
    assert!((86_300..=86_400).contains(&time), "{time}");
    Ok(())
}

/// A daemon whose lease lives 10 seconds and is renewed at half of it.
fn short_lived(lab: &Lab, number: u8) -> Result<Flanneld> {
    let options = lab.options(number).flag("subnet-lease-ttl", "10");
    let mut daemon = Flanneld::start(lab.node(number)?, &options)?;
    daemon.wait_ready()?;
    Ok(daemon)
}

#[test]
fn renewal_keeps_the_key_without_an_event_and_expiry_removes_the_peer() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = [short_lived(&lab, 1)?, lab.flanneld(2)?];
    lab.wait_converged(&daemons)?;
    let before = lab.lease(1)?;
    let mut lowest = 10;
    throughout(Duration::from_secs(13), "the key over more than its time to live", || {
        let now = lab.lease(1)?;
        ensure!(now == before, "renewed with an event: {now:?}");
        lowest = lowest.min(lab.etcd().time_to_live(now.stored.lease)?);
        Ok(())
    })?;
    assert!((2..=6).contains(&lowest), "renewed at about half of the time: {lowest} s were left");
    let [renewing, watching] = daemons;
    renewing.stop(Signal::SIGKILL)?;
    eventually(Duration::from_secs(30), "the lease runs out", || {
        ensure!(lab.leases()?.len() == 1, "still there");
        Ok(())
    })?;
    lab.wait_node_converged(&watching)?;
    assert_eq!(PeerState::observe(watching.node(), DEVICE)?, PeerState::default());
    Ok(())
}

#[test]
fn a_deleted_key_and_a_revoked_lease_are_taken_again_at_once() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let file = lab.node(1)?.read(SUBNET_FILE)?;
    for revoke in [false, true] {
        let before = lab.lease(1)?;
        if revoke {
            lab.etcd().revoke(before.stored.lease)?;
        } else {
            lab.etcd().delete(&before.stored.key)?;
        }
        lab.eventually(&daemons[0], "the same lease again", || {
            let now = lab.lease(1)?;
            ensure!((&now.subnet, &now.vtep_mac) == (&before.subnet, &before.vtep_mac), "{now:?}");
            ensure!(now.stored.lease != 0 && now.stored.lease != before.stored.lease, "{now:?}");
            Ok(())
        })?;
        lab.wait_converged(&daemons)?;
        assert_eq!(lab.node(1)?.read(SUBNET_FILE)?, file);
    }
    Ok(())
}

#[test]
fn a_subnet_that_another_node_holds_now_is_left_to_it() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let before = lab.lease(1)?;
    let usurper = lease::value("10.8.0.150", "02:00:00:00:00:99");
    lab.etcd().put_leased(&before.stored.key, &usurper, 86_400)?;
    lab.eventually(&daemons[0], "another subnet", || {
        let now = lab.lease(1)?;
        ensure!(now.subnet != before.subnet, "{now:?}");
        let [a, b, c, _] = now.network().octets();
        let file = lab.node(1)?.read(SUBNET_FILE)?;
        ensure!(file.contains(&format!("FLANNEL_SUBNET={a}.{b}.{c}.1/24\n")), "{file}");
        let addresses = observe::addresses(lab.node(1)?, DEVICE)?;
        ensure!(addresses.len() == 1 && addresses[0]["local"] == now.network().to_string(), "{addresses:?}");
        Ok(())
    })?;
    assert_eq!(
        lab.etcd().get(&before.stored.key)?.value,
        usurper,
        "the other node's key was not overwritten"
    );
    lab.wait_converged(&daemons)
}

#[test]
fn a_renewal_checks_whose_key_it_is() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = short_lived(&lab, 1)?;
    let before = lab.lease(1)?;
    // Cut off from etcd, the daemon cannot see the change before its next renewal is due.
    lab.switch().cut(lab.etcd().node(0)?)?;
    let usurper = lease::value("10.8.0.150", "02:00:00:00:00:99");
    lab.etcd().put_leased(&before.stored.key, &usurper, 86_400)?;
    lab.etcd().revoke(before.stored.lease)?;
    let usurped = lab.etcd().get(&before.stored.key)?;
    eventually(Duration::from_secs(30), "not ready beyond the time to live", || {
        let (status, _) = daemon.http("/readyz")?;
        ensure!(status == 503, "/readyz says {status}");
        Ok(())
    })?;
    lab.switch().mend(lab.etcd().node(0)?)?;
    eventually(Duration::from_secs(60), "another subnet", || {
        let now = lab.lease(1)?;
        ensure!(now.subnet != before.subnet, "{now:?}");
        Ok(())
    })?;
    assert_eq!(lab.etcd().get(&before.stored.key)?, usurped, "the other node's key was not overwritten");
    Ok(())
}

#[test]
fn a_cloned_subnet_env_gets_another_subnet_and_the_holder_of_the_first_is_named() -> Result<()> {
    let lab = Lab::three_nodes()?;
    let (original, peer) = (lab.flanneld(1)?, lab.flanneld(3)?);
    lab.wait_node_converged(&original)?;
    let (held, ping) = (lab.lease(1)?, lab.ping(3, 1)?);
    // A disk that was cloned behind a new machine id and with another address.
    lab.node(2)?.write(SUBNET_FILE, &lab.node(1)?.read(SUBNET_FILE)?)?;
    let clone = lab.flanneld(2)?;
    assert_ne!(lab.lease(2)?.subnet, held.subnet);
    assert_eq!(lab.lease(1)?, held, "the holder's lease was not touched");
    let value: serde_json::Value = serde_json::from_str(&held.stored.value)?;
    let (subnet, id) = (&held.subnet, value["NodeID"].as_str().context("NodeID")?);
    let named = format!(
        "subnet.env names {subnet}, but node {id} with public IP {} holds {subnet}",
        Lab::public_ip(1)
    );
    assert!(clone.process().log().contains(&named), "{}", clone.process().log_tail(20));
    lab.wait_converged(&[original, clone, peer])?;
    ping.ensure_none_lost()
}

#[test]
fn of_two_nodes_with_one_mac_the_later_takes_another_and_both_are_reached() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let first = lab.flanneld(1)?;
    let held = lab.lease(1)?;
    // As a copied disk of a Go node leaves it: the second node finds a lease of its own with the first one's MAC.
    let number = if held.subnet == "10.200.42.0/24" { 43 } else { 42 };
    let key = format!("{PREFIX}/subnets/10.200.{number}.0-24");
    lab.etcd().put_leased(&key, &lease::value("10.8.0.112", &held.vtep_mac), 86_400)?;
    let second = lab.flanneld(2)?;
    lab.eventually(&second, "the second one has another MAC", || {
        let now = lab.lease(2)?;
        let kept = now.subnet == format!("10.200.{number}.0/24");
        ensure!(now.vtep_mac != held.vtep_mac && kept, "{now:?}");
        ensure!(observe::mac(second.node(), DEVICE)? == now.vtep_mac, "not on the device");
        Ok(())
    })?;
    let first_named = "another node published our VTEP MAC before us";
    let log = second.process().log();
    let line = log.lines().find(|line| line.contains(first_named)).context("not told")?;
    ensure!(line.contains(&format!("public IP {}", Lab::public_ip(1))), "{line}");
    assert_eq!(lab.lease(1)?, held, "the first one keeps its own");
    assert!(!first.process().log().contains(first_named));
    lab.wait_converged(&[first, second])?;
    let (from, to) = (Pod::attach(lab.node(1)?, "pod")?, Pod::attach(lab.node(2)?, "pod")?);
    ping_once(&from, to.address()).map(drop)
}

#[test]
fn a_second_machine_with_the_same_public_ip_is_refused_and_a_clone_is_named_on_both_sides() -> Result<()> {
    let mut lab = Lab::three_nodes()?;
    let (daemon, _peer) = (lab.flanneld(1)?, lab.flanneld(3)?);
    lab.wait_node_converged(&daemon)?;
    let (held, ping) = (lab.lease(1)?, lab.ping(3, 1)?);
    let second = lab.options(2).flag("public-ip", Lab::public_ip(1).to_string());
    let mut refused = Flanneld::start(lab.node(2)?, &second)?;
    let value: serde_json::Value = serde_json::from_str(&held.stored.value)?;
    let id = value["NodeID"].as_str().context("NodeID")?;
    eventually(lab::CONVERGENCE, "the message names the other node", || {
        ensure!(refused.process().log().contains(id), "{}", refused.process().log_tail(10));
        Ok(())
    })?;
    assert!(refused.notify().first("READY=1").is_none());
    refused.process_mut().kill()?;
    assert_eq!(lab.lease(1)?, held, "the holder's lease was not touched");
    let original = lab.node(1)?.clone();
    let clone = lab.add_clone_of(&original)?;
    let options = lab.options(4).flag("public-ip", Lab::public_ip(1).to_string());
    // The lab's nodes share a kernel, so until its boot id is another one the clone is this machine, restarted.
    Flanneld::start(&clone, &options)?.wait_ready()?;
    assert_eq!(lab.lease(1)?, held, "a restart changes nothing");
    clone.write("/run/boot_id", "6f5b8f0e-0000-4000-8000-000000000001\n")?;
    clone.run("mount --bind /run/boot_id /proc/sys/kernel/random/boot_id")?;
    let mut twin = Flanneld::start(&clone, &options)?;
    twin.wait_ready()?;
    for daemon in [&daemon, &twin] {
        lab.eventually(daemon, "the other one is named", || {
            let log = daemon.process().log();
            ensure!(log.contains("ANOTHER MACHINE TAKES ITSELF FOR THIS NODE"), "not named");
            ensure!(log.contains(&held.subnet) && log.contains(id), "named without what it holds");
            Ok(())
        })?;
    }
    lab.eventually(&twin, "the clone has written last", || {
        ensure!(lab.lease(1)?.stored.value != held.stored.value, "not yet");
        Ok(())
    })?;
    let last = lab.lease(1)?;
    throughout(Duration::from_secs(3), "the two do not answer each other at once", || {
        ensure!(lab.lease(1)? == last, "written again");
        Ok(())
    })?;
    assert_eq!(last.subnet, held.subnet);
    // Without the other one it is a reboot like any.
    let named = |daemon: &Flanneld| daemon.process().log().matches("ANOTHER MACHINE").count();
    let before = named(&daemon);
    daemon.stop(Signal::SIGKILL)?;
    twin.stop(Signal::SIGKILL)?;
    let rebooted = lab.flanneld(1)?;
    assert_eq!(lab.lease(1)?.subnet, held.subnet);
    assert_eq!(named(&rebooted), before, "nobody else runs");
    // All of them had one MAC and one address for the peer.
    ping.ensure_none_lost()
}

#[test]
fn a_lease_lost_while_etcd_is_full_is_there_soon_after_however_long_it_would_have_lived() -> Result<()> {
    let etcd_arguments = vec!["--quota-backend-bytes=2000000".to_owned()];
    let lab = Lab::start(&Spec { nodes: 1, etcd_arguments, ..Spec::default() })?;
    let (daemon, before) = (lab.flanneld(1)?, lab.lease(1)?);
    lab.etcd().fill()?;
    lab.etcd().delete(&before.stored.key)?;
    lab.eventually(&daemon, "etcd takes no new lease", || {
        ensure!(daemon.process().log().contains("database space exceeded"), "no try yet");
        Ok(())
    })?;
    lab.etcd().make_room()?;
    lab.eventually(&daemon, "the same subnet is leased again", || {
        ensure!(lab.lease(1)?.subnet == before.subnet, "another subnet");
        Ok(())
    })
}
