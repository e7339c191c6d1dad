//! Keeps our own lease: renews it, notices that it was lost or says something outdated, and claims it again.

use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{error, info};

use super::clones::clone_of;
use super::{RETRY, Running, Watch};
use crate::clock::BootTime;
use crate::daemon::acquire::{AcquireError, Acquired, Claim, OwnLease, acquire};
use crate::daemon::{Fatal, pods};
use crate::kernel::Kernel;
use crate::model::LeaseAttrs;
use crate::model::lease::parse_key;
use crate::model::lease_set::Own;
use crate::model::masquerade::Overlay;
use crate::store::{LeaseStore, Record, Renewal, Revision, StoreError};

/// Suspicious events about our own key are looked into at most this often.
const CHECK: Duration = Duration::from_secs(1);
/// Longest pause between two tries to renew.
const RENEW_RETRY: Duration = Duration::from_secs(60);
/// Pause between two tries to get a lease again: the peers have dropped us.
const CLAIM_RETRY: Duration = Duration::from_secs(3);

/// How a conversation about our own lease ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Renewed(Result<Renewal, StoreError>, BootTime),
    /// With the revision of the store that was known before.
    Acquired(Result<Box<Acquired>, AcquireError>, Revision),
}

/// The end of the task, if there is one.
pub(super) async fn join(task: &mut Option<JoinHandle<Outcome>>) -> Outcome {
    match task {
        None => std::future::pending().await,
        Some(running) => match running.await {
            Ok(outcome) => outcome,
            Err(error) => {
                let reason = format!("task ended: {error}");
                Outcome::Acquired(Err(StoreError::Unreachable(reason).into()), 0)
            }
        },
    }
}

impl<S: LeaseStore, K: Kernel> Running<S, K> {
    /// This node as the leases ought to be judged from.
    fn own(&self) -> Own {
        Own {
            subnet: self.lease.held.subnet,
            public_ip: self.claim.public_ip,
            mac: self.data_plane.vtep().mac,
            underlay: self.below.needed.clone(),
            ..self.data_plane.leases.own().clone()
        }
    }

    /// The lease is lost, says something else than what we are now, or the others were judged by what we no longer are.
    pub(super) fn is_outdated(&self) -> bool {
        let held = &self.lease.held.attrs;
        self.lost
            || held.public_ip != self.claim.public_ip
            || self.lease.mac().is_some_and(|mac| mac != self.data_plane.vtep().mac)
            || self.own() != *self.data_plane.leases.own()
    }

    pub(super) fn plan_renewal(&mut self) {
        let (margin, now) = (self.settings.renew_margin, self.clock.now());
        let planned = self.lease.expires.map(|expires| BootTime(expires.0.saturating_sub(margin)).max(now));
        self.timers.renew = if self.is_outdated() { Some(now) } else { planned };
    }

    pub(super) fn renew_or_claim(&mut self, now: BootTime) {
        (self.timers.renew, self.timers.check) = (None, None);
        match &self.task {
            Some(_) => self.timers.check = Some(now.after(CHECK)),
            None if self.is_outdated() => self.claim_again(),
            None => self.renew(),
        }
    }

    fn renew(&mut self) {
        let now = self.clock.now();
        self.timers.checked = now;
        let (store, held, ttl) = (self.store.clone(), self.lease.held.clone(), self.claim.ttl);
        self.task = Some(tokio::spawn(async move { Outcome::Renewed(store.renew(&held, ttl).await, now) }));
    }

    fn claim_again(&mut self) {
        let claim = Claim {
            previous: Some(self.lease.held.subnet),
            device_mac: Some(self.data_plane.vtep().mac),
            ..self.claim.clone()
        };
        let (store, now) = (self.store.clone(), self.clock.teller());
        let known = self.data_plane.leases.revision();
        self.task = Some(tokio::spawn(async move {
            Outcome::Acquired(acquire(&store, &claim, now, None).await.map(Box::new), known)
        }));
    }

    /// We are writing a key ourselves, the one we have or another, and mostly hear of it before we have the answer: until that has
    /// come nobody knows whether an event is our own doing.
    pub(super) fn is_claiming(&self, record: &Record) -> bool {
        let as_ours = |attrs: LeaseAttrs| {
            attrs.public_ip == self.claim.public_ip && attrs.node_id == self.claim.node_id
        };
        self.task.is_some()
            && (self.is_ours(&record.name) || LeaseAttrs::from_json(&record.value).is_ok_and(as_ours))
    }

    /// Whether a key is that of our subnet, which has one spelling only.
    fn is_ours(&self, name: &str) -> bool {
        parse_key(name).is_ok_and(|subnet| subnet == self.lease.held.subnet)
    }

    /// Somebody wrote or deleted our own key: find out what it means, but not in a busy loop.
    pub(super) fn suspect(&mut self, name: &str, revision: u64) {
        if self.is_ours(name) && revision != self.lease.held.modified {
            self.check_soon();
        }
    }

    /// Asks the store about our key now, or a second after the last time (longer while a clone does the same).
    pub(super) fn check_soon(&mut self) {
        let earliest = self.timers.checked.after(self.clones.pause(self.clock.now()).unwrap_or(CHECK));
        self.timers.check = Some(earliest.max(self.clock.now()));
    }

    pub(super) fn on_outcome(&mut self, outcome: Outcome) -> Result<(), Fatal> {
        self.task = None;
        match outcome {
            Outcome::Renewed(Ok(Renewal::Held(held)), sent) => {
                self.lease = OwnLease::new(held, sent);
                self.reporter.renewed();
                self.plan_renewal();
            }
            Outcome::Renewed(Ok(Renewal::Lost(standing)), _) => {
                let standing_attrs = standing.as_ref().and_then(|it| LeaseAttrs::from_json(&it.value).ok());
                if let Some(clone) = standing_attrs.and_then(|attrs| clone_of(&self.claim, &attrs)) {
                    self.clones.seen(self.clock.now());
                    error!("{}", clone.in_words(self.lease.held.subnet));
                }
                let now = standing.map_or_else(|| "deleted or expired".to_owned(), |record| holder(&record));
                error!(subnet = %self.lease.held.subnet, key = now, "our lease is not ours any more; claiming again");
                self.lost = true;
                self.claim_again();
            }
            Outcome::Renewed(Err(error), _) => self.renewal_failed(&error),
            Outcome::Acquired(Ok(acquired), known) => self.on_acquired(*acquired, known),
            // With a lease that stands there is something to keep up while the operator helps.
            Outcome::Acquired(Err(error), _) if error.is_fatal() && self.lost => return Err(error.into()),
            Outcome::Acquired(Err(error), _) => self.renewal_failed(&error),
        }
        Ok(())
    }

    fn renewal_failed(&mut self, error: &dyn std::fmt::Display) {
        let now = self.clock.now();
        let left =
            self.lease.expires.map(|expires| if self.lost { Duration::ZERO } else { expires.since(now) });
        let pause =
            if self.lost { CLAIM_RETRY } else { (left.unwrap_or(RENEW_RETRY) / 8).clamp(RETRY, RENEW_RETRY) };
        self.timers.renew = Some(now.after(pause));
        self.reporter.renewal_fails(error, left);
    }

    fn on_acquired(&mut self, acquired: Acquired, known: Revision) {
        let former = std::mem::replace(&mut self.lease, acquired.lease).held.subnet;
        let (subnet, was_lost) = (self.lease.held.subnet, std::mem::take(&mut self.lost));
        self.reporter.renewed();
        if was_lost {
            self.reporter.lease_repaired();
        }
        if subnet == former {
            info!(%subnet, public_ip = %self.claim.public_ip, "the same subnet is leased again");
        } else {
            let pods = pods::in_words(&pods::of(former));
            error!(%former, %subnet, %pods, "THIS NODE'S SUBNET HAS CHANGED: another node holds the former one. Pods started \
                before keep addresses of the former subnet and are cut off: restart them, and delete the bridge cni0 if it \
                keeps the old address");
            self.data_plane.set_address(subnet.network());
            self.rules.follow(Overlay { network: self.claim.config.network, subnet });
        }
        let own = self.own();
        if own != *self.data_plane.leases.own() {
            // The watch may have told of our own write already.
            self.data_plane.leases.expect_list_since(known);
            self.judge_from(own, &acquired.snapshot);
            // What the old watch has delivered may be ahead of this listing: follow the store from the listing on.
            self.watch = Watch::new(&self.store, &acquired.snapshot);
            self.resync("own lease");
        }
        self.plan_renewal();
    }
}

/// Who stands in our key, for the log.
fn holder(record: &Record) -> String {
    match LeaseAttrs::from_json(&record.value) {
        Ok(attrs) => match attrs.node_id {
            Some(id) => format!("written by node {id} with public IP {}", attrs.public_ip),
            None => format!("written with public IP {}", attrs.public_ip),
        },
        Err(error) => format!("overwritten: {error}"),
    }
}
