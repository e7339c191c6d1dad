//! [`KeyValue`] over etcd's v3 API (gRPC).
//!
//! Connections, TLS and failover are ours; requests and messages are `etcd-client`'s.

use std::time::Duration;

use etcd_client::{
    Channel, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, GetResponse, KvClient,
    LeaseClient, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, ResponseHeader, Txn, TxnOp,
    WatchClient,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tonic::transport::Endpoint;

use super::config::Config;
use super::connect::Connector;
use super::endpoints::{Connect, Endpoints, Failure};
use super::etcd_v3_error::{self as v3_error, failure};
use super::etcd_v3_watch::{ChangesV3, Opening, open};
use super::key_value::{Broken, Condition, Grant, KeyValue, Listing, Opened, Refreshed, Write};
use super::{Record, Revision, StoreError, random};
use crate::model::two_stores::Origin;

/// Pings while a request or watch is open. etcd cuts connections that ping more often than each 5 s.
const PING: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// Largest answer taken: 60 000 leases are about 15 MB. A larger list is read in pages.
const LARGEST: usize = 64 << 20;
/// What etcd may send before we have read it (HTTP/2's flow control): the list of 30 000 nodes without asking for more in between.
const WINDOW: u32 = 8 << 20;
/// Keys in the first page, if a list has to be paged; halved until the answers fit.
const PAGE: i64 = 4096;

/// A cluster that speaks v3.
#[derive(Clone)]
pub struct EtcdV3 {
    members: Endpoints<Dial>,
}

/// How to open one connection.
struct Dial {
    connector: Connector,
    login: Option<(String, String)>,
}

/// One connection, by service.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) kv: KvClient,
    lease: LeaseClient,
    pub(super) watch: WatchClient,
    /// The token of a login runs out; a watch does not notice.
    pub(super) logged_in: bool,
}

impl EtcdV3 {
    /// Prepares connections; nothing is sent yet.
    ///
    /// # Errors
    /// When an endpoint is no URL.
    pub fn new(config: &Config) -> Result<Self, StoreError> {
        let login = config.login().map(|(user, password)| (user.to_owned(), password.to_owned()));
        let dial = Dial { connector: Connector::new(&config.tls, "h2"), login };
        Ok(Self { members: Endpoints::new(dial, config.urls()?) })
    }

    /// One range; `None` when the answer is larger than [`LARGEST`].
    async fn range(&self, range: &Range<'_>, by: Instant) -> Result<Option<Page>, StoreError> {
        self.members
            .call(&format!("list {}", range.folder), by, |mut connection| async move {
                match connection.kv.get(range.start.clone(), Some(range.options())).await {
                    Ok(answer) => Ok(Some(Page::new(answer, range.folder))),
                    Err(error) if v3_error::is_too_large(&error) => Ok(None),
                    Err(error) => Err(failure(&error)),
                }
            })
            .await
    }
}

/// What to ask a range for.
struct Range<'a> {
    folder: &'a str,
    start: Vec<u8>,
    /// 0: no limit.
    limit: i64,
    /// 0: the newest.
    revision: Revision,
}

impl Range<'_> {
    fn options(&self) -> GetOptions {
        let revision = i64::try_from(self.revision).unwrap_or(0);
        GetOptions::new().with_range(end_of(self.folder)).with_limit(self.limit).with_revision(revision)
    }
}

/// The answer to a range.
struct Page {
    listing: Listing,
    /// Where the next page starts.
    next: Option<Vec<u8>>,
}

impl Page {
    fn new(mut answer: GetResponse, folder: &str) -> Self {
        let (revision, cluster) = position(answer.header());
        let (more, kvs) = (answer.more(), answer.take_kvs());
        let next = kvs.last().filter(|_| more).map(|kv| [kv.key(), &[0]].concat());
        let records = kvs.into_iter().map(|kv| record(kv, folder)).collect();
        Self { listing: Listing { records, revision, cluster }, next }
    }
}

impl Connect for Dial {
    type Connection = Connection;

    fn last_words(&self, url: &Uri) -> Option<String> {
        self.connector.last_words(url)
    }

    async fn connect(&self, url: &Uri) -> Result<Connection, Failure> {
        let endpoint = Endpoint::from(url.clone())
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(false)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let connector = self.connector.clone();
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |url: Uri| {
            let connecting = connector.clone().connect(url);
            async move { connecting.await.map(TokioIo::new) }
        }));
        match self.client(channel.clone(), self.login.clone()).await {
            // As the Go client does: a password for a store that wants none is no obstacle.
            Err(error) if v3_error::is_auth_disabled(&error) => self.client(channel, None).await,
            answer => answer,
        }
        .map_err(|error| failure(&error))
    }
}

impl Dial {
    async fn client(
        &self,
        channel: tonic::transport::Channel,
        login: Option<(String, String)>,
    ) -> Result<Connection, etcd_client::Error> {
        let logged_in = login.is_some();
        // Without a leader a member would keep a watch open and silent.
        let mut options = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
        if let Some((user, password)) = login {
            options = options.with_user(user, password);
        }
        let client = Client::from_channel(Channel::Tonic(channel), Some(options)).await?;
        Ok(Connection {
            kv: client.kv_client().max_decoding_message_size(LARGEST),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(LARGEST),
            logged_in,
        })
    }
}

/// The first key behind everything that begins with `folder`, which ends in a slash.
fn end_of(folder: &str) -> Vec<u8> {
    let stem = folder.strip_suffix('/').unwrap_or(folder);
    format!("{stem}0").into_bytes()
}

pub(super) fn position(header: Option<&ResponseHeader>) -> (Revision, u64) {
    header.map_or((0, 0), |header| (revision(header.revision()), header.cluster_id()))
}

pub(super) fn revision(signed: i64) -> Revision {
    Revision::try_from(signed).unwrap_or(0)
}

/// The key's part behind `folder`, in the key's own buffer: a list has thousands of them.
pub(super) fn name_of(mut key: Vec<u8>, folder: &str) -> String {
    if key.starts_with(folder.as_bytes()) {
        key.drain(..folder.len());
    }
    String::from_utf8(key).unwrap_or_else(|other| String::from_utf8_lossy(other.as_bytes()).into_owned())
}

pub(super) fn record(kv: etcd_client::KeyValue, folder: &str) -> Record {
    let (created, modified) = (revision(kv.create_revision()), revision(kv.mod_revision()));
    let lease = Some(kv.lease()).filter(|&id| id != 0);
    let (key, value) = kv.into_key_value();
    Record { name: name_of(key, folder), value, created, modified, lease }
}

fn folder_of(key: &str) -> &str {
    let end = key.rfind('/').map_or(0, |slash| slash + 1);
    key.get(..end).unwrap_or_default()
}

fn compare(key: &str, condition: Condition) -> Compare {
    match condition {
        Condition::Absent => Compare::version(key, CompareOp::Equal, 0),
        Condition::At(at) => {
            Compare::mod_revision(key, CompareOp::Equal, i64::try_from(at).unwrap_or(i64::MAX))
        }
    }
}

fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX)
}

fn lifetime(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl KeyValue for EtcdV3 {
    type Changes = ChangesV3;

    const ORIGIN: Origin = Origin::V3;

    async fn get(&self, key: &str, by: Instant) -> Result<Option<Record>, StoreError> {
        self.members
            .call(&format!("read {key}"), by, |mut connection| async move {
                let mut answer = connection.kv.get(key, None).await.map_err(|error| failure(&error))?;
                Ok(answer.take_kvs().pop().map(|kv| record(kv, folder_of(key))))
            })
            .await
    }

    async fn list(&self, folder: &str, by: Instant) -> Result<Listing, StoreError> {
        let mut range = Range { folder, start: folder.as_bytes().to_vec(), limit: 0, revision: 0 };
        let mut whole: Option<Listing> = None;
        loop {
            let Some(page) = self.range(&range, by).await? else {
                range.limit = if range.limit == 0 { PAGE } else { (range.limit / 2).max(1) };
                continue;
            };
            let listing = match whole.take() {
                None => page.listing,
                Some(mut before) => {
                    before.records.extend(page.listing.records);
                    before
                }
            };
            let Some(next) = page.next else { return Ok(listing) };
            (range.start, range.revision) = (next, listing.revision);
            whole = Some(listing);
        }
    }

    async fn grant(&self, ttl: Duration, by: Instant) -> Result<Grant, StoreError> {
        // Our own choice of id: a second attempt cannot leave a lease behind that nobody knows.
        let id = i64::try_from(random::bits() >> 1).unwrap_or(i64::MAX).max(1);
        self.members
            .call("grant a lease", by, |mut connection| async move {
                let options = LeaseGrantOptions::new().with_id(id);
                match connection.lease.grant(seconds(ttl), Some(options)).await {
                    Ok(answer) => Ok(Grant { id: answer.id(), ttl: lifetime(answer.ttl()) }),
                    Err(error) if v3_error::is_lease_exists(&error) => Ok(Grant { id, ttl }),
                    Err(error) => Err(failure(&error)),
                }
            })
            .await
    }

    async fn revoke(&self, lease: i64, by: Instant) -> Result<(), StoreError> {
        self.members
            .call("revoke a lease", by, |mut connection| async move {
                match connection.lease.revoke(lease).await {
                    Err(error) if !v3_error::is_lease_missing(&error) => Err(failure(&error)),
                    _ => Ok(()),
                }
            })
            .await
    }

    async fn put(&self, write: &Write<'_>, by: Instant) -> Result<Option<Revision>, StoreError> {
        let options = write.grant.map(|grant| PutOptions::new().with_lease(grant.id));
        let txn = Txn::new().when([compare(write.key, write.condition)]).and_then([TxnOp::put(
            write.key,
            write.value,
            options,
        )]);
        self.transact(&format!("write {}", write.key), txn, by).await
    }

    async fn refresh(
        &self,
        key: &str,
        modified: Revision,
        grant: Grant,
        by: Instant,
    ) -> Result<Refreshed, StoreError> {
        self.members
            .call(&format!("prolong {key}"), by, |mut connection| async move {
                match connection.lease.keep_alive(grant.id).await {
                    Ok(_) => {}
                    Err(error) if v3_error::is_lease_missing(&error) => return Ok(Refreshed::Gone),
                    Err(error) => return Err(failure(&error)),
                }
                Ok(Refreshed::Alive { modified, ttl: grant.ttl })
            })
            .await
    }

    async fn lifetime(&self, lease: i64, by: Instant) -> Result<Option<Duration>, StoreError> {
        self.members
            .call("read a lease", by, |mut connection| async move {
                let answer = connection.lease.time_to_live(lease, None::<LeaseTimeToLiveOptions>).await;
                let answer = answer.map_err(|error| failure(&error))?;
                Ok((answer.ttl() > 0).then(|| lifetime(answer.granted_ttl())))
            })
            .await
    }

    async fn delete(&self, key: &str, modified: Revision, by: Instant) -> Result<bool, StoreError> {
        let txn = Txn::new()
            .when([compare(key, Condition::At(modified))])
            .and_then([TxnOp::delete(key, None::<DeleteOptions>)]);
        Ok(self.transact(&format!("delete {key}"), txn, by).await?.is_some())
    }

    async fn watch(&self, folder: &str, from: Revision, by: Instant) -> Result<Opened<ChangesV3>, Broken> {
        let doing = format!("watch {folder}");
        let moved = self.members.moved();
        let opening = self.members.call(&doing, by, |connection| open(connection, folder, from));
        match opening.await.map_err(Broken::Failed)? {
            Opening::Opened(opened) => {
                let Opened { changes, revision, cluster } = *opened;
                Ok(Opened { changes: ChangesV3::new(changes, folder, moved), revision, cluster })
            }
            Opening::Compacted => Err(Broken::Compacted),
        }
    }

    fn reconnect(&self) {
        self.members.reconnect();
    }

    fn describe(&self) -> String {
        format!("etcd v3 at {}", self.members.describe())
    }
}

impl EtcdV3 {
    /// The revision after a transaction whose condition held.
    async fn transact(&self, doing: &str, txn: Txn, by: Instant) -> Result<Option<Revision>, StoreError> {
        self.members
            .call(doing, by, |mut connection| {
                let txn = txn.clone();
                async move {
                    let answer = connection.kv.txn(txn).await.map_err(|error| failure(&error))?;
                    Ok(answer.succeeded().then(|| position(answer.header()).0))
                }
            })
            .await
    }
}
