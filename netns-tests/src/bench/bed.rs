//! A test bed: one node with a daemon to be measured, its own etcd full of made-up peers, and a listener to its kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::etcd::{Client, NETWORK_CONFIG, Peer, peers};
use super::kernel::{Monitor, Step};
use super::sample::ms;
use crate::etcd::Api;
use crate::flanneld::{Flanneld, Options, SUBNET_FILE};
use crate::lab::{DEVICE, Lab, PREFIX, Spec};
use crate::process::{Footprint, processor_time};

/// What is measured takes seconds at worst, except that the Go daemon may need a minute for a burst.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon to be measured.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// The heading of its column.
    pub(super) name: String,
    /// Its binary.
    pub(super) program: PathBuf,
    /// The store it uses.
    pub(super) api: Api,
}

/// One subject's node, etcd and peers.
pub(super) struct Bed {
    // Dropped in this order: listeners and daemons before the lab.
    pub(super) monitor: Monitor,
    pub(super) client: Client,
    pub(super) subject: Subject,
    pub(super) peers: Vec<Peer>,
    pub(super) lab: Lab,
}

/// A daemon that has just been started.
pub(super) struct Started {
    pub(super) daemon: Flanneld,
    /// exec to READY=1
    pub(super) ready: Duration,
    /// exec to the last route
    pub(super) complete: Duration,
    /// What it and etcd have used of a CPU until then, in milliseconds.
    pub(super) cpu: f64,
    pub(super) etcd_cpu: f64,
}

impl Bed {
    pub(super) fn new(subject: &Subject, count: u32) -> Result<Self> {
        Self::with(subject, count, false)
    }

    /// The same with an etcd that wants TLS and client certificates.
    pub(super) fn with_tls(subject: &Subject) -> Result<Self> {
        Self::with(subject, 0, true)
    }

    fn with(subject: &Subject, count: u32, etcd_tls: bool) -> Result<Self> {
        let lab = Lab::start(&Spec {
            nodes: 1,
            network_config: NETWORK_CONFIG.to_owned(),
            etcd_api: subject.api,
            etcd_tls,
            ..Spec::default()
        })?;
        let mut client = Client::connect(lab.etcd().node(0)?, subject.api)?;
        let peers = peers(count);
        client.put_all(&peers)?;
        let monitor = Monitor::start(lab.node(1)?)?;
        Ok(Self { monitor, client, subject: subject.clone(), peers, lab })
    }

    /// The role's options with ip-masq. The API is set by variable: a Go daemon does not look at it.
    pub(super) fn options(&self) -> Options {
        let api = if self.subject.api == Api::V2 { "v2" } else { "v3" };
        let mut options = self.lab.options(1).flag("ip-masq", "true").env("FLANNELD_ETCD_API", api);
        options.program = Some(self.subject.program.clone());
        options
    }

    /// Starts the daemon and waits until it is ready and every peer's route stands.
    pub(super) fn start(&self) -> Result<Started> {
        self.start_awaiting(self.peers.len())
    }

    /// Starts the bare daemon in its place, which pushes what stands in the file `messages`.
    pub(super) fn start_bare(&self, bare: &Path, messages: &Path) -> Result<Started> {
        let mut options = self.options().env("BARE_MESSAGES", &messages.display().to_string());
        options.program = Some(bare.to_owned());
        self.start_with(&options, 0)
    }

    /// Starts the daemon and waits until it is ready and `routes` routes have appeared.
    pub(super) fn start_awaiting(&self, routes: usize) -> Result<Started> {
        self.start_with(&self.options(), routes)
    }

    fn start_with(&self, options: &Options, routes: usize) -> Result<Started> {
        let etcd_before = self.etcd_cpu()?;
        self.monitor.reset();
        let mut daemon = Flanneld::start(self.lab.node(1)?, options)?;
        let ready = daemon.wait_ready()?;
        let complete = match routes {
            0 => ready,
            _ => self.monitor.wait_added(routes, PATIENCE)?.duration_since(daemon.started()),
        };
        let cpu = ms(processor_time(daemon.process().pid())?);
        let etcd_cpu = self.etcd_cpu()? - etcd_before;
        Ok(Started { daemon, ready, complete, cpu, etcd_cpu })
    }

    /// Entries changed in the kernel since the monitor was reset, once the daemon has come to rest: a change that is made now
    /// shows that everything before it was heard. It is undone again.
    pub(super) fn written_before_a_change(&mut self) -> Result<usize> {
        let one = Peer::new(u32::try_from(self.peers.len())?);
        self.client.put(one)?;
        self.monitor.wait_step(Step::Added, one.subnet(), PATIENCE)?;
        // The route comes last, after neighbour and FDB entry.
        let changes = self.monitor.changes().saturating_sub(3);
        self.client.delete(one)?;
        self.monitor.wait_step(Step::Removed, one.subnet(), PATIENCE)?;
        Ok(changes)
    }

    fn etcd_cpu(&self) -> Result<f64> {
        processor_time(self.lab.etcd().pid(0)?).map(ms)
    }

    /// Ends the daemon and takes away everything it left, so that the next start finds a fresh node.
    pub(super) fn forget(&mut self, daemon: Flanneld) -> Result<()> {
        daemon.stop(Signal::SIGKILL)?;
        let node = self.lab.node(1)?;
        // Not every daemon makes it again, once somebody has deleted it.
        if node.run("ip -brief link show type vxlan")?.contains(DEVICE) {
            node.run(&format!("ip link delete {DEVICE}"))?;
        }
        node.run("nft flush ruleset")?;
        let subnet_env = node.read(SUBNET_FILE)?;
        node.run(&format!("rm {SUBNET_FILE}"))?;
        self.client.forget_leases_of_daemons(&[own_key(&subnet_env)?])
    }

    /// What the daemon costs for `duration` while nothing or `meanwhile` happens.
    pub(super) fn cost_of(
        &mut self,
        daemon: &Flanneld,
        meanwhile: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Cost> {
        let pid = daemon.process().pid();
        self.monitor.reset();
        let before =
            (processor_time(pid)?, Footprint::of(pid)?.context_switches, self.last_pid()?, Instant::now());
        meanwhile(self)?;
        let seconds = before.3.elapsed().as_secs_f64();
        // Asking for the last process number starts a process itself.
        let started = self.last_pid()? - before.2 - 1;
        Ok(Cost {
            cpu: ms(processor_time(pid)?.saturating_sub(before.0)),
            context_switches: Footprint::of(pid)?.context_switches - before.1,
            started,
            changes: self.monitor.changes(),
            seconds,
        })
    }

    /// The number of the last process that was started in the node: counts every fork, however short-lived.
    fn last_pid(&self) -> Result<u64> {
        let shown = self.lab.node(1)?.run("cat /proc/sys/kernel/ns_last_pid")?;
        shown.trim().parse().context("ns_last_pid")
    }
}

/// What a daemon did in a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// milliseconds of a CPU
    pub(super) cpu: f64,
    pub(super) context_switches: u64,
    /// processes started in the node
    pub(super) started: u64,
    /// changes of entries in the kernel
    pub(super) changes: usize,
    pub(super) seconds: f64,
}

fn own_key(subnet_env: &str) -> Result<String> {
    let subnet = subnet_env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
    let (address, length) = subnet.and_then(|cidr| cidr.split_once('/')).context("no FLANNEL_SUBNET")?;
    ensure!(address.ends_with(".1") && length == "24", "an unexpected subnet: {address}/{length}");
    Ok(format!("{PREFIX}/subnets/{}0-24", address.trim_end_matches('1')))
}

/// Mebibytes of a file.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(super) fn megabytes(path: &Path) -> Result<f64> {
    let bytes = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    Ok(bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_key_follows_from_subnet_env() {
        let text = "FLANNEL_NETWORK=100.64.0.0/10\nFLANNEL_SUBNET=100.64.11.1/24\n";
        assert_eq!(own_key(text).unwrap(), format!("{PREFIX}/subnets/100.64.11.0-24"));
    }
}
