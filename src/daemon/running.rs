//! The loop of a node that holds a lease: change of a lease | change in the kernel | time to renew | retry | stop.
//!
//! Whatever happens only says what to look at again; nothing here blocks, and conversations with the store run as one task
//! beside the loop.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::acquire::{AcquireError, Acquired, Claim, OwnLease, acquire};
use super::data_plane::{DataPlane, Report, log_report};
use super::rules::{Looked, Rules};
use super::{Fatal, Pings, Reporter, Settings, SubnetFile};
use crate::clock::{BootTime, Clock};
use crate::kernel::{Change, Kernel};
use crate::model::lease::key_of;
use crate::model::lease_set::{Own, RawLease, Touched};
use crate::model::masquerade::Overlay;
use crate::store::{Event, LeaseStore, Record, Renewal, Snapshot, StoreError, Update};

/// Everything is compared with the kernel again this often, should a notification ever be missing.
const RESYNC: Duration = Duration::from_secs(300);
/// What failed in the kernel or in the file system is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Suspicious events about our own key are looked into at most this often.
const CHECK: Duration = Duration::from_secs(1);
/// How long readiness waits for the first look at the firewall.
const RULES: Duration = Duration::from_secs(1);
/// Longest pause between two tries to renew.
const RENEW_RETRY: Duration = Duration::from_secs(60);
/// Updates of the store that may wait for the loop.
const BACKLOG: usize = 64;
/// The cause of rounds that put right what somebody else changed.
const REPAIR: &str = "repair";
/// How many skipped keys are named one by one in the log.
const NAMED: usize = 10;

/// A node that holds a lease.
#[derive(Debug)]
pub(super) struct Running<S, K> {
    store: S,
    data_plane: DataPlane<K>,
    lease: OwnLease,
    claim: Claim,
    renew_margin: Duration,
    file: SubnetFile,
    rules: Rules,
    clock: Clock,
    reporter: Reporter,
    watch: Watch,
    task: Option<JoinHandle<Outcome>>,
    timers: Timers,
    /// The listing the lease was decided on, until it is programmed.
    first: Snapshot,
    /// The lease is known to be gone and is being claimed again.
    lost: bool,
}

/// When to do what, on the boot clock.
#[derive(Debug, Default)]
struct Timers {
    renew: Option<BootTime>,
    retry: Option<BootTime>,
    resync: Option<BootTime>,
    rules: Option<BootTime>,
    checked: BootTime,
}

/// The task that follows the store.
#[derive(Debug)]
struct Watch {
    updates: mpsc::Receiver<Update>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start<S: LeaseStore>(store: &S, snapshot: &Snapshot) -> Self {
        let (sink, updates) = mpsc::channel(BACKLOG);
        let (store, next) = (store.clone(), snapshot.next);
        Self { updates, task: tokio::spawn(async move { store.watch(next, sink).await }) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a conversation about our own lease ended.
#[derive(Debug)]
enum Outcome {
    Renewed(Result<Renewal, StoreError>, BootTime),
    Acquired(Result<Box<Acquired>, AcquireError>),
}

impl<S: LeaseStore, K: Kernel> Running<S, K> {
    /// Takes over from the start. The kernel is programmed with the first `run`.
    pub(super) fn new(
        (store, clock, reporter): (S, Clock, Reporter),
        settings: &Settings,
        (claim, acquired): (Claim, Acquired),
        data_plane: DataPlane<K>,
    ) -> Self {
        let overlay = Overlay { network: claim.config.network, subnet: acquired.lease.held.subnet };
        let file = SubnetFile::new(settings, claim.config.network, data_plane.vtep().mtu);
        Self {
            watch: Watch::start(&store, &acquired.snapshot),
            rules: Rules::start(settings, &claim.config, overlay),
            renew_margin: settings.renew_margin,
            lease: acquired.lease,
            first: acquired.snapshot,
            task: None,
            timers: Timers::default(),
            lost: false,
            store,
            data_plane,
            claim,
            file,
            clock,
            reporter,
        }
    }

    /// Programs the kernel, then keeps everything right until `stop`.
    ///
    /// # Errors
    /// When only the operator can help. The data plane stays as it is then, as it does after `stop`.
    pub(super) async fn run(mut self, stop: impl Future<Output = ()>, mut pings: Pings) -> Result<(), Fatal> {
        self.plan_renewal();
        self.timers.rules = Some(self.clock.now().after(RULES));
        let leases: Vec<RawLease<'_>> = self.first.records.iter().map(raw).collect();
        let touched = self.data_plane.leases.replace(&leases);
        self.data_plane.keep_unknown = self.first.partial;
        self.first = Snapshot::default();
        log_skipped(&touched);
        self.reporter.store_up();
        self.resync("start");
        let mut stop = std::pin::pin!(stop);
        loop {
            self.report();
            let next = self.timers.next().into_iter().chain(self.reporter.alive()).min();
            tokio::select! {
                () = &mut stop => break,
                Some(update) = self.watch.updates.recv() => self.on_update(update),
                changes = self.data_plane.kernel.changed() => self.on_changes(Vec::as_slice(&changes)),
                outcome = join(&mut self.task) => self.on_outcome(outcome)?,
                () = self.clock.sleep_until(next) => self.on_timer(),
                looked = self.rules.looked() => self.on_rules(&looked),
                () = pings.answer() => {}
            }
        }
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.reporter.stopping();
        Ok(())
    }

    fn report(&mut self) {
        let lease = (!self.lost).then_some(&self.lease);
        let plane = &self.data_plane;
        self.reporter.running(lease, &plane.leases, plane.failed_peers(), self.file.is_written());
    }

    // --- the kernel ---

    fn resync(&mut self, cause: &'static str) {
        let started = self.clock.now();
        self.timers.resync = Some(started.after(RESYNC));
        let result = self.data_plane.resync();
        self.write_file();
        self.after_round(cause, started, result);
    }

    fn on_changes(&mut self, changes: &[Change]) {
        let started = self.clock.now();
        if changes.contains(&Change::Lost) {
            warn!("kernel notifications were lost; everything is compared again");
        }
        let result = self.data_plane.on_changes(changes);
        self.after_round(REPAIR, started, result);
    }

    fn after_round(
        &mut self,
        cause: &'static str,
        started: BootTime,
        result: Result<Report, crate::kernel::KernelError>,
    ) {
        let took = self.clock.now().since(started);
        match result {
            Ok(report) => {
                log_report(cause, &report, took);
                self.reporter.device_works();
                self.reporter.round(&report, took, cause == REPAIR);
            }
            Err(error) => {
                self.reporter.device_fails(&error);
                self.retry_later();
            }
        }
        if self.data_plane.has_failures() || !self.file.is_written() {
            self.retry_later();
        }
    }

    fn write_file(&mut self) {
        if self.file.write_if_changed(&self.lease) {
            self.reporter.file_repaired();
        }
    }

    fn retry_later(&mut self) {
        self.timers.retry = Some(self.clock.now().after(RETRY));
    }

    // --- the firewall ---

    fn on_rules(&mut self, looked: &Looked) {
        self.timers.rules = None;
        self.reporter.rules(looked.in_force, looked.repaired);
    }

    // --- the store ---

    fn on_update(&mut self, update: Update) {
        match update {
            Update::Events(events) => self.on_events(&events),
            Update::Snapshot(snapshot) => self.on_snapshot(&snapshot),
            Update::Down(error) => self.reporter.store_down(&error),
            Update::Up => self.reporter.store_up(),
        }
    }

    fn on_events(&mut self, events: &[Event]) {
        let started = self.clock.now();
        let mut touched = Touched::default();
        for event in events {
            let part = match event {
                Event::Put(record) => {
                    self.suspect(&record.name, record.modified);
                    self.data_plane.leases.put(&raw(record))
                }
                Event::Delete(name, revision) => {
                    self.suspect(name, *revision);
                    self.data_plane.leases.delete(name)
                }
            };
            touched.subnets.extend(part.subnets);
            touched.macs.extend(part.macs);
            touched.skipped.extend(part.skipped);
        }
        self.on_touched("leases", started, &touched);
    }

    fn on_snapshot(&mut self, snapshot: &Snapshot) {
        let started = self.clock.now();
        let own = key_of(self.lease.held.subnet);
        let standing = snapshot.records.iter().find(|record| record.name == own);
        self.suspect(&own, standing.map_or(snapshot.next, |record| record.modified));
        let leases: Vec<RawLease<'_>> = snapshot.records.iter().map(raw).collect();
        let touched = self.data_plane.leases.replace(&leases);
        info!(leases = leases.len(), peers = self.data_plane.leases.usable(), "leases listed again");
        self.on_touched("leases", started, &touched);
        if std::mem::replace(&mut self.data_plane.keep_unknown, snapshot.partial) && !snapshot.partial {
            self.resync("whole list");
        }
    }

    fn on_touched(&mut self, cause: &'static str, started: BootTime, touched: &Touched) {
        log_skipped(touched);
        let report = self.data_plane.on_leases(touched);
        self.after_round(cause, started, Ok(report));
        self.reporter.converged(self.clock.now().since(started));
    }

    /// Somebody wrote or deleted our own key: find out what it means, but not in a busy loop.
    fn suspect(&mut self, name: &str, revision: u64) {
        if name != key_of(self.lease.held.subnet) || revision == self.lease.held.modified {
            return;
        }
        let earliest = self.timers.checked.after(CHECK);
        self.timers.renew = Some(earliest.max(self.clock.now()));
    }

    // --- our own lease ---

    fn plan_renewal(&mut self) {
        let margin = self.renew_margin;
        self.timers.renew = self
            .lease
            .expires
            .map(|expires| BootTime(expires.0.saturating_sub(margin)).max(self.clock.now()));
    }

    fn renew(&mut self) {
        self.timers.renew = None;
        let now = self.clock.now();
        self.timers.checked = now;
        let (store, held, ttl) = (self.store.clone(), self.lease.held.clone(), self.claim.ttl);
        self.task = Some(tokio::spawn(async move { Outcome::Renewed(store.renew(&held, ttl).await, now) }));
    }

    fn claim_again(&mut self) {
        self.lost = true;
        let claim = Claim {
            previous: Some(self.lease.held.subnet),
            device_mac: Some(self.data_plane.vtep().mac),
            ..self.claim.clone()
        };
        let (store, now) = (self.store.clone(), self.clock.teller());
        self.task = Some(tokio::spawn(async move {
            Outcome::Acquired(acquire(&store, &claim, now, None).await.map(Box::new))
        }));
    }

    fn on_outcome(&mut self, outcome: Outcome) -> Result<(), Fatal> {
        self.task = None;
        match outcome {
            Outcome::Renewed(Ok(Renewal::Held(held)), sent) => {
                self.lease = OwnLease::new(held, sent);
                self.reporter.renewed();
                self.plan_renewal();
            }
            Outcome::Renewed(Ok(Renewal::Lost(standing)), _) => {
                let now = standing.map_or_else(|| "deleted or expired".to_owned(), |record| holder(&record));
                error!(subnet = %self.lease.held.subnet, key = now, "our lease is not ours any more; claiming again");
                self.claim_again();
            }
            Outcome::Renewed(Err(error), _) => self.renewal_failed(&error),
            Outcome::Acquired(Ok(acquired)) => self.on_acquired(*acquired),
            Outcome::Acquired(Err(error)) if error.is_fatal() => return Err(error.into()),
            Outcome::Acquired(Err(error)) => self.renewal_failed(&error),
        }
        Ok(())
    }

    fn renewal_failed(&mut self, error: &dyn std::fmt::Display) {
        let now = self.clock.now();
        let left = self.lease.expires.map(|expires| expires.since(now));
        self.timers.renew = Some(now.after((left.unwrap_or(RENEW_RETRY) / 8).clamp(RETRY, RENEW_RETRY)));
        self.reporter.renewal_fails(error, left);
    }

    fn on_acquired(&mut self, acquired: Acquired) {
        let former = std::mem::replace(&mut self.lease, acquired.lease).held.subnet;
        let subnet = self.lease.held.subnet;
        self.lost = false;
        self.reporter.renewed();
        self.reporter.lease_repaired();
        self.plan_renewal();
        if subnet == former {
            info!(%subnet, "the same subnet is leased again");
            return;
        }
        error!(%former, %subnet, "THIS NODE'S SUBNET HAS CHANGED: another node holds the former one. Pods started before keep \
            addresses of the former subnet and are cut off: restart them, and delete the bridge cni0 if it keeps the old address");
        let own = Own { subnet, mac: self.data_plane.vtep().mac, ..self.data_plane.leases.own().clone() };
        let leases: Vec<RawLease<'_>> = acquired.snapshot.records.iter().map(raw).collect();
        self.data_plane.leases.set_own(own, &leases);
        self.data_plane.set_address(subnet.network());
        self.rules.follow(Overlay { network: self.claim.config.network, subnet });
        // What the old watch has delivered may be ahead of this listing: follow the store from the listing on.
        self.watch = Watch::start(&self.store, &acquired.snapshot);
        self.resync("new subnet");
    }

    // --- time ---

    fn on_timer(&mut self) {
        let now = self.clock.now();
        let due = |timer: Option<BootTime>| timer.is_some_and(|due| due <= now);
        if due(self.timers.renew) {
            self.timers.renew = None;
            match &self.task {
                None if self.lost => self.claim_again(),
                None => self.renew(),
                Some(_) => self.timers.renew = Some(now.after(CHECK)),
            }
        }
        if due(self.timers.rules) {
            // Somebody may hold the lock of iptables for long: that delays the rules and nothing else.
            self.timers.rules = None;
            self.reporter.rules_are_late();
        }
        if due(self.timers.resync) {
            self.resync("resync");
        } else if due(self.timers.retry) {
            self.timers.retry = None;
            if self.reporter.device_is_failing() {
                self.resync("retry");
            } else {
                let report = self.data_plane.retry();
                self.write_file();
                self.after_round("retry", now, Ok(report));
            }
        }
    }
}

impl Timers {
    fn next(&self) -> Option<BootTime> {
        [self.renew, self.retry, self.resync, self.rules].into_iter().flatten().min()
    }
}

async fn join(task: &mut Option<JoinHandle<Outcome>>) -> Outcome {
    match task {
        None => std::future::pending().await,
        Some(running) => match running.await {
            Ok(outcome) => outcome,
            Err(error) => {
                let reason = format!("task ended: {error}");
                Outcome::Acquired(Err(StoreError::Unreachable(reason).into()))
            }
        },
    }
}

fn raw(record: &Record) -> RawLease<'_> {
    RawLease { name: &record.name, value: &record.value, created: record.created, modified: record.modified }
}

fn log_skipped(touched: &Touched) {
    for (name, skip) in touched.skipped.iter().take(NAMED) {
        warn!(key = %name, reason = skip.reason(), "lease is skipped: {}", skip.in_words());
    }
    if touched.skipped.len() > NAMED {
        warn!(more = touched.skipped.len() - NAMED, "more leases are skipped");
    }
}

/// Who stands in our key, for the log.
fn holder(record: &Record) -> String {
    match crate::model::LeaseAttrs::from_json(&record.value) {
        Ok(attrs) => match attrs.node_id {
            Some(id) => format!("written by node {id} with public IP {}", attrs.public_ip),
            None => format!("written with public IP {}", attrs.public_ip),
        },
        Err(error) => format!("overwritten: {error}"),
    }
}
