//! Both of etcd's stores at once, for moving a cluster from v2 to v3: v2 decides, v3 gets a copy.
//!
//! ```text
//! config:  v2 ──copied if v3 has none──► v3         our lease:  v2 first, then the same in v3 (`mirror`)
//! peers:   v2 ∪ v3, v2 wins (`view`, `watch`)       a store that does not answer stays as last known,
//!                                                   and v3 is given little more time than v2 (`beside`)
//! ```
//!
//! To the daemon this is one store. Its revisions say which of the two they belong to ([`Origin`]), so that a conditional write
//! compares with the right one. Who wins is decided in `model::two_stores`.

mod mirror;
mod view;
mod watch;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::mpsc::Sender;

use super::beside::{PATIENCE, beside};
use super::etcd::Etcd;
use super::key_value::{Condition, KeyValue};
use super::{Held, LeaseStore, Record, Renewal, Revision, Snapshot, StoreError, Update, Written};
use crate::model::LeaseAttrs;
use crate::model::lease::key_of;
use crate::model::two_stores::{Holder, Origin, same_config};
use mirror::Mirror;
use view::View;

/// The two stores. Clones share what is known of them.
#[derive(Debug, Clone)]
pub struct Both<P, S> {
    v2: Etcd<P>,
    v3: Etcd<S>,
    view: Arc<Mutex<View>>,
    mirror: Arc<Mirror<S>>,
    copies_config: bool,
}

/// An error with the store it came from.
fn half(store: Origin) -> impl Fn(StoreError) -> StoreError {
    move |error| match error {
        error @ (StoreError::Config(_) | StoreError::Half { .. }) => error,
        error => StoreError::Half { store, error: Box::new(error) },
    }
}

/// What was written in v2, as the daemon gets to see it.
fn of_v2(held: Held) -> Held {
    Held { modified: Origin::V2.modified(held.modified), ..held }
}

impl<P: KeyValue, S: KeyValue> Both<P, S> {
    /// The leases in `v2` and `v3`, of which `v2` decides.
    pub fn new(v2: Etcd<P>, v3: Etcd<S>) -> Self {
        let mirror = Arc::new(Mirror::new(v3.clone()));
        Self { v2, v3, view: Arc::default(), mirror, copies_config: true }
    }

    /// The same, but a network config that v3 lacks is not copied there.
    #[must_use]
    pub fn without_config(self) -> Self {
        Self { copies_config: false, ..self }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies what was written in v2. A reservation found in the copy makes one of the original: on the way back from v3 it
    /// must not become a lease that runs out.
    async fn written(&self, held: Held, ttl: Duration) -> Held {
        let reserved = self.mirror.follow(&held, ttl).await;
        if !reserved || held.lease.is_none() {
            return of_v2(held);
        }
        let condition = Condition::At(held.modified);
        match self.v2.write(held.subnet, &held.attrs, condition, None).await {
            Ok(Written::Held(reserved)) => {
                tracing::info!(subnet = %held.subnet, "reservation carried over from v3 to v2");
                of_v2(reserved)
            }
            // The next renewal tries again.
            Ok(Written::Conflict) | Err(_) => of_v2(held),
        }
    }

    /// Our lease that only v3 holds gets into v2, if the subnet is free there.
    async fn carry_back(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        ttl: Option<Duration>,
    ) -> Result<Written, StoreError> {
        let written = self.v2.write(subnet, attrs, Condition::Absent, ttl).await.map_err(half(Origin::V2))?;
        if written != Written::Conflict {
            tracing::info!(%subnet, reservation = ttl.is_none(), "lease carried over from v3 to v2");
        }
        Ok(written)
    }

    /// A subnet that was chosen without ever having read v3 may be one that a node lives in which has left v2 already.
    async fn is_free_in_v3(&self, subnet: Ipv4Network, attrs: &LeaseAttrs) -> Result<bool, StoreError> {
        if self.view().next(Origin::V3).is_some() {
            return Ok(true);
        }
        let v3 = self.v3.list().await.map_err(half(Origin::V3))?;
        let mut view = self.view();
        view.replace(Origin::V3, v3);
        let standing = view.record(Origin::V3, &key_of(subnet));
        Ok(standing.is_none_or(|record| Holder::of(&record.value).is(Holder::from(attrs))))
    }

    async fn settle(&self, written: Written, ttl: Duration) -> Written {
        match written {
            Written::Held(held) => Written::Held(self.written(held, ttl).await),
            Written::Conflict => Written::Conflict,
        }
    }
}

impl<P: KeyValue, S: KeyValue> LeaseStore for Both<P, S> {
    /// v2's, which is copied into v3. While only v3 has one that is taken, so that a cluster on its way back starts too.
    async fn network_config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let mut asked = pin!(self.v3.network_config());
        let (v2, v3) = beside(self.v2.network_config(), asked.as_mut()).await;
        let (v2, key) = (v2.map_err(half(Origin::V2))?, self.config_key());
        let Some(config) = v2 else {
            let v3 = match v3 {
                Some(answer) => answer,
                None => asked.await,
            };
            let v3 = v3.map_err(half(Origin::V3))?;
            if v3.is_some() {
                tracing::warn!(
                    key,
                    "the network config stands only in the v3 store, which is used; write it into the v2 store before a node is set to etcd-api=v2"
                );
            }
            return Ok(v3);
        };
        match v3 {
            Some(Ok(Some(copy))) if !same_config(&config, &copy) => {
                tracing::error!(key, v2 = %String::from_utf8_lossy(&config), v3 = %String::from_utf8_lossy(&copy),
                    "the two stores hold different network configs; v2 decides. Make them equal before a node is set to etcd-api=v3");
            }
            Some(Ok(None)) if self.copies_config => self.mirror.copy_config(&config).await,
            // Nothing is gained by asking it once more now.
            Some(Err(_)) | None if self.copies_config => self.mirror.copy_config_later(&config),
            _ => {}
        }
        Ok(Some(config))
    }

    /// The union. Without v2 nothing can be decided; v3 stays as last known if it cannot be read.
    async fn list(&self) -> Result<Snapshot, StoreError> {
        let (v2, v3) = beside(self.v2.list(), pin!(self.v3.list())).await;
        let v2 = v2.map_err(half(Origin::V2))?;
        let mut view = self.view();
        view.replace(Origin::V2, v2);
        match v3 {
            Some(Ok(v3)) => view.replace(Origin::V3, v3),
            Some(Err(error @ StoreError::Config(_))) => return Err(error),
            None => {
                let s = PATIENCE.as_secs();
                tracing::warn!(
                    "the v3 store is silent {s} s after v2's answer; its leases stay as last known"
                );
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the v3 store cannot be listed; its leases stay as last known");
            }
        }
        Ok(view.snapshot())
    }

    async fn create(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Written, StoreError> {
        if !self.is_free_in_v3(subnet, attrs).await? {
            return Ok(Written::Conflict);
        }
        let written = self.v2.create(subnet, attrs, ttl).await.map_err(half(Origin::V2))?;
        Ok(self.settle(written, ttl).await)
    }

    async fn update(
        &self,
        subnet: Ipv4Network,
        record: &Record,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Written, StoreError> {
        let written = match Origin::of(record.modified) {
            (Origin::V2, modified) => {
                let record = Record { modified, ..record.clone() };
                self.v2.update(subnet, &record, attrs, ttl).await.map_err(half(Origin::V2))?
            }
            (Origin::V3, _) => self.carry_back(subnet, attrs, record.lease.map(|_| ttl)).await?,
        };
        Ok(self.settle(written, ttl).await)
    }

    async fn renew(&self, held: &Held, ttl: Duration) -> Result<Renewal, StoreError> {
        let renewal = match Origin::of(held.modified) {
            (Origin::V2, modified) => {
                self.v2.renew(&Held { modified, ..held.clone() }, ttl).await.map_err(half(Origin::V2))
            }
            (Origin::V3, _) => {
                match self.carry_back(held.subnet, &held.attrs, held.lease.map(|_| ttl)).await {
                    Ok(Written::Held(held)) => Ok(Renewal::Held(held)),
                    Ok(Written::Conflict) => Ok(Renewal::Lost(None)),
                    Err(error) => Err(error),
                }
            }
        };
        match renewal {
            Ok(Renewal::Held(held)) => Ok(Renewal::Held(self.written(held, ttl).await)),
            Ok(Renewal::Lost(standing)) => {
                Ok(Renewal::Lost(standing.map(|record| view::of(Origin::V2, record))))
            }
            Err(error) => {
                // An outage of v2 is no reason to lose the lease in v3.
                self.mirror.prolong().await;
                Err(error)
            }
        }
    }

    async fn delete(&self, subnet: Ipv4Network, modified: Revision) -> Result<bool, StoreError> {
        let modified = match Origin::of(modified) {
            (Origin::V3, modified) => {
                return self.v3.delete(subnet, modified).await.map_err(half(Origin::V3));
            }
            (Origin::V2, modified) => modified,
        };
        let deleted = self.v2.delete(subnet, modified).await.map_err(half(Origin::V2))?;
        if deleted {
            let copy = self.view().copy(subnet);
            self.mirror.release(subnet, copy).await;
        }
        Ok(deleted)
    }

    async fn watch(&self, next: Revision, sink: Sender<Update>) -> Infallible {
        tokio::select! {
            never = watch::follow(self, next, &sink) => never,
            never = self.mirror.keep() => never,
        }
    }

    fn reconnect(&self) {
        self.v2.reconnect();
        self.v3.reconnect();
    }

    fn config_key(&self) -> String {
        self.v2.config_key()
    }

    fn decides(&self) -> Origin {
        Origin::V2
    }

    fn describe(&self) -> String {
        let (v2, v3) = (self.v2.describe(), self.v3.describe());
        match v3.strip_prefix("etcd v3 at ") {
            Some(endpoints) => format!("etcd v2 and v3 at {endpoints}"),
            None => format!("{v2} and {v3}"),
        }
    }
}
