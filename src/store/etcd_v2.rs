//! [`KeyValue`] over etcd's v2 API (JSON over HTTP), as Go flannel up to v0.16 uses it.
//!
//! Keys carry their time to live themselves; what differs from v3 for that is decided here.

use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::config::Config;
use super::endpoints::{Endpoints, Moved};
use super::etcd_v2_http::{Answer, Dial, Pending, encode};
use super::etcd_v2_json::{ErrorCode, Node, Reply, event, record, records};
use super::key_value::{
    Batch, Broken, Changes, Condition, Grant, KeyValue, Listing, Opened, Refreshed, Write,
};
use super::{Record, Revision, StoreError};
use crate::model::two_stores::Origin;

/// A long poll is asked anew after this time: a member that lost its quorum, is paused, or is behind a connection that only
/// we believe in would let it wait for ever.
const POLL: Duration = Duration::from_secs(30);
/// How often a key that is about to expire is looked at.
const EXPIRY: Duration = Duration::from_millis(200);

/// A cluster that speaks v2.
#[derive(Clone)]
pub struct EtcdV2 {
    members: Endpoints<Dial>,
}

impl EtcdV2 {
    /// Prepares connections; nothing is sent yet.
    ///
    /// # Errors
    /// When an endpoint is no URL.
    pub fn new(config: &Config) -> Result<Self, StoreError> {
        Ok(Self { members: Endpoints::new(Dial::new(config), config.urls()?) })
    }

    async fn request(&self, request: &Request, by: Instant) -> Result<Answer, StoreError> {
        let Request { doing, method, target, form } = request;
        self.members
            .call(doing, by, |http| async move { http.send(method.clone(), target, form.clone()).await })
            .await
    }
}

/// A request, to be made at any member.
struct Request {
    doing: String,
    method: Method,
    target: String,
    form: Option<String>,
}

impl Request {
    fn get(doing: String, key: &str, query: &str) -> Self {
        Self { doing, method: Method::GET, target: format!("{}?{query}", path(key)), form: None }
    }

    fn put(doing: String, key: &str, query: &str, form: String) -> Self {
        Self { doing, method: Method::PUT, target: format!("{}?{query}", path(key)), form: Some(form) }
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::Refused { doing: self.doing.clone(), reason }
    }

    /// The node of a write whose condition held, `None` if it did not.
    fn written(&self, answer: &Answer) -> Result<Option<Node>, StoreError> {
        match answer.reply().map_err(|reason| self.refused(reason))? {
            Reply::Node(node) => Ok(Some(node)),
            Reply::Error { code: ErrorCode::Exists | ErrorCode::Compare | ErrorCode::Missing, .. } => {
                Ok(None)
            }
            Reply::Error { text, .. } => Err(self.refused(text)),
        }
    }
}

/// Every key of v2 begins with a slash.
fn path(key: &str) -> String {
    format!("/v2/keys/{}", encode(key.trim_matches('/')))
}

fn rooted(folder: &str) -> String {
    format!("/{}/", folder.trim_matches('/'))
}

fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs().max(1)
}

fn condition(condition: Condition) -> String {
    match condition {
        Condition::Absent => "prevExist=false".to_owned(),
        Condition::At(revision) => format!("prevIndex={revision}"),
    }
}

impl KeyValue for EtcdV2 {
    type Changes = ChangesV2;

    const ORIGIN: Origin = Origin::V2;

    async fn get(&self, key: &str, by: Instant) -> Result<Option<Record>, StoreError> {
        let request = Request::get(format!("read {key}"), key, "quorum=true&recursive=false&sorted=false");
        let answer = self.request(&request, by).await?;
        match answer.reply().map_err(|reason| request.refused(reason))? {
            Reply::Node(node) => Ok(record(node, None)),
            Reply::Error { code: ErrorCode::Missing, .. } => Ok(None),
            Reply::Error { text, .. } => Err(request.refused(text)),
        }
    }

    async fn list(&self, folder: &str, by: Instant) -> Result<Listing, StoreError> {
        let request =
            Request::get(format!("list {folder}"), folder, "quorum=true&recursive=true&sorted=false");
        let answer = self.request(&request, by).await?;
        let cluster = answer.cluster;
        match answer.reply().map_err(|reason| request.refused(reason))? {
            Reply::Node(node) => {
                Ok(Listing { records: records(node, &rooted(folder)), revision: answer.index, cluster })
            }
            Reply::Error { code: ErrorCode::Missing, index, .. } => {
                Ok(Listing { records: Vec::new(), revision: index, cluster })
            }
            Reply::Error { text, .. } => Err(request.refused(text)),
        }
    }

    async fn grant(&self, ttl: Duration, _: Instant) -> Result<Grant, StoreError> {
        Ok(Grant { id: Grant::NO_ID, ttl: Duration::from_secs(seconds(ttl)) })
    }

    async fn revoke(&self, _: i64, _: Instant) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put(&self, write: &Write<'_>, by: Instant) -> Result<Option<Revision>, StoreError> {
        let ttl = write.grant.map_or_else(String::new, |grant| format!("&ttl={}", seconds(grant.ttl)));
        let form = format!("value={}{ttl}", encode(write.value));
        let request =
            Request::put(format!("write {}", write.key), write.key, &condition(write.condition), form);
        let answer = self.request(&request, by).await?;
        Ok(request.written(&answer)?.map(|node| node.modified))
    }

    async fn refresh(
        &self,
        key: &str,
        modified: Revision,
        grant: Grant,
        by: Instant,
    ) -> Result<Refreshed, StoreError> {
        let query = format!("refresh=true&{}", condition(Condition::At(modified)));
        let form = format!("ttl={}", seconds(grant.ttl));
        let request = Request::put(format!("prolong {key}"), key, &query, form);
        let answer = self.request(&request, by).await?;
        Ok(match request.written(&answer)? {
            Some(node) => Refreshed::Alive { modified: node.modified, ttl: grant.ttl },
            None => Refreshed::Gone,
        })
    }

    async fn lifetime(&self, _: i64, _: Instant) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    /// Lets the key expire within a second or two: Go flannel does not understand a conditional deletion, but an expiry.
    /// Waits for it: who asks would still find the key, and a second deletion would prolong it.
    async fn delete(&self, key: &str, modified: Revision, by: Instant) -> Result<bool, StoreError> {
        let last = Grant { id: Grant::NO_ID, ttl: Duration::from_secs(1) };
        let Refreshed::Alive { modified, .. } = self.refresh(key, modified, last, by).await? else {
            return Ok(false);
        };
        while self.get(key, by).await?.is_some_and(|record| record.modified == modified) {
            tokio::time::sleep(EXPIRY).await;
        }
        Ok(true)
    }

    async fn watch(&self, folder: &str, from: Revision, by: Instant) -> Result<Opened<ChangesV2>, Broken> {
        let (members, moved) = (self.members.clone(), self.members.moved());
        let mut changes = ChangesV2 { members, folder: folder.to_owned(), from, poll: None, moved };
        let poll = changes.open(true, by).await?;
        let (revision, cluster) = (poll.index, poll.cluster);
        changes.poll = Some(poll);
        Ok(Opened { changes, revision, cluster })
    }

    fn reconnect(&self) {
        self.members.reconnect();
    }

    fn describe(&self) -> String {
        format!("etcd v2 at {}", self.members.describe())
    }
}

/// A watch by long polls.
pub struct ChangesV2 {
    members: Endpoints<Dial>,
    folder: String,
    from: Revision,
    poll: Option<Pending>,
    moved: Moved,
}

impl ChangesV2 {
    /// Begins a long poll; with `probe` at a member that has a quorum: the one that answered just before.
    async fn open(&self, probe: bool, by: Instant) -> Result<Pending, Broken> {
        let doing = format!("watch {}", self.folder);
        if probe {
            // Any key does, also one that does not exist: to look for it takes a quorum.
            let target = format!("{}/-?quorum=true", path(&self.folder));
            let target = &target;
            let probing = self
                .members
                .call(&doing, by, |http| async move { http.send(Method::GET, target, None).await });
            probing.await.map_err(Broken::Failed)?;
        }
        let target = format!("{}?recursive=true&wait=true&waitIndex={}", path(&self.folder), self.from);
        let target = &target;
        let opening =
            self.members.call(&doing, by, |http| async move { http.begin(Method::GET, target, None).await });
        opening.await.map_err(Broken::Failed)
    }

    fn failed(&self, reason: &str) -> Broken {
        Broken::Failed(StoreError::Unreachable(format!("the watch broke: {reason}")))
    }

    /// What a finished poll brought; `None`: nothing, it has to be asked again.
    fn read(&mut self, answer: &Answer) -> Result<Option<Batch>, Broken> {
        if answer.is_empty() {
            return Ok(None);
        }
        match answer.event().map_err(|reason| self.failed(&reason))? {
            Ok(raw) => {
                let resume = raw.node.modified + 1;
                self.from = resume;
                let events = event(raw, &rooted(&self.folder)).into_iter().collect();
                Ok(Some(Batch { events, resume }))
            }
            Err(Reply::Error { code: ErrorCode::Cleared, .. }) => Err(Broken::Compacted),
            Err(Reply::Error { text, .. }) => Err(Broken::Failed(StoreError::Refused {
                doing: format!("watch {}", self.folder),
                reason: text,
            })),
            Err(Reply::Node(_)) => Ok(None),
        }
    }
}

impl Changes for ChangesV2 {
    async fn next(&mut self) -> Result<Batch, Broken> {
        let mut probe = false;
        loop {
            let poll = match self.poll.take() {
                Some(poll) => poll,
                None => self.open(probe, Instant::now() + super::etcd::CALL).await?,
            };
            if poll.index + 1 < self.from {
                return Err(self.failed("the store's index fell back"));
            }
            probe = false;
            let finished = tokio::select! {
                finished = tokio::time::timeout(POLL, poll.finish()) => finished,
                () = self.moved.wait() => return Err(Broken::Moved),
            };
            match finished {
                Err(_) => probe = true,
                Ok(Err(reason)) => return Err(self.failed(&reason)),
                Ok(Ok(answer)) => {
                    if let Some(batch) = self.read(&answer)? {
                        return Ok(batch);
                    }
                }
            }
        }
    }
}
