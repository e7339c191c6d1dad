//! Keeps one watch going: reopens it after failures, lists again when it cannot be resumed, until it is dropped.
//!
//! Whatever happens, what was sent to the sink adds up to what the store holds.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::etcd::CALL;
use super::key_value::{Broken, Changes, KeyValue, Listing, Opened};
use super::{Revision, Snapshot, StoreError, Update, random};

/// Pause before the first reopening.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(5);
/// A stream that lived this long was a good one, even if nothing came.
const STEADY: Duration = Duration::from_secs(10);

/// Why one stretch of watching is over.
enum End {
    /// Go on: position or cluster were corrected.
    Reopen,
    /// The stream cannot be resumed or was not opened.
    Broken(Broken),
}

/// The watch of one folder.
pub(super) struct Watch<'a, K> {
    kv: &'a K,
    folder: &'a str,
    sink: &'a Sender<Update>,
    from: Revision,
    cluster: Option<u64>,
    /// Why the watch is down, as it was told last.
    down: Option<StoreError>,
    pause: Duration,
}

impl<'a, K: KeyValue> Watch<'a, K> {
    pub(super) fn new(kv: &'a K, folder: &'a str, sink: &'a Sender<Update>) -> Self {
        Self { kv, folder, sink, from: 0, cluster: None, down: None, pause: SHORTEST }
    }

    /// Delivers changes from revision `from` of `cluster` on.
    pub(super) async fn run(mut self, from: Revision, cluster: Option<u64>) -> Infallible {
        (self.from, self.cluster) = (from, cluster);
        loop {
            let ended = match self.stretch().await {
                End::Reopen => Ok(()),
                End::Broken(Broken::Moved) => {
                    self.pause = SHORTEST;
                    continue;
                }
                End::Broken(Broken::Compacted) => {
                    tracing::debug!(from = self.from, "the store has forgotten changes; listing again");
                    self.list_again().await
                }
                End::Broken(Broken::Failed(error)) => Err(error),
            };
            if let Err(error) = ended {
                self.report_down(error).await;
            }
            tokio::time::sleep(random::jitter(self.pause)).await;
            self.pause = (self.pause * 2).min(LONGEST);
        }
    }

    /// Opens the watch once and follows it to its end.
    async fn stretch(&mut self) -> End {
        let by = Instant::now() + CALL;
        let opened = match self.kv.watch(self.folder, self.from, by).await {
            Ok(opened) => opened,
            Err(broken) => return End::Broken(broken),
        };
        if self.is_doubtful(&opened) {
            match self.kv.list(self.folder, Instant::now() + CALL).await {
                Err(error) => return End::Broken(Broken::Failed(error)),
                Ok(listing) if self.is_replaced(&listing) => {
                    self.start_over(listing).await;
                    return End::Reopen;
                }
                // Only this member lags behind; it catches up.
                Ok(_) => {}
            }
        }
        self.cluster = Some(opened.cluster);
        if self.down.take().is_some() {
            self.tell(Update::Up).await;
        }
        self.follow(opened.changes).await
    }

    async fn follow(&mut self, mut changes: K::Changes) -> End {
        let since = Instant::now();
        loop {
            let batch = match changes.next().await {
                Ok(batch) => batch,
                Err(broken) => {
                    if since.elapsed() >= STEADY {
                        self.pause = SHORTEST;
                    }
                    return End::Broken(broken);
                }
            };
            if !batch.events.is_empty() {
                self.pause = SHORTEST;
                self.tell(Update::Events(batch.events)).await;
            }
            self.from = self.from.max(batch.resume);
        }
    }

    /// A watch that starts in the store's future would wait silently; another cluster counts otherwise.
    fn is_doubtful<W>(&self, opened: &Opened<W>) -> bool {
        opened.revision + 1 < self.from || self.cluster.is_some_and(|known| known != opened.cluster)
    }

    fn is_replaced(&self, listing: &Listing) -> bool {
        listing.revision + 1 < self.from || self.cluster.is_some_and(|known| known != listing.cluster)
    }

    async fn list_again(&mut self) -> Result<(), StoreError> {
        let listing = self.kv.list(self.folder, Instant::now() + CALL).await?;
        self.start_over(listing).await;
        Ok(())
    }

    /// Hands out the whole list and goes on behind it.
    async fn start_over(&mut self, listing: Listing) {
        self.cluster = Some(listing.cluster);
        self.from = listing.revision + 1;
        let (next, cluster) = (self.from, listing.cluster);
        self.tell(Update::Snapshot(Snapshot { records: listing.records, next, cluster, partial: false }))
            .await;
    }

    async fn report_down(&mut self, error: StoreError) {
        if self.down.as_ref() == Some(&error) {
            tracing::debug!(%error, "the watch is still down");
        } else {
            // A broken stream says little; why it cannot be opened again says more.
            self.down = Some(error.clone());
            self.tell(Update::Down(error)).await;
        }
    }

    async fn tell(&self, update: Update) {
        // Mostly there is room at once. Whoever does not listen any more drops the watch.
        if let Err(TrySendError::Full(update)) = self.sink.try_send(update) {
            let _ = self.sink.send(update).await;
        }
    }
}
