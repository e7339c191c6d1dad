//! What is done to a lab by more than one caller: the tests do it with a fixed seed, `cargo lab soak` with many.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::flanneld::{Flanneld, SUBNET_FILE};
use crate::lab::{DEVICE, Lab, PREFIX, Spec};
use crate::lease;
use crate::monitor::Recorder;
use crate::ping::Ping;
use crate::pod::Pod;
use crate::random::Random;
use crate::tcp::{Stream, StreamReport};

/// A lab of `nodes` nodes whose network has exactly as many subnets.
///
/// # Errors
/// When it does not start.
pub fn lab_without_a_spare_subnet(nodes: u8) -> Result<Lab> {
    let network_config = format!(
        r#"{{"Network":"10.200.0.0/16","SubnetMin":"10.200.1.0","SubnetMax":"10.200.{nodes}.0","Backend":{{"Type":"vxlan"}}}}"#
    );
    Lab::start(&Spec { nodes, network_config, ..Spec::default() })
}

/// Starts the daemons of all nodes at once; each must get a subnet of its own. Then everything is taken away again.
///
/// # Errors
/// When one does not get ready or two share a subnet.
pub fn race_for_subnets(lab: &Lab) -> Result<()> {
    let daemons = lab.flanneld_everywhere()?;
    let leases = lab.leases()?;
    let subnets: BTreeSet<&str> = leases.iter().map(|lease| lease.subnet.as_str()).collect();
    ensure!(subnets.len() == daemons.len() && leases.len() == daemons.len(), "leases: {leases:#?}");
    for daemon in daemons {
        let node = daemon.node().clone();
        daemon.stop(Signal::SIGKILL)?;
        node.run(&format!("ip link delete {DEVICE}"))?;
        node.run(&format!("rm {SUBNET_FILE}"))?;
    }
    lab.etcd().ctl(&["del", "--prefix", &format!("{PREFIX}/subnets/")]).map(drop)
}

/// Traffic between two pods that a restart of a daemon must not disturb.
#[derive(Debug)]
pub struct Traffic {
    ping: Ping,
    stream: Stream,
}

impl Traffic {
    /// Starts 500 pings a second and a TCP stream, and waits until they flow.
    ///
    /// # Errors
    /// When the pods do not reach each other.
    pub fn start(from: &Pod, to: &Pod) -> Result<Self> {
        let ping = Ping::start(from, to.address(), "0.002")?;
        let stream = Stream::start(from, to)?;
        ping.wait_answers(50)?;
        Ok(Self { ping, stream })
    }

    /// The running ping.
    #[must_use]
    pub fn ping(&self) -> &Ping {
        &self.ping
    }

    /// Ends both; nothing may have been lost.
    ///
    /// # Errors
    /// When a ping was lost or the stream broke.
    pub fn finish_without_loss(self) -> Result<StreamReport> {
        self.ping.ensure_none_lost()?;
        self.stream.finish()
    }
}

/// Ends a node's daemon with a signal and starts it again; the kernel must not notice.
///
/// # Errors
/// When `ip monitor` heard a change, or the daemon does not come back.
pub fn restart_unnoticed(lab: &Lab, number: u8, daemon: Flanneld, signal: Signal) -> Result<Flanneld> {
    let recorder = Recorder::start(daemon.node())?;
    daemon.stop(signal)?;
    let daemon = lab.flanneld(number)?;
    lab.wait_node_converged(&daemon)?;
    let changes = recorder.changes(DEVICE)?;
    ensure!(changes.is_empty(), "a restart with {signal} changed the kernel: {changes:#?}");
    Ok(daemon)
}

/// Adds, changes and removes made-up peers `steps` times; the daemon's kernel must follow.
///
/// # Errors
/// When the kernel does not equal the leases afterwards.
pub fn churn_of_peers(lab: &Lab, daemon: &Flanneld, random: &mut Random, steps: u32) -> Result<()> {
    let etcd = lab.etcd();
    for _ in 0..steps {
        let host = 200 + random.below(20);
        let key = format!("{PREFIX}/subnets/10.200.{host}.0-24");
        if random.below(3) == 0 {
            etcd.ctl(&["del", "--", &key])?;
        } else {
            let public_ip = format!("10.8.1.{}", random.below(250) + 1);
            etcd.put(&key, &lease::value(&public_ip, &random.mac()))?;
        }
    }
    lab.wait_node_converged(daemon).context("after a churn of peers")
}
