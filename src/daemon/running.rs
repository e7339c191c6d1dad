//! The loop of a node that holds a lease: change of a lease | change in the kernel | time to renew | retry | stop.
//!
//! Whatever happens only says what to look at again; nothing here blocks, and what we ask of the store is asked by one task
//! beside the loop. `wake` says what wakes the loop, `peers` takes over what the store tells, `own_lease` keeps our own key, `clones`
//! tells who else does, `shared_mac` who has our MAC, `underlay` follows the interface below the tunnel.

mod clones;
mod own_lease;
mod peers;
mod shared_mac;
mod underlay;
mod wake;

use std::pin::pin;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::warn;

use super::acquire::{Acquired, Claim, OwnLease};
use super::data_plane::{DataPlane, Report, RoundLog};
use super::rules::{FirstLook, Looked, Rules};
use super::{Fatal, Inputs, Reporter, Settings, SubnetFile};
use crate::clock::{BootTime, Clock};
use crate::kernel::{Change, Kernel, KernelError};
use crate::model::masquerade::Overlay;
use crate::options::Options;
use crate::store::{LeaseStore, Snapshot};
use clones::Clones;
use own_lease::{Outcome, join};
pub(super) use underlay::Below;
use wake::{Turns, Wake, Watch};

/// Everything is compared with the kernel again this often, should a notification ever be missing.
const RESYNC: Duration = Duration::from_secs(300);
/// What failed in the kernel or in the file system is tried again after this, then ever more rarely: most cures are notified.
const RETRY: Duration = Duration::from_secs(1);
/// Longest pause between two such tries.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long readiness waits for the first look at the firewall.
const RULES: Duration = Duration::from_secs(1);
/// The cause of rounds that put right what somebody else changed.
const REPAIR: &str = "repair";

/// A node that holds a lease.
#[derive(Debug)]
pub(super) struct Running<S, K> {
    store: S,
    data_plane: DataPlane<K>,
    below: Below,
    lease: OwnLease,
    claim: Claim,
    settings: Settings,
    file: SubnetFile,
    rules: Rules,
    clock: Clock,
    reporter: Reporter,
    watch: Watch,
    task: Option<JoinHandle<Outcome>>,
    timers: Timers,
    /// Pause before the next retry.
    pause: Duration,
    /// The listing the lease was decided on, until it is programmed.
    first: Snapshot,
    /// The lease is known to be gone and is being claimed again.
    lost: bool,
    clones: Clones,
    log: RoundLog,
}

/// When to do what, on the boot clock.
#[derive(Debug, Default)]
struct Timers {
    renew: Option<BootTime>,
    /// Something happened to our key: to look at it, whatever a conversation that is under way will bring.
    check: Option<BootTime>,
    retry: Option<BootTime>,
    resync: Option<BootTime>,
    rules: Option<BootTime>,
    checked: BootTime,
}

impl<S: LeaseStore, K: Kernel> Running<S, K> {
    /// Takes over from the start. The kernel is programmed with the first `run`.
    pub(super) fn new(
        (store, clock, reporter): (S, Clock, Reporter),
        settings: Settings,
        below: Below,
        (claim, acquired): (Claim, Acquired),
        (data_plane, first_look): (DataPlane<K>, Option<FirstLook>),
    ) -> Self {
        let overlay = Overlay { network: claim.config.network, subnet: acquired.lease.held.subnet };
        let links = [data_plane.vtep().parent.clone(), data_plane.vtep().name.clone()];
        let file = SubnetFile::new(&settings, claim.config.network, data_plane.vtep().mtu);
        Self {
            watch: Watch::new(&store, &acquired.snapshot),
            rules: Rules::start(&settings, first_look, overlay, links),
            settings,
            lease: acquired.lease,
            first: acquired.snapshot,
            task: None,
            timers: Timers::default(),
            pause: RETRY,
            lost: false,
            clones: Clones::default(),
            log: RoundLog::default(),
            store,
            data_plane,
            below,
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
    pub(super) async fn run(mut self, inputs: Inputs<impl Future<Output = ()>>) -> Result<(), Fatal> {
        let Inputs { stop, mut questions, mut options } = inputs;
        self.plan_renewal();
        self.timers.rules = Some(self.clock.now().after(RULES));
        self.take_first_list();
        self.reporter.store_up();
        self.give_up_shared_mac();
        self.resync("start");
        let (mut stop, mut turns) = (pin!(stop), Turns::default());
        loop {
            self.report();
            let next = self.next_timer().into_iter().chain(self.reporter.alive()).min();
            let (leases, changes) = self.data_plane.leases_and_changes();
            let others = async {
                tokio::select! {
                    () = &mut stop => Wake::Stop,
                    changes = changes => Wake::Changes(changes),
                    outcome = join(&mut self.task) => Wake::Outcome(outcome),
                    () = self.clock.sleep_until(next) => Wake::Time,
                    looked = self.rules.looked() => Wake::Rules(looked),
                    () = self.file.touched() => Wake::File,
                    Ok(()) = options.changed() => Wake::Options,
                    question = questions.about_peers() => Wake::Question(question),
                }
            };
            let update =
                async { Wake::Update(peers::next(&mut self.watch, leases, &mut self.reporter).await) };
            let wake = turns.next(pin!(update), pin!(others)).await;
            match wake {
                Wake::Update(update) => self.on_update(update),
                Wake::Changes(changes) => self.on_changes(&changes),
                Wake::Outcome(outcome) => self.on_outcome(outcome)?,
                Wake::Time => self.on_timer(),
                Wake::Rules(looked) => self.on_rules(&looked),
                Wake::File => self.keep_file(),
                Wake::Options => self.on_options(&options.borrow_and_update()),
                Wake::Question(question) => question.answer(self.data_plane.peers()),
                Wake::Stop => break,
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
        let (failed, written) = (plane.failed_peers(), self.file.is_written());
        self.reporter.running(plane.device(), lease, &plane.leases, failed, written);
    }

    // --- the kernel ---

    fn resync(&mut self, cause: &'static str) {
        let started = self.clock.now();
        self.timers.resync = Some(started.after(RESYNC));
        let result = self.data_plane.resync(None);
        self.keep_file();
        self.after_round(cause, started, result);
    }

    fn on_changes(&mut self, changes: &[Change]) {
        let started = self.clock.now();
        if changes.contains(&Change::Lost) {
            warn!("kernel notifications were lost; everything is compared again");
        }
        // The device stands on the underlay, so that comes first.
        if changes.iter().any(|change| matches!(change, Change::Underlay | Change::Lost)) {
            self.look_below();
        }
        if changes.iter().any(|change| *change != Change::Underlay) {
            let result = self.data_plane.on_changes(changes, started.0);
            self.after_round(REPAIR, started, result);
        }
    }

    fn after_round(&mut self, cause: &'static str, started: BootTime, result: Result<Report, KernelError>) {
        let took = self.clock.now().since(started);
        match result {
            Ok(report) => {
                self.log.say(cause, &report, took, self.clock.now());
                if report.device_is_right {
                    self.reporter.device_works();
                }
                self.reporter.round(&report, took, cause == REPAIR);
                self.reporter.fights(
                    &report.begun,
                    &self.data_plane.vtep().name,
                    self.data_plane.kernel.author(),
                );
            }
            Err(error) => self.reporter.device_fails(&error),
        }
        let failing = self.reporter.device_is_failing() || self.data_plane.has_failures();
        if failing || !self.file.is_written() {
            let due = self.clock.now().after(self.pause);
            self.timers.retry.get_or_insert(due);
        } else {
            self.timers.retry = None;
            self.pause = RETRY;
        }
    }

    fn retry(&mut self, now: BootTime) {
        self.timers.retry = None;
        self.pause = (self.pause * 2).min(LONGEST_RETRY);
        // What stood in a route's way may have gone in silence.
        if self.reporter.device_is_failing() || self.data_plane.has_conflicts() {
            self.resync("retry");
        } else {
            let report = self.data_plane.retry(now.0);
            self.keep_file();
            self.after_round("retry", now, Ok(report));
        }
    }

    fn keep_file(&mut self) {
        let now = self.clock.now();
        if self.file.keep(&self.lease, now.0) {
            self.reporter.file_repaired();
        }
        if !self.file.is_written() {
            self.timers.retry.get_or_insert(now.after(self.pause));
        }
    }

    // --- the options ---

    /// The options were read again; they may be the same.
    fn on_options(&mut self, options: &Options) {
        self.reporter.reloading();
        let margin = self.settings.renew_margin;
        self.settings.adjust(options);
        if self.settings.renew_margin != margin {
            self.plan_renewal();
        }
        self.rules.adjust(&self.settings);
        self.file.set_ip_masq(self.settings.ip_masq);
        self.keep_file();
        self.reporter.reloaded();
    }

    // --- the firewall ---

    fn on_rules(&mut self, looked: &Looked) {
        self.timers.rules = None;
        self.reporter.rules(looked.rules.clone(), looked.repaired);
    }

    // --- time ---

    fn next_timer(&self) -> Option<BootTime> {
        let timers = &self.timers;
        let others = [self.file.due(), self.data_plane.due(), self.data_plane.leases.due(), self.below.due];
        let others = others.map(|due| due.map(BootTime));
        [timers.renew, timers.check, timers.retry, timers.resync, timers.rules]
            .into_iter()
            .chain(others)
            .flatten()
            .min()
    }

    fn on_timer(&mut self) {
        let now = self.clock.now();
        let due = |timer: Option<BootTime>| timer.is_some_and(|due| due <= now);
        if due(self.timers.renew) || due(self.timers.check) {
            self.renew_or_claim(now);
        }
        if due(self.timers.rules) {
            // Somebody may hold the lock of iptables for long: that delays the rules and nothing else.
            self.timers.rules = None;
            self.reporter.rules_are_late();
        }
        if due(self.file.due().map(BootTime)) {
            self.keep_file();
        }
        if due(self.below.due.map(BootTime)) {
            self.look_below();
        }
        if due(self.data_plane.leases.due().map(BootTime)) {
            self.end_grace(now);
        }
        if due(self.data_plane.due().map(BootTime)) {
            let result = self.data_plane.correct_what_is_fought_over(now.0);
            self.after_round(REPAIR, now, result);
        }
        if due(self.timers.resync) {
            self.resync("resync");
            self.look_below();
        } else if due(self.timers.retry) {
            self.retry(now);
        }
    }
}
