//! What [`super::etcd`] needs from a store: conditional writes, leases, a list and a watch of one folder.
//!
//! Implementations speak one protocol and report; they retry over endpoints but decide nothing.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::{Event, Record, Revision, StoreError};
use crate::model::two_stores::Origin;

/// What a key must be for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It does not exist.
    Absent,
    /// It exists and was last written at this revision.
    At(Revision),
}

/// A lease that a key can be bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The store's id; [`Grant::NO_ID`] where keys carry their time to live themselves (etcd v2).
    pub id: i64,
    /// How long it lives from the moment it was asked for.
    pub ttl: Duration,
}

impl Grant {
    /// The id of leases that have none of their own: a key of etcd v2 that expires.
    pub const NO_ID: i64 = 0;
}

/// A conditional write of one key.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// The whole key.
    pub key: &'a str,
    /// The new value.
    pub value: &'a str,
    /// When to write.
    pub condition: Condition,
    /// What the key lives on; `None`: it never expires.
    pub grant: Option<Grant>,
}

/// All keys below a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The keys, named by what follows the folder.
    pub records: Vec<Record>,
    /// Revision of the store at which this was true.
    pub revision: Revision,
    /// Which cluster answered.
    pub cluster: u64,
}

/// Answer to a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// The key lives on.
    Alive {
        /// Revision of the key afterwards; differs from before only in etcd v2.
        modified: Revision,
        /// How long it lives from the moment the request was sent.
        ttl: Duration,
    },
    /// There is nothing (any more) to refresh: the lease is gone, or the key is not the one that was meant.
    Gone,
}

/// A watch that the store has confirmed.
#[derive(Debug)]
pub struct Opened<W> {
    /// Where the changes come from.
    pub changes: W,
    /// Revision of the store when it confirmed.
    pub revision: Revision,
    /// Which cluster confirmed.
    pub cluster: u64,
}

/// Changes that arrived together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In order; may be empty.
    pub events: Vec<Event>,
    /// Where a new watch has to start so that nothing after this batch is missed. Some may come twice.
    pub resume: Revision,
}

/// Why a watch ended or could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The store no longer remembers the changes since then: list again.
    Compacted,
    /// [`KeyValue::reconnect`]: open it again at once.
    Moved,
    /// Connection or store failed: open it again.
    Failed(StoreError),
}

/// A key-value store with revisions, in the terms of etcd. `by` is when a call has to have ended.
pub trait KeyValue: Clone + Send + Sync + 'static {
    /// A running watch.
    type Changes: Changes;

    /// Which of etcd's two APIs this is.
    const ORIGIN: Origin;

    /// The key, named by its last part.
    fn get(&self, key: &str, by: Instant) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Everything below `folder`, which ends in a slash.
    fn list(&self, folder: &str, by: Instant) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Makes a lease to bind a key to.
    fn grant(&self, ttl: Duration, by: Instant) -> impl Future<Output = Result<Grant, StoreError>> + Send;

    /// Gives up a lease; keys still bound to it go.
    fn revoke(&self, lease: i64, by: Instant) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Writes if the condition holds: the key's new revision. `None`: it did not hold — or an earlier attempt of this very
    /// call, whose answer was lost, has written already.
    fn put(
        &self,
        write: &Write<'_>,
        by: Instant,
    ) -> impl Future<Output = Result<Option<Revision>, StoreError>> + Send;

    /// Prolongs the life of the key that `grant` was found on at `modified`, without an event for those who watch.
    fn refresh(
        &self,
        key: &str,
        modified: Revision,
        grant: Grant,
        by: Instant,
    ) -> impl Future<Output = Result<Refreshed, StoreError>> + Send;

    /// What a lease lives for when it is refreshed, or `None` if there is none of that id.
    fn lifetime(
        &self,
        lease: i64,
        by: Instant,
    ) -> impl Future<Output = Result<Option<Duration>, StoreError>> + Send;

    /// Deletes the key if it was last written at `modified`, in a way that every reader sees as a deletion or expiry.
    fn delete(
        &self,
        key: &str,
        modified: Revision,
        by: Instant,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Opens a watch on everything below `folder`, with the changes of revision `from` as the first ones.
    fn watch(
        &self,
        folder: &str,
        from: Revision,
        by: Instant,
    ) -> impl Future<Output = Result<Opened<Self::Changes>, Broken>> + Send;

    /// See [`super::LeaseStore::reconnect`]; without connections there is nothing to do.
    fn reconnect(&self) {}

    /// Words for logs: which API and endpoints, without secrets.
    fn describe(&self) -> String;
}

/// The far end of a watch. Dropping it ends the watch.
pub trait Changes: Send {
    /// Waits for what comes next.
    fn next(&mut self) -> impl Future<Output = Result<Batch, Broken>> + Send;
}
