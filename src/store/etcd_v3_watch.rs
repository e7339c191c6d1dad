//! Watches over etcd's v3 API.

use etcd_client::{GetOptions, WatchOptions, WatchStream};

use super::endpoints::{Failure, Moved};
use super::etcd_v3::{Connection, name_of, position, record, revision};
use super::etcd_v3_error::{self as v3_error, failure};
use super::key_value::{Batch, Broken, Changes, Opened};
use super::{Event, Revision, StoreError};

/// What the store says to a new watch.
pub(super) enum Opening {
    Opened(Box<Opened<WatchStream>>),
    Compacted,
}

/// Opens a watch and waits for the store to confirm it.
pub(super) async fn open(
    mut connection: Connection,
    folder: &str,
    from: Revision,
) -> Result<Opening, Failure> {
    if connection.logged_in {
        // A request heals a token that ran out; a watch would be cancelled.
        let options = GetOptions::new().with_count_only();
        connection.kv.get(folder, Some(options)).await.map_err(|error| failure(&error))?;
    }
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(i64::try_from(from).unwrap_or(i64::MAX))
        .with_progress_notify()
        .with_fragment();
    let opened = connection.watch.watch(folder, Some(options)).await;
    let mut stream = opened.map_err(|error| failure(&error))?;
    let first = stream.message().await.map_err(|error| failure(&error))?;
    let Some(first) = first else { return Err(Failure::Dead("the watch ended at once".to_owned())) };
    if first.canceled() {
        return match first.compact_revision() {
            0 => Err(v3_error::cancelled(first.cancel_reason())),
            _ => Ok(Opening::Compacted),
        };
    }
    let (revision, cluster) = position(first.header());
    Ok(Opening::Opened(Box::new(Opened { changes: stream, revision, cluster })))
}

/// A watch over gRPC.
pub struct ChangesV3 {
    stream: WatchStream,
    folder: String,
    moved: Moved,
}

impl ChangesV3 {
    pub(super) fn new(stream: WatchStream, folder: &str, moved: Moved) -> Self {
        Self { stream, folder: folder.to_owned(), moved }
    }

    fn broken(&self, failure: Failure) -> Broken {
        let doing = || format!("watch {}", self.folder);
        Broken::Failed(match failure {
            Failure::Refused(reason) => StoreError::Refused { doing: doing(), reason },
            Failure::Config(reason) => StoreError::Config(reason),
            Failure::Dead(reason) | Failure::Busy(reason) | Failure::Stale(reason) => {
                StoreError::Unreachable(format!("the watch broke: {reason}"))
            }
        })
    }

    fn event(&self, event: &etcd_client::Event) -> Option<Event> {
        let kv = event.kv()?;
        // A deleted key has version 0. The event's own type is not asked: an unknown one would panic.
        Some(match kv.version() {
            0 => Event::Delete(name_of(kv.key().to_vec(), &self.folder), revision(kv.mod_revision())),
            _ => Event::Put(record(kv.clone(), &self.folder)),
        })
    }
}

impl Changes for ChangesV3 {
    async fn next(&mut self) -> Result<Batch, Broken> {
        let message = tokio::select! {
            message = self.stream.message() => message,
            () = self.moved.wait() => return Err(Broken::Moved),
        };
        let answer = match message {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(self.broken(Failure::Dead("the server ended it".to_owned()))),
            Err(error) => return Err(self.broken(failure(&error))),
        };
        if answer.canceled() {
            return Err(match answer.compact_revision() {
                0 => self.broken(v3_error::cancelled(answer.cancel_reason())),
                _ => Broken::Compacted,
            });
        }
        // A revision may be split over messages: the last one seen is asked for again.
        let resume = match answer.events().last().and_then(etcd_client::Event::kv) {
            Some(kv) => revision(kv.mod_revision()),
            None => position(answer.header()).0,
        };
        let events = answer.events().iter().filter_map(|event| self.event(event)).collect();
        Ok(Batch { events, resume })
    }
}
