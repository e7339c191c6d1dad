//! Everything the daemon says about itself: the published status, metrics, systemd, and log lines about troubles that last.
//!
//! It decides nothing for the daemon; what an operator reads is made by pure functions in `status` and `metrics`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use super::acquire::OwnLease;
use super::contest::Begun;
use super::culprit::Evidence;
use super::data_plane::Report;
use crate::clock::BootTime;
use crate::health::{Ping, Sources};
use crate::logging::{Recurring, Tell};
use crate::metrics::{Metrics, RepairKind};
use crate::model::IfName;
use crate::model::fights::{Fights, Verdict};
use crate::model::lease_set::{LeaseSet, Skipped};
use crate::model::two_stores::Origin;
use crate::model::underlay::Underlay;
use crate::notify::{Notifier, State};
use crate::status::{self, Device, Link, Peers, Phase, Status, status_line};
use crate::status_socket::{self, PeersQuestion};
use crate::store::{Revision, StoreError};

/// systemd waits this much longer each time we say that we are still waiting.
const EXTEND: Duration = Duration::from_secs(60);
/// systemd is told another status line no more often than this, unless the daemon enters another phase.
const SAY: Duration = Duration::from_secs(1);
/// A trouble that lasts is mentioned again after this.
const REMIND: Duration = Duration::from_secs(300);

/// The loop's end of the questions whether it turns, and of those about the peers.
#[derive(Debug)]
pub struct Questions {
    pings: mpsc::Receiver<Ping>,
    peers: mpsc::Receiver<PeersQuestion>,
}

impl Questions {
    /// Answers pings until somebody asks for the peers. Cancel-safe.
    pub(super) async fn about_peers(&mut self) -> PeersQuestion {
        loop {
            tokio::select! {
                Some(ping) = self.pings.recv() => ping.answer(),
                Some(question) = self.peers.recv() => return question,
                else => std::future::pending().await,
            }
        }
    }

    /// Answers every question, for as long as there is another loop that turns and no peer is known.
    pub async fn answer_all(&mut self) {
        loop {
            self.about_peers().await.answer(Vec::new());
        }
    }
}

/// What is served of the daemon's state.
#[derive(Debug)]
pub struct Published {
    /// For health and metrics.
    pub health: Sources,
    /// For `flanneld status`.
    pub local: status_socket::Sources,
}

/// The daemon's voice.
#[derive(Debug)]
pub struct Reporter {
    status: watch::Sender<Status>,
    metrics: Arc<Metrics>,
    notifier: Notifier,
    now: fn() -> Duration,
    watchdog: Option<Watchdog>,
    said: Said,
    ready_sent: bool,
    rules_tried: bool,
    device: Trouble,
    no_underlay: Trouble,
    renewal: Trouble,
    naming: Fights<()>,
    store_reasons: Fights<()>,
    /// Skipped keys that were not named.
    unnamed: u64,
    fights_told: BTreeMap<&'static str, Duration>,
}

impl Reporter {
    /// A reporter and what is served from it.
    #[must_use]
    pub fn new(notifier: Notifier, clock: fn() -> Duration) -> (Self, Questions, Published) {
        let (publish, status) = watch::channel(Status::default());
        let (ask, pings) = mpsc::channel(1);
        let (ask_for_peers, peers) = mpsc::channel(1);
        let metrics = Arc::new(Metrics::default());
        let served = Published {
            local: status_socket::Sources { status: status.clone(), peers: ask_for_peers, clock },
            health: Sources { status, metrics: metrics.clone(), pings: ask, clock },
        };
        let reporter = Self {
            status: publish,
            metrics,
            notifier,
            now: clock,
            watchdog: None,
            said: Said::default(),
            ready_sent: false,
            rules_tried: false,
            device: Trouble::new("flannel device"),
            no_underlay: Trouble::new("choosing the external interface"),
            renewal: Trouble::new("lease renewal"),
            naming: Fights::default(),
            store_reasons: Fights::default(),
            unnamed: 0,
            fights_told: BTreeMap::new(),
        };
        (reporter, Questions { pings, peers }, served)
    }

    /// systemd wants a sign of life at least this often.
    #[must_use]
    pub fn watched_every(mut self, interval: Option<Duration>) -> Self {
        self.watchdog = interval.map(|interval| Watchdog { pause: interval / 2, due: Duration::ZERO });
        self
    }

    // --- start ---

    /// Which store is used.
    pub(super) fn store(&mut self, describe: String) {
        self.update(|status| set(&mut status.store.describe, describe));
    }

    /// The start waits; systemd is told not to give up.
    pub(super) fn waiting(&mut self, phase: Phase) {
        self.update(|status| set(&mut status.phase, phase));
        self.tell(&[State::ExtendTimeout(EXTEND)]);
        self.say_in_time();
    }

    /// This is the underlay now.
    pub(super) fn underlay(&mut self, underlay: &Underlay) {
        let external = &underlay.external;
        let (name, address, mtu) = (external.name.clone(), external.address, external.mtu.get());
        self.update(|status| {
            set(&mut status.external, Some(status::External { name, address, mtu }))
                | set(&mut status.mtu, Some(underlay.mtu))
        });
        self.no_underlay.ends((self.now)());
    }

    /// A lease is being taken.
    pub(super) fn acquiring(&mut self) {
        self.update(|status| set(&mut status.phase, Phase::AcquiringLease));
    }

    // --- running ---

    /// The loop turns. Says so to systemd, from nowhere else and no more often than needed; returns when systemd is to be told
    /// something again, for the loop to turn by then.
    pub(super) fn alive(&mut self) -> Option<BootTime> {
        let next_line = self.said.outdated.then(|| BootTime(self.said.at.saturating_add(SAY)));
        self.sign_of_life().into_iter().chain(next_line).min()
    }

    fn sign_of_life(&mut self) -> Option<BootTime> {
        let now = (self.now)();
        let watchdog = self.watchdog.as_mut()?;
        let due = watchdog.due <= now;
        if due {
            watchdog.due = now.saturating_add(watchdog.pause);
        }
        let next = BootTime(watchdog.due);
        if due {
            self.tell(&[State::Watchdog]);
        }
        Some(next)
    }

    /// The store was seen at this revision.
    pub(super) fn seen(&mut self, revision: Revision) {
        self.update(|status| {
            // With two stores a revision says which one it belongs to; people want the number alone.
            status.store.revision = Origin::of(revision).1;
            // It changes with every event: nobody is woken for it.
            false
        });
    }

    /// Publishes where the node stands; tells systemd READY the first time everything is in place.
    pub(super) fn running(
        &mut self,
        device: &Device,
        lease: Option<&OwnLease>,
        leases: &LeaseSet,
        failed: usize,
        written: bool,
    ) {
        let lease = lease.and_then(|lease| {
            let mac = lease.mac()?;
            let held = &lease.held;
            Some(status::OwnLease {
                subnet: held.subnet,
                public_ip: held.attrs.public_ip,
                mac,
                renewed: lease.confirmed.0,
                expires: lease.expires.map(|expires| expires.0),
            })
        });
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let peers =
            Peers { programmed: count(leases.usable().saturating_sub(failed)), failed: count(failed) };
        let skipped = leases.skipped().iter().map(|(skip, count)| (skip.reason(), *count)).collect();
        let in_place = written && self.rules_tried && !self.device.lasts;
        self.update(|status| {
            let tried = status.first_list_tried || in_place;
            let another = status.device.as_ref() != Some(device);
            if another {
                status.device = Some(device.clone());
            }
            another
                | set(&mut status.lease, lease)
                | set(&mut status.peers, peers)
                | set(&mut status.skipped, skipped)
                | set(&mut status.subnet_env_written, written)
                | set(&mut status.first_list_tried, tried)
                | set(&mut status.phase, if in_place { Phase::Running } else { Phase::Programming })
        });
        if in_place && !self.ready_sent {
            self.ready_sent = true;
            info!(peers = peers.total(), "ready");
            self.tell(&[State::Ready]);
        }
        self.say_in_time();
    }

    /// The options are being taken over anew. Before the first READY systemd has nothing to know about that.
    pub(super) fn reloading(&mut self) {
        if self.ready_sent {
            self.tell(&[State::Reloading]);
        }
    }

    /// The options have been taken over.
    pub(super) fn reloaded(&mut self) {
        if self.ready_sent {
            self.tell(&[State::Ready]);
        }
    }

    /// The daemon stops.
    pub(super) fn stopping(&mut self) {
        self.update(|status| set(&mut status.phase, Phase::Stopping));
        self.tell(&[State::Stopping]);
        self.say_in_time();
    }

    /// A round of kernel work ended. `repaired`: it put right what somebody else changed.
    pub(super) fn round(&mut self, report: &Report, took: Duration, repaired: bool) {
        for (kind, count) in report.done.by_kind() {
            self.metrics.operations(kind, true, count);
            if repaired {
                self.repaired(RepairKind::from(kind), count);
            }
        }
        for (kind, count) in report.failed.by_kind() {
            self.metrics.operations(kind, false, count);
        }
        if !report.is_empty() {
            self.metrics.apply.observe(took);
        }
    }

    /// A change of leases is in the kernel, so long after it arrived.
    pub(super) fn converged(&mut self, took: Duration) {
        self.metrics.convergence.observe(took);
    }

    /// No interface can carry the tunnel: everything stays as it is until one can.
    pub(super) fn underlay_missing(&mut self, reason: &dyn std::fmt::Display) {
        self.no_underlay.goes_on(&reason.to_string(), (self.now)());
    }

    /// Whether no interface could carry the tunnel the last time.
    pub(super) fn underlay_is_missing(&self) -> bool {
        self.no_underlay.lasts
    }

    /// Keys that are skipped from now on: ten are named at once, then one in ten seconds; the others are counted.
    pub(super) fn skipped(&mut self, skipped: &[Skipped]) {
        for key in skipped {
            if self.naming.ask((), (self.now)()) == Verdict::Correct {
                let more = std::mem::take(&mut self.unnamed);
                warn!(
                    key = shortened(&key.name),
                    reason = key.skip.reason(),
                    public_ip = key.writer.and_then(|writer| writer.public_ip).map(tracing::field::display),
                    node = key.writer.and_then(|writer| writer.node).map(tracing::field::display),
                    revision = key.writer.map(|writer| writer.revision),
                    collides_with = key.rival.as_ref().map(tracing::field::display),
                    not_named_before = more,
                    "lease is skipped: {}",
                    key.skip.in_words()
                );
            } else {
                self.unnamed += 1;
            }
        }
    }

    /// Somebody keeps undoing our work: what, and who it may be.
    pub(super) fn fights(&mut self, begun: &Begun, device: &IfName, author: Option<u32>) {
        if begun.is_empty() {
            return;
        }
        let likely = Evidence::look(Path::new("/"), device, author).in_words(device);
        for (kind, what) in begun {
            let now = (self.now)();
            let told = self.fights_told.get(kind).is_some_and(|told| now.saturating_sub(*told) < REMIND);
            if !told {
                self.fights_told.insert(kind, now);
                warn!(%device, kind, %what, %likely,
                    "somebody keeps changing what belongs to us: from now on it is corrected every ten seconds");
            }
        }
    }

    /// The device is right.
    pub(super) fn device_works(&mut self) {
        self.device.ends((self.now)());
    }

    /// The device cannot be read or made right.
    pub(super) fn device_fails(&mut self, error: &dyn std::fmt::Display) {
        self.device.goes_on(&error.to_string(), (self.now)());
    }

    /// Whether the device was not right the last time.
    pub(super) fn device_is_failing(&self) -> bool {
        self.device.lasts
    }

    /// The lease was renewed or taken again.
    pub(super) fn renewed(&mut self) {
        debug!("lease confirmed");
        self.renewal.ends((self.now)());
    }

    /// Whether the lease could not be renewed the last time.
    pub(super) fn renewal_is_failing(&self) -> bool {
        self.renewal.lasts
    }

    /// The firewall was looked at.
    pub(super) fn rules(&mut self, rules: status::Rules, repaired: u64) {
        debug!(in_force = rules.in_force, repaired, "firewall looked at");
        self.rules_tried = true;
        self.update(|status| set(&mut status.rules, Some(rules)));
        self.repaired(RepairKind::Firewall, repaired);
    }

    /// Readiness does not wait for the firewall any longer.
    pub(super) fn rules_are_late(&mut self) {
        warn!("the firewall rules are not in force yet; everything else goes on");
        self.rules_tried = true;
    }

    /// The lease was lost and taken again.
    pub(super) fn lease_repaired(&mut self) {
        self.repaired(RepairKind::Lease, 1);
    }

    /// `subnet.env` had been changed or deleted and was written again.
    pub(super) fn file_repaired(&mut self) {
        self.repaired(RepairKind::SubnetEnv, 1);
    }

    fn repaired(&mut self, kind: RepairKind, count: u64) {
        self.metrics.repairs(kind, count);
        let now = (self.now)();
        self.update(|status| status.repaired(kind.label(), count, now));
    }

    /// The lease could not be renewed; `left` is what remains of it.
    pub(super) fn renewal_fails(&mut self, error: &dyn std::fmt::Display, left: Option<Duration>) {
        let expired = if left == Some(Duration::ZERO) {
            "; it has expired: another node may take this subnet"
        } else {
            ""
        };
        debug!(left_s = left.map(|left| left.as_secs()), "lease is not renewed");
        self.renewal.goes_on(&format!("{error}{expired}"), (self.now)());
    }

    /// The watch on the store is interrupted, or still is for another reason.
    pub(super) fn store_down(&mut self, error: &StoreError) {
        let now = (self.now)();
        self.update(|status| {
            let store = &mut status.store;
            let since = match store.link {
                Link::Down { since, .. } => since,
                _ => {
                    store.watch_restarts += 1;
                    now
                }
            };
            set(&mut store.link, Link::Down { since, error: error.to_string() })
        });
        if self.store_reasons.ask((), now) == Verdict::Correct {
            warn!(%error, "the store cannot be watched; peers stay as they are until it is back");
        }
    }

    /// The watch on the store works.
    pub(super) fn store_up(&mut self) {
        let now = (self.now)();
        self.update(|status| {
            if matches!(status.store.link, Link::Down { .. }) {
                info!("the store is watched again");
            }
            set(&mut status.store.link, Link::Up { since: now })
        });
    }

    /// Changes what is published; `change` says whether anything is another.
    fn update(&mut self, change: impl FnOnce(&mut Status) -> bool) {
        self.said.outdated |= self.status.send_if_modified(change);
    }

    /// Tells systemd the status line, unless it was told one just now.
    fn say_in_time(&mut self) {
        let now = (self.now)();
        if now.saturating_sub(self.said.at) >= SAY || self.said.phase != self.status.borrow().phase {
            self.say(now);
        }
    }

    /// Tells systemd the status line, if it is another one.
    fn say(&mut self, now: Duration) {
        let (line, phase) = {
            let status = self.status.borrow();
            (status_line(&status, now), status.phase.clone())
        };
        if line != self.said.line {
            self.tell(&[State::Status(line.clone())]);
        }
        self.said = Said { line, phase, at: now, outdated: false };
    }

    fn tell(&self, states: &[State]) {
        if let Err(error) = self.notifier.tell(states) {
            debug!(%error, "systemd was not told");
        }
    }
}

/// Puts a value in its place; whether it is another one.
fn set<T: PartialEq>(place: &mut T, value: T) -> bool {
    let changed = *place != value;
    if changed {
        *place = value;
    }
    changed
}

/// What systemd was last told of the status.
#[derive(Debug, Default)]
struct Said {
    line: String,
    phase: Phase,
    at: Duration,
    /// The status has changed since.
    outdated: bool,
}

/// What systemd's watchdog waits for: one datagram in half of its interval, as `sd_watchdog_enabled(3)` advises.
#[derive(Debug)]
struct Watchdog {
    pause: Duration,
    due: Duration,
}

/// A key as it may stand in the log: somebody else chose its length.
fn shortened(name: &str) -> String {
    const LONGEST: usize = 64;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… ({} bytes)", name.get(..end).unwrap_or_default(), name.len()),
        None => name.to_owned(),
    }
}

/// A trouble that is logged when it starts or changes, rarely while it lasts, and when it ends.
#[derive(Debug)]
struct Trouble {
    what: &'static str,
    recurring: Recurring,
    lasts: bool,
}

impl Trouble {
    fn new(what: &'static str) -> Self {
        Self { what, recurring: Recurring::new(REMIND), lasts: false }
    }

    fn goes_on(&mut self, problem: &str, now: Duration) {
        self.lasts = true;
        match self.recurring.failed(problem, now) {
            Tell::Now => error!(%problem, "{} fails; trying again", self.what),
            Tell::Lasts { time, failures } => {
                error!(%problem, failures, seconds = time.as_secs(), "{} still fails", self.what);
            }
            Tell::Not => debug!(%problem, "{} still fails", self.what),
        }
    }

    fn ends(&mut self, now: Duration) {
        self.lasts = false;
        if let Some(ended) = self.recurring.succeeded(now) {
            info!(failures = ended.failures, seconds = ended.time.as_secs(), "{} works again", self.what);
        }
    }
}
