//! The copy in v3 of what v2 holds of ours: our lease and, if v3 has none, the network config.
//!
//! Follows what was written in v2 and is never more than a copy: it overwrites nobody, and its troubles delay nothing in v2. What
//! fails is tried again for as long as the stores are watched.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::half;
use crate::model::LeaseAttrs;
use crate::model::lease::key_of;
use crate::model::two_stores::{Mirroring, Origin, mirror};
use crate::store::etcd::Etcd;
use crate::store::key_value::{Condition, KeyValue};
use crate::store::{Held, LeaseStore, Record, Renewal, Revision, StoreError, Written};

/// How long a call for v2 may be held up by its copy.
const INLINE: Duration = Duration::from_secs(3);
/// How often a key that is contested within one round is looked at again.
const ROUNDS: usize = 3;
/// First and longest pause before the copy is tried again, and the shortest between two rounds.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Our lease as it has to stand in v3.
#[derive(Debug, Clone)]
struct Wanted {
    subnet: Ipv4Network,
    attrs: LeaseAttrs,
    reserved: bool,
    ttl: Duration,
}

impl Wanted {
    fn is_met_by(&self, held: &Held) -> bool {
        held.subnet == self.subnet && held.attrs == self.attrs && (held.lease.is_none() || !self.reserved)
    }

    fn ttl(&self) -> Option<Duration> {
        (!self.reserved).then_some(self.ttl)
    }
}

/// What is to be done in v3.
#[derive(Debug, Default)]
struct Plan {
    /// Who we are.
    own: Option<LeaseAttrs>,
    wanted: Option<Wanted>,
    config: Option<Vec<u8>>,
    /// Keys of ours in subnets that are not ours in v2 any more.
    give_way: BTreeMap<Ipv4Network, Revision>,
    /// Revision of our key in v3 as we left it.
    known: Option<Revision>,
    /// How often something was to be done, and up to where it has been done: a watch that ends in between leaves the rest to the
    /// next one.
    asked: u64,
    settled: u64,
}

/// How one attempt at our key ended.
enum Step {
    Held(Held),
    /// Somebody else stands there.
    Blocked,
    /// It changed while we looked.
    Again,
}

/// The copy.
#[derive(Debug)]
pub(super) struct Mirror<K> {
    store: Etcd<K>,
    plan: Mutex<Plan>,
    /// Our key in v3; locked while it is worked on.
    held: tokio::sync::Mutex<Option<Held>>,
    again: Notify,
    moved: Notify,
}

impl<K: KeyValue> Mirror<K> {
    pub(super) fn new(store: Etcd<K>) -> Self {
        Self {
            store,
            plan: Mutex::default(),
            held: tokio::sync::Mutex::default(),
            again: Notify::new(),
            moved: Notify::new(),
        }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What we publish, as soon as v2 holds it.
    pub(super) fn own(&self) -> Option<LeaseAttrs> {
        self.plan().own.clone()
    }

    /// Copies our lease as it stands in v2. Returns whether the copy is a reservation.
    pub(super) async fn follow(&self, held: &Held, ttl: Duration) -> bool {
        let wanted =
            Wanted { subnet: held.subnet, attrs: held.attrs.clone(), reserved: held.lease.is_none(), ttl };
        {
            let mut plan = self.plan();
            let moved = plan.wanted.as_ref().is_none_or(|before| before.subnet != wanted.subnet);
            plan.own = Some(held.attrs.clone());
            plan.wanted = Some(wanted);
            if moved {
                plan.known = None;
                self.moved.notify_one();
            }
        }
        self.prolong().await;
        // Whoever works on it still may take long; then the next renewal knows.
        let Ok(copy) = self.held.try_lock() else { return false };
        copy.as_ref().is_some_and(|copy| copy.subnet == held.subnet && copy.lease.is_none())
    }

    /// Copies the config if there is none in v3.
    pub(super) async fn copy_config(&self, config: &[u8]) {
        self.plan().config = Some(config.to_owned());
        self.prolong().await;
    }

    /// The same, as soon as the stores are watched.
    pub(super) fn copy_config_later(&self, config: &[u8]) {
        self.plan().config = Some(config.to_owned());
        self.look_again();
    }

    /// Makes the copy right within a short time, or leaves it to [`Mirror::keep`].
    pub(super) async fn prolong(&self) {
        if !matches!(timeout(INLINE, self.mend()).await, Ok(Ok(()))) {
            self.look_again();
        }
    }

    /// Wakes whoever compares the two stores: our subnet is another one now.
    pub(super) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Something may have changed in v3.
    pub(super) fn look_again(&self) {
        self.plan().asked += 1;
        self.again.notify_one();
    }

    /// A key of v3 changed; `stands`: its revision now.
    pub(super) fn heard(&self, name: &str, stands: Option<Revision>) {
        let news = {
            let plan = self.plan();
            stands != plan.known && plan.wanted.as_ref().is_some_and(|wanted| key_of(wanted.subnet) == name)
        };
        if news {
            self.look_again();
        }
    }

    /// Our key in a subnet that is not ours in v2 has to go. If it is the one we copy, there is nothing to copy until v2 has
    /// given us another.
    pub(super) fn give_way(&self, subnet: Ipv4Network, modified: Revision) {
        {
            let mut plan = self.plan();
            plan.give_way.insert(subnet, modified);
            plan.wanted = plan.wanted.take().filter(|wanted| wanted.subnet != subnet);
        }
        self.look_again();
    }

    /// The lease was given back in v2; so is its copy: the one we hold, or else the one that was `listed`.
    pub(super) async fn release(&self, subnet: Ipv4Network, listed: Option<Revision>) {
        let held = self.held.lock().await.take_if(|held| held.subnet == subnet);
        if let Some(modified) = held.map(|held| held.modified).or(listed) {
            self.give_way(subnet, modified);
            self.prolong().await;
        }
    }

    /// Makes the copy right whenever something happened to it, and again while that fails. Never ends.
    pub(super) async fn keep(&self) -> Infallible {
        let (mut pause, mut failing) = (RETRY.0, false);
        let mut retry = {
            let plan = self.plan();
            (plan.asked != plan.settled).then(Instant::now)
        };
        loop {
            tokio::select! {
                () = self.again.notified() => {}
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
            }
            let mended = self.mend().await;
            match &mended {
                Ok(()) if failing => tracing::info!("the copy of the lease in v3 is right again"),
                Err(error) if !failing => {
                    tracing::warn!(%error, "the lease cannot be copied to v3; trying again, v2 goes on");
                }
                _ => {}
            }
            failing = mended.is_err();
            retry = failing.then(|| Instant::now() + pause);
            pause = if failing { (pause * 2).min(RETRY.1) } else { RETRY.0 };
            // Whoever deletes our key again and again shall not keep us busy.
            sleep(RETRY.0).await;
        }
    }

    /// Does all that is to be done; one thing that fails does not keep the others from it.
    async fn mend(&self) -> Result<(), StoreError> {
        let asked = self.plan().asked;
        let lease = self.mend_lease().await;
        let config = self.mend_config().await;
        let former = self.mend_former().await;
        lease.and(config).and(former).map_err(half(Origin::V3))?;
        self.plan().settled = asked;
        Ok(())
    }

    async fn mend_lease(&self) -> Result<(), StoreError> {
        let mut held = self.held.lock().await;
        for _ in 0..ROUNDS {
            let wanted = self.plan().wanted.clone();
            let Some(wanted) = wanted else { break };
            match self.step(&wanted, held.take()).await? {
                Step::Held(copy) => {
                    self.plan().known = Some(copy.modified);
                    *held = Some(copy);
                    return Ok(());
                }
                Step::Blocked => break,
                Step::Again => {}
            }
        }
        self.plan().known = None;
        Ok(())
    }

    async fn step(&self, wanted: &Wanted, known: Option<Held>) -> Result<Step, StoreError> {
        let (subnet, attrs) = (wanted.subnet, &wanted.attrs);
        if let Some(known) = known.filter(|held| wanted.is_met_by(held))
            && let Renewal::Held(held) = self.store.renew(&known, wanted.ttl).await?
        {
            return Ok(Step::Held(held));
        }
        let standing = self.store.read(subnet).await?;
        let facts = standing.as_ref().map(|record| (record.value.as_slice(), record.lease.is_none()));
        let written = match (mirror(attrs, wanted.reserved, facts), standing) {
            (Mirroring::Wait, _) => return Ok(Step::Blocked),
            (Mirroring::Keep, Some(record)) => self.adopt(wanted, record).await?,
            (Mirroring::Write, Some(record)) => self.rewrite(wanted, record).await?,
            (Mirroring::Create | Mirroring::Keep | Mirroring::Write, _) => {
                self.store.write(subnet, attrs, Condition::Absent, wanted.ttl()).await?
            }
        };
        Ok(match written {
            Written::Held(held) => {
                tracing::info!(%subnet, reservation = held.lease.is_none(), "lease is held in v3, too");
                Step::Held(held)
            }
            Written::Conflict => Step::Again,
        })
    }

    /// The key says what it should already: it is only prolonged, unless its lease has another length than ours.
    async fn adopt(&self, wanted: &Wanted, record: Record) -> Result<Written, StoreError> {
        let (subnet, attrs) = (wanted.subnet, wanted.attrs.clone());
        let held = Held { subnet, attrs, modified: record.modified, lease: record.lease, ttl: None };
        match self.store.renew(&held, wanted.ttl).await? {
            Renewal::Held(held) if held.ttl.is_none_or(|ttl| ttl == wanted.ttl) => Ok(Written::Held(held)),
            Renewal::Held(_) => self.rewrite(wanted, record).await,
            Renewal::Lost(_) => Ok(Written::Conflict),
        }
    }

    async fn rewrite(&self, wanted: &Wanted, record: Record) -> Result<Written, StoreError> {
        let lease = record.lease.filter(|_| !wanted.reserved);
        self.store.update(wanted.subnet, &Record { lease, ..record }, &wanted.attrs, wanted.ttl).await
    }

    async fn mend_config(&self) -> Result<(), StoreError> {
        let config = self.plan().config.clone();
        let Some(config) = config else { return Ok(()) };
        if self.store.create_config(&config).await? {
            tracing::info!(key = self.store.config_key(), "network config copied from v2 to v3");
        }
        self.plan().config = None;
        Ok(())
    }

    async fn mend_former(&self) -> Result<(), StoreError> {
        let former = self.plan().give_way.clone();
        for (subnet, modified) in former {
            if self.store.delete(subnet, modified).await? {
                tracing::info!(%subnet, "our key in v3 is given up: it is not ours in v2");
            }
            self.plan().give_way.remove(&subnet);
        }
        Ok(())
    }
}
