//! Leases in etcd, the same for every API: which keys, under which conditions, and what an answer means.
//!
//! Speaks to the store only through [`KeyValue`]; knows no protocol.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::config::Keys;
use super::key_value::{Condition, Grant, KeyValue, Refreshed, Write};
use super::watch::Watch;
use super::{Held, LeaseStore, Record, Renewal, Revision, Snapshot, StoreError, Update, Written};
use crate::model::LeaseAttrs;
use crate::model::lease::key_of;
use crate::model::two_stores::Origin;

/// How long a call may take over all endpoints and retries.
pub(super) const CALL: Duration = Duration::from_secs(10);

/// A [`LeaseStore`] over any store with the semantics of etcd.
#[derive(Debug, Clone)]
pub struct Etcd<K> {
    kv: K,
    keys: Arc<Keys>,
    /// The cluster that answered the last list; 0 before. A watch compares, so that a replaced store is noticed.
    cluster: Arc<AtomicU64>,
}

impl<K: KeyValue> Etcd<K> {
    /// The leases below `prefix` in `kv`.
    pub fn new(kv: K, prefix: &str) -> Self {
        Self { kv, keys: Arc::new(Keys::below(prefix)), cluster: Arc::default() }
    }

    fn key(&self, subnet: Ipv4Network) -> String {
        format!("{}{}", self.keys.subnets, key_of(subnet))
    }

    /// Writes under `condition`, to live for `ttl` or for ever. A lost answer is not a lost write: the key is read again before
    /// anything but success is reported, and what then stands there decides.
    pub(super) async fn write(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        condition: Condition,
        ttl: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let by = Instant::now() + CALL;
        // One after the other: sent together, etcd mostly takes the write before its lease, refuses it and logs a warning.
        let grant = match ttl {
            Some(ttl) => Some(self.kv.grant(ttl, by).await?),
            None => None,
        };
        let (key, value) = (self.key(subnet), attrs.to_json());
        let lease = grant.map(|grant| grant.id);
        let write = Write { key: &key, value: &value, condition, grant };
        let put = self.kv.put(&write, by).await;
        let held = |modified| {
            let ttl = grant.map(|grant| grant.ttl);
            Ok(Written::Held(Held { subnet, attrs: attrs.clone(), modified, lease, ttl }))
        };
        let failed = match put {
            Ok(Some(modified)) => return held(modified),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        // Past the deadline one more try is worth it: it tells a success from a conflict.
        let found = self.kv.get(&key, by.max(Instant::now() + CALL / 4)).await;
        match found {
            Ok(Some(record)) if is_written(&record, &write, lease) => return held(record.modified),
            _ => self.give_up(lease).await,
        }
        match failed {
            None => Ok(Written::Conflict),
            Some(error) => Err(error),
        }
    }

    /// The key of a subnet.
    pub(super) async fn read(&self, subnet: Ipv4Network) -> Result<Option<Record>, StoreError> {
        self.kv.get(&self.key(subnet), Instant::now() + CALL).await
    }

    /// Writes the network config if there is none; `Ok(false)`: there is one, by whomever. Looks first: who may only read it, or finds
    /// the store full, shall not fail where there is nothing to write.
    pub(super) async fn create_config(&self, config: &[u8]) -> Result<bool, StoreError> {
        let by = Instant::now() + CALL;
        let key = &self.keys.config;
        if self.kv.get(key, by).await?.is_some() {
            return Ok(false);
        }
        let value = String::from_utf8_lossy(config);
        let write = Write { key, value: &value, condition: Condition::Absent, grant: None };
        Ok(self.kv.put(&write, by).await?.is_some())
    }

    /// Revokes a lease that is not needed any more. If that fails it runs out by itself.
    async fn give_up(&self, lease: Option<i64>) {
        if let Some(id) = lease.filter(|&id| id != Grant::NO_ID) {
            let by = Instant::now() + CALL / 4;
            if let Err(error) = self.kv.revoke(id, by).await {
                tracing::debug!(lease = id, %error, "a lease that is not needed any more could not be revoked");
            }
        }
    }

    /// What a renewal means when the store found nothing to prolong.
    async fn after_gone(&self, held: &Held, ttl: Duration) -> Result<Renewal, StoreError> {
        let found = self.read(held.subnet).await?;
        let Some(record) = found else { return Ok(Renewal::Lost(None)) };
        if !is_ours(&record, held) {
            return Ok(Renewal::Lost(Some(record)));
        }
        match self.write(held.subnet, &held.attrs, Condition::At(record.modified), Some(ttl)).await? {
            Written::Held(held) => Ok(Renewal::Held(held)),
            Written::Conflict => Ok(Renewal::Lost(self.read(held.subnet).await?)),
        }
    }
}

/// Whether the key holds exactly what we tried to write.
fn is_written(record: &Record, write: &Write<'_>, lease: Option<i64>) -> bool {
    let newer = match write.condition {
        Condition::Absent => true,
        Condition::At(before) => record.modified > before,
    };
    newer && record.lease == lease && record.value == write.value.as_bytes()
}

/// Whether the key is still the one we hold. Its revision alone does not say so: a refresh whose answer was lost changes it in
/// etcd v2. Value and lease together do, since no two leases of etcd v3 share an id.
fn is_ours(record: &Record, held: &Held) -> bool {
    record.lease == held.lease
        && (record.modified == held.modified
            || LeaseAttrs::from_json(&record.value).is_ok_and(|attrs| attrs == held.attrs))
}

impl<K: KeyValue> LeaseStore for Etcd<K> {
    async fn network_config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.kv.get(&self.keys.config, Instant::now() + CALL).await?;
        Ok(found.map(|record| record.value))
    }

    async fn list(&self) -> Result<Snapshot, StoreError> {
        let listing = self.kv.list(&self.keys.subnets, Instant::now() + CALL).await?;
        self.cluster.store(listing.cluster, Ordering::Relaxed);
        let (records, next) = (listing.records, listing.revision + 1);
        Ok(Snapshot { records, next, cluster: listing.cluster, partial: false })
    }

    async fn create(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Written, StoreError> {
        self.write(subnet, attrs, Condition::Absent, Some(ttl)).await
    }

    async fn update(
        &self,
        subnet: Ipv4Network,
        record: &Record,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Written, StoreError> {
        let ttl = record.lease.map(|_| ttl);
        let written = self.write(subnet, attrs, Condition::At(record.modified), ttl).await?;
        if let Written::Held(held) = &written
            && held.lease != record.lease
        {
            // The key is bound to the new lease by now: revoking the former one does not touch it.
            self.give_up(record.lease).await;
        }
        Ok(written)
    }

    async fn renew(&self, held: &Held, ttl: Duration) -> Result<Renewal, StoreError> {
        let by = Instant::now() + CALL;
        let key = self.key(held.subnet);
        // What is being adopted has just been listed, and the watch tells what happened to it since.
        let adopted = held.lease.is_some() && held.ttl.is_none();
        let (modified, lease) = if adopted {
            (held.modified, held.lease)
        } else {
            match self.kv.get(&key, by).await? {
                Some(record) if is_ours(&record, held) => (record.modified, record.lease),
                other => return Ok(Renewal::Lost(other)),
            }
        };
        let Some(id) = lease else {
            return Ok(Renewal::Held(Held { modified, ..held.clone() }));
        };
        let grant = Grant { id, ttl: held.ttl.unwrap_or(ttl) };
        let refresh = self.kv.refresh(&key, modified, grant, by);
        // A key that was adopted lives on a lease whose length somebody else chose. (Boxed: a call's future is large.)
        let (refreshed, lives) = if adopted {
            tokio::try_join!(Box::pin(refresh), Box::pin(self.kv.lifetime(id, by)))?
        } else {
            (refresh.await?, held.ttl)
        };
        match refreshed {
            Refreshed::Alive { modified, ttl } => {
                Ok(Renewal::Held(Held { modified, ttl: Some(lives.unwrap_or(ttl)), ..held.clone() }))
            }
            Refreshed::Gone => self.after_gone(held, ttl).await,
        }
    }

    async fn delete(&self, subnet: Ipv4Network, modified: Revision) -> Result<bool, StoreError> {
        self.kv.delete(&self.key(subnet), modified, Instant::now() + CALL).await
    }

    async fn watch(&self, next: Revision, sink: Sender<Update>) -> Infallible {
        let cluster = Some(self.cluster.load(Ordering::Relaxed)).filter(|&cluster| cluster != 0);
        Watch::new(&self.kv, &self.keys.subnets, &sink).run(next, cluster).await
    }

    fn reconnect(&self) {
        self.kv.reconnect();
    }

    fn config_key(&self) -> String {
        self.keys.config.clone()
    }

    fn decides(&self) -> Origin {
        K::ORIGIN
    }

    fn describe(&self) -> String {
        self.kv.describe()
    }
}
