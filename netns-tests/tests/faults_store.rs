//! etcd is wiped, or restored from an older backup, under traffic: no kernel is emptied, and everybody registers again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::fault::{Scene, Since};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::monitor::Recorder;
use netns_tests::observe::PeerState;
use netns_tests::ping::Ping;
use netns_tests::{Flanneld, Lab, Pod, Spec, eventually, lease};

/// Long enough for everybody to register again on a loaded machine, short enough to be waited for.
const GRACE: &str = "20";

struct Cluster {
    // Dropped in this order: a node ends only after the processes in it.
    ping: Ping,
    daemons: Vec<Flanneld>,
    lab: Lab,
}

impl Cluster {
    fn start() -> Result<Self> {
        let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
        let mut daemons = Vec::new();
        for number in 1..=2 {
            let mut daemon =
                Flanneld::start(lab.node(number)?, &lab.options(number).flag("peer-grace", GRACE))?;
            daemon.wait_ready()?;
            daemons.push(daemon);
        }
        lab.wait_converged(&daemons)?;
        let (from, to) = (Pod::attach(lab.node(1)?, "pod")?, Pod::attach(lab.node(2)?, "pod")?);
        let ping = Ping::start(&from, to.address(), "0.002")?;
        Ok(Self { lab, daemons, ping })
    }

    /// A peer that nobody registers again.
    fn add_peer(&self, number: u8) -> Result<()> {
        let key = format!("{PREFIX}/subnets/10.200.{number}.0-24");
        let value = lease::value(&format!("10.8.0.{number}"), &format!("02:00:00:00:00:{number:02x}"));
        self.lab.etcd().put(&key, &value)?;
        self.lab.wait_converged(&self.daemons)
    }

    fn own_leases(&self) -> Result<BTreeSet<(String, String)>> {
        let own = [Lab::public_ip(1), Lab::public_ip(2)];
        let leases = self.lab.leases()?.into_iter().filter(|lease| own.contains(&lease.public_ip));
        Ok(leases.map(|lease| (lease.subnet, lease.vtep_mac)).collect())
    }

    /// Replaces the store; nothing may be removed from the kernel before the grace period is over, and then the peers whose
    /// subnets are given.
    fn replace(
        &mut self,
        fault: &str,
        replace: impl FnOnce(&mut Lab) -> Result<()>,
        gone: &[u8],
    ) -> Result<()> {
        let before = self.own_leases()?;
        let held = PeerState::observe(self.lab.node(1)?, DEVICE)?;
        let recorder = Recorder::start(self.lab.node(1)?)?;
        replace(&mut self.lab)?;
        let scene = Scene::new(&self.lab, &self.daemons[0]).with_traffic(&self.ping);
        let again = || {
            let now = self.own_leases()?;
            ensure!(now == before, "{now:?} instead of {before:?}");
            Ok(())
        };
        scene.fault(fault, Since::Fault, |_| Ok(()), again)?;
        // A backup may hold the leases as they are, so that nothing has to happen before the daemon has noticed.
        eventually(netns_tests::lab::CONVERGENCE, "it is told once that the store was replaced", || {
            let log = self.daemons[0].process().log();
            let told = log.matches("the store looks replaced").count();
            ensure!(told == 1, "told {told} times:\n{log}");
            Ok(())
        })?;
        held.ensure_on(self.lab.node(1)?, DEVICE)?;
        let changes = recorder.changes(DEVICE)?;
        ensure!(changes.is_empty(), "the kernel was changed: {changes:#?}");
        eventually(Duration::from_secs(60), "the grace period is over", || {
            let log = self.daemons[0].process().log();
            ensure!(log.contains("nothing of the former store is kept any more"), "not told:\n{log}");
            Ok(())
        })?;
        self.lab.wait_converged(&self.daemons)?;
        let log = self.daemons[0].process().log();
        let told = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        let counts = (told("the store looks replaced"), told("former store"));
        ensure!(counts == (1, 1), "beginning and end are told {counts:?} times:\n{log}");
        let removed = format!("removed={}", gone.len());
        let end = log.lines().find(|line| line.contains("former store")).unwrap_or_default();
        ensure!(end.contains(&removed), "{removed} is not said: {end}");
        let state = format!("{:?}", PeerState::observe(self.lab.node(1)?, DEVICE)?.routes);
        for number in gone {
            ensure!(!state.contains(&format!("10.200.{number}.0/24")), "{state}");
        }
        Ok(())
    }
}

#[test]
fn a_wiped_etcd_empties_no_kernel_and_everybody_registers_again() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.add_peer(201)?;
    let wipe = |lab: &mut Lab| {
        lab.etcd_mut().kill(0)?;
        lab.etcd_mut().wipe(0)?;
        lab.etcd_mut().launch(0)?;
        lab.etcd().wait_healthy()
    };
    cluster.replace("etcd wiped, empty again", wipe, &[201])
}

#[test]
fn an_older_backup_of_etcd_empties_no_kernel_and_everybody_registers_again() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.add_peer(201)?;
    cluster.lab.etcd().backup()?;
    cluster.add_peer(202)?;
    // The second node's lease is not the one of the backup any more.
    cluster.lab.etcd().revoke(cluster.lab.lease(2)?.stored.lease)?;
    eventually(Duration::from_secs(15), "the second node registers again", || {
        cluster.lab.lease(2).map(drop)
    })?;
    cluster.lab.wait_converged(&cluster.daemons)?;
    let restore = |lab: &mut Lab| {
        lab.etcd_mut().kill(0)?;
        lab.etcd_mut().restore()?;
        lab.etcd_mut().launch(0)?;
        lab.etcd().wait_healthy()
    };
    cluster.replace("etcd restored from an older backup", restore, &[202])
}
