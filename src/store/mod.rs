//! The shared store that holds the network config and the leases.
//!
//! The daemon sees [`LeaseStore`] and the values below; what speaks to etcd stays in this folder.
//! Nothing here decides: it lists, writes conditionally and reports. Decisions are in `model::acquire`.

mod alerts;
mod auto;
mod beside;
mod both;
mod certificate;
mod clocks;
mod config;
mod connect;
mod endpoints;
mod etcd;
mod etcd_v2;
mod etcd_v2_http;
pub(crate) mod etcd_v2_json;
mod etcd_v3;
mod etcd_v3_error;
mod etcd_v3_watch;
pub(crate) mod key_value;
mod memory;
mod random;
mod select;
mod tls;
mod tls_verify;
mod watch;

pub use auto::Ourselves;
pub use both::Both;
pub use clocks::clocks;
pub use config::{Config, TlsFiles};
pub use etcd::Etcd;
pub use etcd_v2::EtcdV2;
pub use etcd_v3::EtcdV3;
pub use memory::{Backup, Memory, MemoryStore};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use random::seeded;
pub use select::{Api, Candidates, Choice, Store};

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use crate::model::LeaseAttrs;
use crate::model::two_stores::Origin;

/// Revision of the store or of a key, counted by the store. Only comparable within one store.
pub type Revision = u64;

/// A lease key as listed or watched. The value is raw: it is not trusted until the model has read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The last part of the key (`10.200.88.0-24`), below `PREFIX/subnets/`. May be any text.
    pub name: String,
    /// The value's bytes.
    pub value: Vec<u8>,
    /// When the key was created.
    pub created: Revision,
    /// When the key was last written.
    pub modified: Revision,
    /// The id of the etcd lease bound to the key; 0 in etcd v2, where a key carries its time to live itself. `None`: the key
    /// never expires (a reservation).
    pub lease: Option<i64>,
}

/// All lease keys at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every key below `PREFIX/subnets/`.
    pub records: Vec<Record>,
    /// Where a watch has to start so that nothing is missed.
    pub next: Revision,
    /// Which cluster answered. Another one than before: the store was replaced, and its revisions count anew.
    pub cluster: u64,
    /// A part of the store was never read: what is missing here is not known to be gone.
    pub partial: bool,
}

impl Snapshot {
    /// Names and values of the keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.records.iter().map(|record| (record.name.as_str(), record.value.as_slice()))
    }
}

/// A change of one lease key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Created or written.
    Put(Record),
    /// Deleted or expired: the last part of the key, and the revision of the deletion.
    Delete(String, Revision),
}

impl Event {
    /// The store's revision with this change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(record) => record.modified,
            Self::Delete(_, revision) => *revision,
        }
    }
}

/// What a watch delivers. After a `Snapshot` everything known before is void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Changes in order.
    Events(Vec<Event>),
    /// The whole list: the watch could not be resumed (compaction), or the store was replaced.
    Snapshot(Snapshot),
    /// The watch is down; it is being reopened. Sent when it starts and whenever the reason is another one than before.
    Down(StoreError),
    /// The watch works again after `Down`.
    Up,
}

/// Our own key as the last write or reading of it left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The leased subnet.
    pub subnet: Ipv4Network,
    /// What stands in the key.
    pub attrs: LeaseAttrs,
    /// Revision of the key; every later write compares with it.
    pub modified: Revision,
    /// The etcd lease bound to the key; `None` for a reservation, which never expires.
    pub lease: Option<i64>,
    /// How long the key lives from the moment the request was *sent*; `None` for a reservation, and for a key that was only read:
    /// then the next renewal finds out.
    pub ttl: Option<Duration>,
}

/// Answer to a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The key is ours now.
    Held(Held),
    /// The condition did not hold: somebody else wrote, created or deleted the key. Nothing was changed.
    Conflict,
}

/// Answer to a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// The key lives on.
    Held(Held),
    /// The key is gone or holds something else: not ours any more. Carries what stands there now.
    Lost(Option<Record>),
}

/// Why the store could not do what was asked. Every variant is worth a retry unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No endpoint answered. The text names the endpoints and each one's reason.
    #[error("no etcd endpoint answers: {0}")]
    Unreachable(String),
    /// An endpoint answered with an error.
    #[error("etcd refused to {doing}: {reason}")]
    Refused {
        /// What was asked (`list leases below PREFIX/subnets/`).
        doing: String,
        /// etcd's own words.
        reason: String,
    },
    /// One of two stores failed (`etcd-api=both`).
    #[error("{store}: {error}")]
    Half {
        /// Which one.
        store: Origin,
        /// How.
        error: Box<StoreError>,
    },
    /// Which of two stores counts depends on v3, which does not answer (`etcd-api=auto`).
    #[error(
        "{key} exists in the v2 store, where no other node is known to live: whether the v3 store holds it, too, decides, and is \
         waited for (etcd-api=v2 would not ask): {error}"
    )]
    Undecided {
        /// The key of the network config.
        key: String,
        /// Why there is no answer.
        error: Box<StoreError>,
    },
    /// A file or option of the connection is unusable. Retrying does not help until somebody changes it.
    #[error("{0}")]
    Config(String),
}

/// The stores that the options name, of which one is to be chosen. Nothing is contacted yet.
///
/// # Errors
/// When a file for TLS is unusable.
pub fn open(etcd: &crate::options::Etcd) -> Result<Candidates, StoreError> {
    Candidates::new(&config_of(etcd), etcd.api)
}

fn config_of(etcd: &crate::options::Etcd) -> Config {
    let identity = etcd.tls.identity.as_ref();
    let login = etcd.credentials.as_ref();
    Config {
        endpoints: etcd.endpoints.iter().map(ToString::to_string).collect(),
        prefix: etcd.prefix.as_str().to_owned(),
        tls: TlsFiles {
            ca: etcd.tls.ca.clone(),
            certificate: identity.map(|identity| identity.cert.clone()),
            key: identity.map(|identity| identity.key.clone()),
        },
        username: login.map(|login| login.username.clone()).unwrap_or_default(),
        password: login.map(|login| login.password.expose().to_owned()).unwrap_or_default(),
    }
}

/// Reads and conditionally writes leases. Cheap to clone; clones share the connection.
///
/// Every call has a deadline of its own and tries all endpoints before it fails.
pub trait LeaseStore: Clone + Send + Sync + 'static {
    /// The text of `PREFIX/config`; `Ok(None)` when the key is missing.
    fn network_config(&self) -> impl Future<Output = Result<Option<Vec<u8>>, StoreError>> + Send;

    /// All leases, in one request (paged only when the answer would be too large).
    fn list(&self) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Creates the key of `subnet`, living for `ttl`, if it does not exist.
    fn create(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Writes `attrs` into an existing key if its revision is still `record.modified`. A key without an etcd lease
    /// stays one (a reservation); otherwise the key gets a new etcd lease of `ttl`, and the former one is revoked.
    fn update(
        &self,
        subnet: Ipv4Network,
        record: &Record,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Prolongs our key without writing it, after checking that it is still as `held` says. If the etcd lease alone is gone
    /// (the key stands, bound to nothing alive) the key is written again under a new lease of `ttl`, by compare-and-swap.
    fn renew(&self, held: &Held, ttl: Duration) -> impl Future<Output = Result<Renewal, StoreError>> + Send;

    /// Deletes a key of ours if its revision is still `modified`. `Ok(false)`: it has changed or is gone.
    fn delete(
        &self,
        subnet: Ipv4Network,
        modified: Revision,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Delivers every change from `next` on to `sink`, from the task that polls it. Reopens broken streams with back-off and
    /// jitter, lists again after a compaction, and ends when it is dropped.
    fn watch(
        &self,
        next: Revision,
        sink: tokio::sync::mpsc::Sender<Update>,
    ) -> impl Future<Output = Infallible> + Send;

    /// This host's way to the store has changed: what is open may begin at an address that is gone, and nothing but time would tell.
    /// Calls and watches go on over new connections at once.
    fn reconnect(&self);

    /// The key of the network config, for messages.
    fn config_key(&self) -> String;

    /// Which of etcd's stores decides here, and so where the network config belongs.
    fn decides(&self) -> Origin;

    /// Words for logs: which API and endpoints, without secrets.
    fn describe(&self) -> String;
}
