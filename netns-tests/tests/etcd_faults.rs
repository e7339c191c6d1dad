//! etcd goes away and comes back; the data plane stays and everything converges afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::monitor::Recorder;
use netns_tests::{Lab, Pod, Spec, eventually, lab, lease, scenario::Traffic, throughout};
use nix::sys::signal::Signal;

fn key(host: u8) -> String {
    format!("{PREFIX}/subnets/10.200.{host}.0-24")
}

#[test]
fn etcd_may_start_after_the_daemon() -> Result<()> {
    let spec = Spec { nodes: 2, ..Spec::default() };
    let mut lab = Lab::without_etcd(&spec)?;
    let mut daemons = [lab.launch(1)?, lab.launch(2)?];
    eventually(lab::CONVERGENCE, "the daemon says that no endpoint answers", || {
        let status = daemons[0].notify().received();
        let told =
            status.iter().any(|message| message.text.starts_with("STATUS=") && message.text.contains("etcd"));
        ensure!(told && !status.iter().any(|message| message.text == "READY=1"), "{status:?}");
        // Else systemd would give up on the start after 90 seconds.
        let longer = |text: &str| {
            text.strip_prefix("EXTEND_TIMEOUT_USEC=").is_some_and(|time| time.parse::<u64>().is_ok())
        };
        ensure!(status.iter().any(|message| longer(&message.text)), "{status:?}");
        Ok(())
    })?;
    daemons[0].process_mut().ensure_running()?;
    lab.etcd_mut().start()?;
    throughout(Duration::from_millis(1500), "not ready without a network config", || {
        ensure!(daemons.iter().all(|daemon| daemon.notify().first("READY=1").is_none()), "READY=1");
        Ok(())
    })?;
    eventually(lab::CONVERGENCE, "the daemon names the missing key", || {
        let said = daemons[0].notify().received();
        let named = said.iter().any(|message| message.text.contains(&format!("{PREFIX}/config")));
        ensure!(named, "{said:?}");
        Ok(())
    })?;
    lab.etcd().put(&format!("{PREFIX}/config"), &spec.network_config)?;
    for daemon in &mut daemons {
        daemon.wait_ready()?;
    }
    lab.wait_converged(&daemons)
}

#[test]
fn a_daemon_that_waits_for_etcd_stops_within_a_second() -> Result<()> {
    let lab = Lab::without_etcd(&Spec { nodes: 1, ..Spec::default() })?;
    let mut daemon = lab.launch(1)?;
    eventually(lab::CONVERGENCE, "the daemon waits", || {
        ensure!(!daemon.notify().received().is_empty(), "nothing said yet");
        Ok(())
    })?;
    daemon.process().signal(Signal::SIGTERM)?;
    let status = daemon.process_mut().wait(Duration::from_secs(1))?;
    assert_eq!(status.code(), Some(0));
    Ok(())
}

#[test]
fn a_restarted_etcd_is_watched_again_and_traffic_flows_meanwhile() -> Result<()> {
    let mut lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let (from, to) = (Pod::attach(lab.node(1)?, "pod")?, Pod::attach(lab.node(2)?, "pod")?);
    let traffic = Traffic::start(&from, &to)?;
    let recorder = Recorder::start(lab.node(1)?)?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if signal == Signal::SIGTERM {
            lab.etcd_mut().stop(0)?;
        } else {
            lab.etcd_mut().kill(0)?;
        }
        traffic.ping().wait_answers(300)?;
        lab.etcd_mut().launch(0)?;
        lab.etcd().wait_healthy()?;
    }
    assert_eq!(recorder.changes(DEVICE)?, Vec::<String>::new(), "an outage changes nothing");
    lab.etcd().put(&key(201), &lease::value("10.8.0.201", "02:00:00:00:00:0a"))?;
    lab.wait_converged(&daemons)?;
    traffic.finish_without_loss().map(drop)
}

#[test]
fn a_compaction_while_the_watch_is_cut_off_loses_no_change() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    for host in [201, 202, 203] {
        let value = lease::value(&format!("10.8.0.{host}"), &format!("02:00:00:00:00:{host:02x}"));
        lab.etcd().put(&key(host), &value)?;
    }
    let daemons = lab.flanneld_everywhere()?;
    let etcd = lab.etcd().node(0)?;
    lab.switch().cut(etcd)?;
    lab.etcd().delete(&key(201))?;
    lab.etcd().put(&key(202), &lease::value("10.8.0.202", "02:00:00:00:00:ff"))?;
    lab.etcd().put(&key(204), &lease::value("10.8.0.204", "02:00:00:00:00:cc"))?;
    lab.etcd().compact()?;
    // A restart cuts the streams for good: the daemons must ask again, for a revision that is compacted.
    lab.switch().mend(etcd)?;
    let restart = |mut lab: Lab| -> Result<Lab> {
        lab.etcd_mut().kill(0)?;
        lab.etcd_mut().launch(0)?;
        lab.etcd().wait_healthy()?;
        Ok(lab)
    };
    let lab = restart(lab)?;
    lab.wait_converged(&daemons)?;
    lab.etcd().put(&key(205), &lease::value("10.8.0.205", "02:00:00:00:00:cd"))?;
    lab.wait_converged(&daemons)
}

#[test]
fn a_silent_etcd_is_noticed_and_followed_again() -> Result<()> {
    let mut lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    lab.etcd_mut().signal(0, Signal::SIGSTOP)?;
    throughout(Duration::from_secs(2), "live while etcd is silent", || {
        let (status, body) = daemons[0].http("/healthz")?;
        ensure!(status == 200, "{status} {body}");
        Ok(())
    })?;
    lab.etcd_mut().signal(0, Signal::SIGCONT)?;
    lab.etcd().wait_healthy()?;
    lab.etcd().put(&key(201), &lease::value("10.8.0.201", "02:00:00:00:00:0a"))?;
    lab.wait_converged(&daemons)
}

#[test]
fn one_of_three_members_may_die() -> Result<()> {
    let mut lab = Lab::start(&Spec { nodes: 2, etcd_members: 3, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    for member in 0..3 {
        lab.etcd_mut().kill(member)?;
        let value = lease::value("10.8.0.201", &format!("02:00:00:00:00:0{member}"));
        eventually(lab::CONVERGENCE, "a write with two members", || lab.etcd().put(&key(201), &value))?;
        lab.wait_converged(&daemons)?;
        lab.etcd_mut().launch(member)?;
        lab.etcd().wait_healthy()?;
    }
    Ok(())
}
