//! What a daemon does, counted instead of timed: system calls, requests to etcd, changes in the kernel, processes. Counts do
//! not depend on how fast or busy the machine is, so the suite holds them.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::bed::{Bed, PATIENCE, Subject};
use super::etcd::Peer;
use super::kernel::Step;
use crate::binaries;
use crate::etcd::Api;
use crate::flanneld::Flanneld;

/// What one start took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// System calls by name, from exec until the last route stood and the daemon was ready.
    pub calls: BTreeMap<String, usize>,
    /// Requests that etcd answered, and watches it opened.
    pub requests: usize,
}

impl Start {
    /// All system calls.
    #[must_use]
    pub fn total(&self) -> usize {
        self.calls.values().sum()
    }
}

/// What a restart took that found everything right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// entries changed in the kernel
    pub changes: usize,
    /// Requests that etcd answered, and watches it opened.
    pub requests: usize,
}

/// What a running daemon did in a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// entries changed in the kernel
    pub changes: usize,
    /// processes started in the node
    pub started: u64,
}

/// A daemon of this repository among made-up peers.
pub struct Counted(Bed);

impl Counted {
    /// A node, an etcd, and as many peers.
    ///
    /// # Errors
    /// When the lab does not start.
    pub fn among(peers: u32) -> Result<Self> {
        let subject = Subject { name: "ours".to_owned(), program: binaries::flanneld()?, api: Api::V3 };
        Ok(Self(Bed::new(&subject, peers)?))
    }

    /// Starts the daemon on a fresh node, traced, and takes everything away again.
    ///
    /// # Errors
    /// When the daemon does not do its work.
    pub fn start(&mut self) -> Result<Start> {
        let bed = &mut self.0;
        let trace = bed.lab.node(1)?.folder().join("calls");
        let file = trace.to_string_lossy().into_owned();
        let before = requests(bed)?;
        bed.monitor.reset();
        let options = bed.options().under(&traced(&file));
        let mut daemon = Flanneld::start(bed.lab.node(1)?, &options)?;
        daemon.wait_ready()?;
        if !bed.peers.is_empty() {
            bed.monitor.wait_added(bed.peers.len(), PATIENCE)?;
        }
        let requests = requests(bed)? - before;
        let calls = calls(&fs::read_to_string(&trace).context("read what strace wrote")?);
        bed.forget(daemon)?;
        Ok(Start { calls, requests })
    }

    /// The system calls, by name, with which a running daemon takes over new peers that are written one after the other, and how
    /// long that took. They stay in the store.
    ///
    /// # Errors
    /// When the daemon does not do its work.
    pub fn additions(&mut self, number: u32) -> Result<(BTreeMap<String, usize>, Duration)> {
        let bed = &mut self.0;
        let trace = bed.lab.node(1)?.folder().join("calls");
        let options = bed.options().under(&traced(&trace.to_string_lossy()));
        let mut daemon = Flanneld::start(bed.lab.node(1)?, &options)?;
        daemon.wait_ready()?;
        let calls_until_now =
            || Ok::<_, anyhow::Error>(calls(&fs::read_to_string(&trace).context("read the trace")?));
        let before = calls_until_now()?;
        let (present, start) = (u32::try_from(bed.peers.len())?, Instant::now());
        for peer in (present..present + number).map(Peer::new) {
            bed.monitor.reset();
            bed.client.put(peer)?;
            bed.monitor.wait_step(Step::Added, peer.subnet(), PATIENCE)?;
        }
        let (mut calls, took) = (calls_until_now()?, start.elapsed());
        calls.retain(|name, count| {
            *count -= before.get(name).copied().unwrap_or_default();
            *count > 0
        });
        bed.forget(daemon)?;
        Ok((calls, took))
    }

    /// A restart that finds everything right.
    ///
    /// # Errors
    /// When the daemon does not do its work.
    pub fn restart(&mut self) -> Result<Restart> {
        let bed = &mut self.0;
        bed.start()?.daemon.stop(nix::sys::signal::Signal::SIGTERM)?;
        let before = requests(bed)?;
        let daemon = bed.start_awaiting(0)?.daemon;
        let requests = requests(bed)? - before;
        let changes = bed.written_before_a_change()?;
        bed.forget(daemon)?;
        Ok(Restart { changes, requests })
    }

    /// What the running daemon does while all peers are written again unchanged, as Go daemons renew their leases, and for
    /// `idle` afterwards.
    ///
    /// # Errors
    /// When the daemon does not do its work.
    pub fn quiet(&mut self, idle: Duration) -> Result<Quiet> {
        let bed = &mut self.0;
        let daemon = bed.start()?.daemon;
        let peers = bed.peers.clone();
        let cost = bed.cost_of(&daemon, |bed| {
            bed.client.put_all(&peers)?;
            std::thread::sleep(idle);
            Ok(())
        })?;
        bed.forget(daemon)?;
        Ok(Quiet { changes: cost.changes, started: cost.started })
    }
}

/// Writes the system calls of what follows to a file. Where cargo's folders are searched for libraries, too, that alone takes up to
/// a hundred calls, more on newer processors (`glibc-hwcaps`); a service has no such variable.
fn traced(file: &str) -> [&str; 8] {
    ["env", "-u", "LD_LIBRARY_PATH", "strace", "-f", "-qq", "-o", file]
}

/// Requests etcd has served, of all kinds: `grpc_server_started_total` of its metrics.
fn requests(bed: &Bed) -> Result<usize> {
    let page =
        bed.lab.etcd().node(0)?.in_network(|| crate::http::get(([127, 0, 0, 1], 2379).into(), "/metrics"))?.1;
    let of_line = |line: &str| line.rsplit(' ').next()?.parse::<usize>().ok();
    Ok(page.lines().filter(|line| line.starts_with("grpc_server_started_total")).filter_map(of_line).sum())
}

/// The names in what `strace -f` wrote: `PID name(…) = …`; the second half of an interrupted call does not count.
fn calls(trace: &str) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let name = call.trim_start().split('(').next().unwrap_or_default();
        if name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_once() {
        let trace = "7 read(3, \"x\", 1) = 1\n7 futex(0x1, FUTEX_WAIT <unfinished ...>\n8 read(3, \"\", 1) = 0\n\
                     7 <... futex resumed>) = 0\n7 --- SIGTERM {} ---\n7 +++ exited with 0 +++\n";
        assert_eq!(calls(trace), [("futex".to_owned(), 1), ("read".to_owned(), 2)].into());
    }
}
