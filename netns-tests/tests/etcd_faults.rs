//! etcd late or silent, and members that die or lose their quorum while daemons start. What is measured: `faults_etcd.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::lab::PREFIX;
use netns_tests::{Api, Flanneld, Lab, Spec, eventually, lab, lease, throughout};
use nix::sys::signal::Signal;

/// How long a daemon may believe in a connection on which nothing comes any more: 30 s until it asks, 10 s for an answer, and
/// time to go elsewhere.
const SILENCE: Duration = Duration::from_secs(60);

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

fn stops_while_it_waits(mut daemon: Flanneld) -> Result<()> {
    eventually(lab::CONVERGENCE, "the daemon waits", || {
        ensure!(!daemon.notify().received().is_empty(), "nothing said yet");
        Ok(())
    })?;
    daemon.process().signal(Signal::SIGTERM)?;
    let status = daemon.process_mut().wait(Duration::from_secs(10))?;
    assert_eq!(status.code(), Some(0));
    Ok(())
}

#[test]
fn a_daemon_that_waits_for_etcd_or_a_resolver_stops() -> Result<()> {
    let lab = Lab::without_etcd(&Spec { nodes: 1, ..Spec::default() })?;
    stops_while_it_waits(lab.launch(1)?)?;
    // Nobody answers the resolver either, which gives up after 150 s.
    let node = lab.node(1)?;
    node.write("/etc/resolv.conf", "nameserver 10.8.0.101\noptions timeout:30 attempts:5\n")?;
    lab.switch().cut(lab.etcd().node(0)?)?;
    let options = lab.options(1).flag("etcd-endpoints", "http://etcd.example.org:2379");
    stops_while_it_waits(Flanneld::start(node, &options)?)
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

/// Three members and two daemons; `fault` befalls each member that the first daemon is connected to, and meanwhile leases
/// change. `undo` ends it.
fn one_of_three_members(
    api: Api,
    fault: fn(&mut Lab, usize) -> Result<()>,
    undo: fn(&mut Lab, usize) -> Result<()>,
) -> Result<()> {
    let mut lab = Lab::start(&Spec { nodes: 2, etcd_members: 3, etcd_api: api, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    let connections = lab.node(1)?.run("ss --no-header --tcp --numeric state established")?;
    let used: Vec<usize> =
        (0..3).filter(|member| connections.contains(&format!("10.8.0.10{}:2379", member + 1))).collect();
    ensure!(!used.is_empty(), "{connections}");
    for member in used {
        fault(&mut lab, member)?;
        let value = lease::value("10.8.0.201", &format!("02:00:00:00:00:0{member}"));
        // etcdctl takes five seconds to find out that the member it chose at random cannot write.
        eventually(SILENCE, "a write with two members", || lab.etcd().put(&key(201), &value))?;
        // A watch at the member in question has to be noticed to be dead first.
        eventually(SILENCE, "the kernels equal the leases", || lab.wait_converged(&daemons))?;
        // A start gets along as well.
        daemons.pop().context("a daemon")?.stop(Signal::SIGTERM)?;
        daemons.push(lab.flanneld(2)?);
        undo(&mut lab, member)?;
        lab.etcd().wait_healthy()?;
    }
    Ok(())
}

fn kill(lab: &mut Lab, member: usize) -> Result<()> {
    lab.etcd_mut().kill(member)
}

fn launch(lab: &mut Lab, member: usize) -> Result<()> {
    lab.etcd_mut().launch(member)
}

/// Drops what the members say to each other; clients still reach the member.
fn cut_off_from_quorum(lab: &mut Lab, member: usize) -> Result<()> {
    let node = lab.etcd().node(member)?;
    for chain in ["INPUT", "OUTPUT"] {
        for port in ["--dport", "--sport"] {
            node.run(&format!("iptables -A {chain} -p tcp {port} 2380 -j DROP"))?;
        }
    }
    Ok(())
}

fn back_in_quorum(lab: &mut Lab, member: usize) -> Result<()> {
    lab.etcd().node(member)?.run("iptables -F").map(drop)
}

#[test]
fn one_of_three_members_may_die() -> Result<()> {
    one_of_three_members(Api::V3, kill, launch)
}

#[test]
fn one_of_three_members_may_die_over_v2() -> Result<()> {
    one_of_three_members(Api::V2, kill, launch)
}

#[test]
fn a_member_without_its_quorum_is_left() -> Result<()> {
    one_of_three_members(Api::V3, cut_off_from_quorum, back_in_quorum)
}

#[test]
fn a_member_without_its_quorum_is_left_over_v2() -> Result<()> {
    one_of_three_members(Api::V2, cut_off_from_quorum, back_in_quorum)
}
