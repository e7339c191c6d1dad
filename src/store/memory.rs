//! A store in memory with the semantics of etcd v3, and with faults on demand: for tests and simulations.
//!
//! Time is tokio's, so leases run out under paused time as well.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::etcd::Etcd;
use super::key_value::{
    Batch, Broken, Changes, Condition, Grant, KeyValue, Listing, Opened, Refreshed, Write,
};
use super::{Event, Record, Revision, StoreError};
use crate::model::two_stores::Origin;

/// What a backup holds: keys, and leases without how much of their time was over.
#[derive(Debug, Clone)]
pub struct Backup {
    revision: Revision,
    keys: BTreeMap<String, Record>,
    leases: Vec<(i64, Duration)>,
}

/// A [`super::LeaseStore`] without a server.
pub type MemoryStore = Etcd<Memory>;

/// The store. Clones share the content.
#[derive(Debug, Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    cluster: u64,
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<String, Record>,
    history: VecDeque<(String, Event)>,
    leases: BTreeMap<i64, Lease>,
    /// No lease runs out before.
    no_expiry_before: Option<Instant>,
    last_lease: i64,
    /// Calls that fail before they do anything.
    failing: u32,
    /// Whether the next write happens but is answered with an error.
    losing_answer: bool,
    /// Streams of an earlier epoch are broken.
    epoch: u64,
    down: bool,
    silent: bool,
    calls: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    until: Instant,
}

impl Default for Memory {
    fn default() -> Self {
        let state = State {
            cluster: 1,
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            leases: BTreeMap::new(),
            no_expiry_before: None,
            last_lease: 100,
            failing: 0,
            losing_answer: false,
            epoch: 0,
            down: false,
            silent: false,
            calls: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(()) }
    }
}

/// What an operator, another node or a fault does. None of it counts as a call.
impl Memory {
    /// Writes a key, unconditionally. With `ttl` it is bound to a new lease.
    pub fn set(&self, key: &str, value: &str, ttl: Option<Duration>) -> Revision {
        let mut state = self.lock();
        let lease = ttl.map(|ttl| state.grant(ttl));
        let revision = state.write(key, value, lease);
        self.changed.send_replace(());
        revision
    }

    /// Deletes a key.
    pub fn remove(&self, key: &str) {
        self.lock().delete(key);
        self.changed.send_replace(());
    }

    /// What stands in a key.
    #[must_use]
    pub fn read(&self, key: &str) -> Option<Record> {
        self.lock().keys.get(key).cloned()
    }

    /// Every key and what stands in it.
    #[must_use]
    pub fn content(&self) -> BTreeMap<String, Record> {
        self.lock().keys.clone()
    }

    /// How many leases are alive.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.lock().leases.len()
    }

    /// How many requests have been made so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Lets the next `count` calls fail.
    pub fn fail(&self, count: u32) {
        self.lock().failing = count;
    }

    /// Lets the next write happen, but answers it with an error.
    pub fn lose_answer(&self) {
        self.lock().losing_answer = true;
    }

    /// Breaks every watch that is open.
    pub fn cut(&self) {
        self.lock().epoch += 1;
        self.changed.send_replace(());
    }

    /// Makes the store unreachable, or reachable again.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
        self.cut();
    }

    /// Lets every call wait for an answer that does not come, or no longer.
    pub fn set_silent(&self, silent: bool) {
        self.lock().silent = silent;
        self.cut();
    }

    /// Forgets every change so far.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.compacted = state.revision;
        state.history.clear();
    }

    /// Replaces the store by an empty one that counts from the start, as after losing the disk.
    pub fn replace(&self, cluster: u64) {
        let mut state = self.lock();
        (state.cluster, state.revision, state.compacted) = (cluster, 1, 0);
        state.keys.clear();
        state.history.clear();
        state.leases.clear();
        drop(state);
        self.cut();
    }

    /// As `etcdctl snapshot save`.
    #[must_use]
    pub fn backup(&self) -> Backup {
        let state = self.lock();
        let leases = state.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect();
        Backup { revision: state.revision, keys: state.keys.clone(), leases }
    }

    /// As `etcdutl snapshot restore`: everything since the backup is undone, leases begin anew, and nobody can go on with a watch.
    /// `bump` is added to the revision (`--bump-revision`).
    pub fn restore(&self, backup: &Backup, cluster: u64, bump: Revision) {
        let mut state = self.lock();
        state.cluster = cluster;
        state.revision = backup.revision + bump;
        state.compacted = state.revision;
        state.keys.clone_from(&backup.keys);
        state.history.clear();
        let now = Instant::now();
        let lease = |(id, ttl): &(i64, Duration)| (*id, Lease { ttl: *ttl, until: now + *ttl });
        state.leases = backup.leases.iter().map(lease).collect();
        state.no_expiry_before = state.leases.values().map(|lease| lease.until).min();
        drop(state);
        self.cut();
    }

    /// Which cluster the store says it is.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.lock().cluster
    }

    /// Loses a lease but, unlike etcd, not the keys bound to it.
    pub fn forget_lease(&self, id: i64) {
        self.lock().leases.remove(&id);
    }
}

impl Memory {
    /// The content, with everything gone whose time is over.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(Instant::now());
        state
    }

    async fn call(&self, by: Instant) -> Result<MutexGuard<'_, State>, StoreError> {
        if self.lock().silent {
            tokio::time::sleep_until(by).await;
            return Err(unreachable());
        }
        let mut state = self.lock();
        state.calls += 1;
        if state.failing > 0 || state.down {
            state.failing = state.failing.saturating_sub(1);
            return Err(unreachable());
        }
        Ok(state)
    }
}

fn unreachable() -> StoreError {
    StoreError::Unreachable("memory: unreachable on demand".to_owned())
}

impl State {
    fn grant(&mut self, ttl: Duration) -> i64 {
        self.last_lease += 1;
        let until = Instant::now() + ttl;
        self.leases.insert(self.last_lease, Lease { ttl, until });
        self.no_expiry_before = Some(self.no_expiry_before.map_or(until, |known| known.min(until)));
        self.last_lease
    }

    fn write(&mut self, key: &str, value: &str, lease: Option<i64>) -> Revision {
        self.revision += 1;
        let modified = self.revision;
        let created = self.keys.get(key).map_or(modified, |record| record.created);
        let value = value.as_bytes().to_vec();
        let record = Record { name: last_part(key).to_owned(), value, created, modified, lease };
        self.keys.insert(key.to_owned(), record.clone());
        self.history.push_back((key.to_owned(), Event::Put(record)));
        modified
    }

    fn delete(&mut self, key: &str) {
        if self.keys.remove(key).is_some() {
            self.revision += 1;
            let event = Event::Delete(last_part(key).to_owned(), self.revision);
            self.history.push_back((key.to_owned(), event));
        }
    }

    fn revoke(&mut self, id: i64) {
        self.leases.remove(&id);
        let bound = self.keys.iter().filter(|(_, record)| record.lease == Some(id));
        for key in bound.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.delete(&key);
        }
    }

    fn expire(&mut self, now: Instant) {
        if self.no_expiry_before.is_none_or(|earliest| now < earliest) {
            return;
        }
        let mut over: Vec<_> = self.leases.iter().filter(|(_, lease)| lease.until <= now).collect();
        over.sort_by_key(|(_, lease)| lease.until);
        for id in over.into_iter().map(|(&id, _)| id).collect::<Vec<_>>() {
            self.revoke(id);
        }
        self.no_expiry_before = self.leases.values().map(|lease| lease.until).min();
    }

    fn holds(&self, key: &str, condition: Condition) -> bool {
        let record = self.keys.get(key);
        match condition {
            Condition::Absent => record.is_none(),
            Condition::At(modified) => record.is_some_and(|record| record.modified == modified),
        }
    }

    fn events(&self, folder: &str, from: Revision) -> Vec<Event> {
        let start = self.history.partition_point(|(_, event)| event.revision() < from);
        let ours = |(key, _): &&(String, Event)| key.starts_with(folder);
        self.history.range(start..).filter(ours).map(|(key, event)| renamed(event, folder, key)).collect()
    }
}

fn last_part(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// The event with the key named by what follows `folder`.
fn renamed(event: &Event, folder: &str, key: &str) -> Event {
    let name = key.strip_prefix(folder).unwrap_or(key).to_owned();
    match event {
        Event::Put(record) => Event::Put(Record { name, ..record.clone() }),
        Event::Delete(_, revision) => Event::Delete(name, *revision),
    }
}

impl KeyValue for Memory {
    type Changes = MemoryChanges;

    const ORIGIN: Origin = Origin::V3;

    async fn get(&self, key: &str, by: Instant) -> Result<Option<Record>, StoreError> {
        Ok(self.call(by).await?.keys.get(key).cloned())
    }

    async fn list(&self, folder: &str, by: Instant) -> Result<Listing, StoreError> {
        let state = self.call(by).await?;
        let below = state.keys.iter().filter_map(|(key, record)| {
            let name = key.strip_prefix(folder)?.to_owned();
            Some(Record { name, ..record.clone() })
        });
        Ok(Listing { records: below.collect(), revision: state.revision, cluster: state.cluster })
    }

    async fn grant(&self, ttl: Duration, by: Instant) -> Result<Grant, StoreError> {
        Ok(Grant { id: self.call(by).await?.grant(ttl), ttl })
    }

    async fn revoke(&self, lease: i64, by: Instant) -> Result<(), StoreError> {
        self.call(by).await?.revoke(lease);
        self.changed.send_replace(());
        Ok(())
    }

    async fn put(&self, write: &Write<'_>, by: Instant) -> Result<Option<Revision>, StoreError> {
        let mut state = self.call(by).await?;
        let lease = write.grant.map(|grant| grant.id);
        if lease.is_some_and(|id| !state.leases.contains_key(&id)) {
            let doing = format!("write {}", write.key);
            return Err(StoreError::Refused { doing, reason: "requested lease not found".to_owned() });
        }
        if !state.holds(write.key, write.condition) {
            return Ok(None);
        }
        let revision = state.write(write.key, write.value, lease);
        let lost = std::mem::take(&mut state.losing_answer);
        self.changed.send_replace(());
        if lost { Err(unreachable()) } else { Ok(Some(revision)) }
    }

    async fn refresh(
        &self,
        _: &str,
        modified: Revision,
        grant: Grant,
        by: Instant,
    ) -> Result<Refreshed, StoreError> {
        let mut state = self.call(by).await?;
        let Some(lease) = state.leases.get_mut(&grant.id) else { return Ok(Refreshed::Gone) };
        lease.until = Instant::now() + lease.ttl;
        Ok(Refreshed::Alive { modified, ttl: lease.ttl })
    }

    async fn lifetime(&self, lease: i64, by: Instant) -> Result<Option<Duration>, StoreError> {
        Ok(self.call(by).await?.leases.get(&lease).map(|lease| lease.ttl))
    }

    async fn delete(&self, key: &str, modified: Revision, by: Instant) -> Result<bool, StoreError> {
        let mut state = self.call(by).await?;
        let holds = state.holds(key, Condition::At(modified));
        if holds {
            state.delete(key);
            self.changed.send_replace(());
        }
        Ok(holds)
    }

    async fn watch(
        &self,
        folder: &str,
        from: Revision,
        by: Instant,
    ) -> Result<Opened<MemoryChanges>, Broken> {
        let state = self.call(by).await.map_err(Broken::Failed)?;
        let changes = MemoryChanges {
            store: self.clone(),
            folder: folder.to_owned(),
            from,
            epoch: state.epoch,
            changed: self.changed.subscribe(),
        };
        Ok(Opened { changes, revision: state.revision, cluster: state.cluster })
    }

    fn describe(&self) -> String {
        "a store in memory".to_owned()
    }
}

/// A watch of [`Memory`].
#[derive(Debug)]
pub struct MemoryChanges {
    store: Memory,
    folder: String,
    from: Revision,
    epoch: u64,
    changed: watch::Receiver<()>,
}

impl MemoryChanges {
    /// What there is now; `Err` says when the next lease runs out.
    fn ready(&mut self) -> Result<Result<Batch, Broken>, Option<Instant>> {
        let state = self.store.lock();
        if state.epoch != self.epoch {
            return Ok(Err(Broken::Failed(unreachable())));
        }
        if self.from <= state.compacted {
            return Ok(Err(Broken::Compacted));
        }
        let events = state.events(&self.folder, self.from);
        match events.last().map(Event::revision) {
            Some(resume) => Ok(Ok(Batch { events, resume })),
            None => {
                let expiry = state.no_expiry_before;
                self.from = self.from.max(state.revision + 1);
                Err(expiry)
            }
        }
    }
}

impl Changes for MemoryChanges {
    async fn next(&mut self) -> Result<Batch, Broken> {
        loop {
            self.changed.borrow_and_update();
            let expiry = match self.ready() {
                Ok(ready) => {
                    if let Ok(batch) = &ready {
                        self.from = batch.resume + 1;
                    }
                    return ready;
                }
                Err(expiry) => expiry,
            };
            let far = Duration::from_secs(86_400);
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() { return Err(Broken::Failed(unreachable())) },
                () = tokio::time::sleep_until(expiry.unwrap_or_else(|| Instant::now() + far)) => {}
            }
        }
    }
}
