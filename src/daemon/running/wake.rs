//! What wakes the loop, and whom it asks first: the store, since a change of a lease shall not wait for a look at everything else.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::sync::mpsc;

use super::own_lease::Outcome;
use crate::daemon::rules::Looked;
use crate::kernel::Change;
use crate::status_socket::PeersQuestion;
use crate::store::{LeaseStore, Snapshot, Update};

/// Updates of the store that may wait for the loop.
const BACKLOG: usize = 64;

/// What the loop is woken by.
#[derive(Debug)]
pub(super) enum Wake {
    Update(Update),
    Changes(Vec<Change>),
    Outcome(Outcome),
    Time,
    Rules(Looked),
    File,
    Options,
    Question(PeersQuestion),
    Stop,
}

/// Whom the loop asks first: the store, but after an update the others, so that a flood of updates keeps nobody waiting.
#[derive(Debug, Default)]
pub(super) struct Turns {
    others_first: bool,
}

impl Turns {
    /// Waits for the store or the others. Cancel-safe, if they are.
    pub(super) async fn next<T>(
        &mut self,
        mut store: Pin<&mut impl Future<Output = T>>,
        mut others: Pin<&mut impl Future<Output = T>>,
    ) -> T {
        poll_fn(|context| {
            let others_first = std::mem::take(&mut self.others_first);
            if others_first && let Poll::Ready(wake) = others.as_mut().poll(context) {
                return Poll::Ready(wake);
            }
            if let Poll::Ready(wake) = store.as_mut().poll(context) {
                self.others_first = true;
                return Poll::Ready(wake);
            }
            if others_first { Poll::Pending } else { others.as_mut().poll(context) }
        })
        .await
    }
}

/// Follows the store whenever the loop asks for the next update. In a task of its own it would have to wake the loop for each.
pub(super) struct Watch {
    updates: mpsc::Receiver<Update>,
    following: Pin<Box<dyn Future<Output = Infallible> + Send>>,
}

impl Watch {
    pub(super) fn new<S: LeaseStore>(store: &S, snapshot: &Snapshot) -> Self {
        let (sink, updates) = mpsc::channel(BACKLOG);
        let (store, next) = (store.clone(), snapshot.next);
        let following = async move { store.watch(next, sink).await };
        Self { updates, following: Box::pin(following) }
    }

    /// Waits for the next update. Cancel-safe.
    pub(super) async fn next(&mut self) -> Update {
        poll_fn(|context| {
            if let Ok(update) = self.updates.try_recv() {
                return Poll::Ready(update);
            }
            let Poll::Pending = self.following.as_mut().poll(context);
            // Whoever sends has just been asked: nobody has to be woken when something is sent.
            self.updates.try_recv().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::time::Duration;

    use super::*;
    use crate::store::{Event, Memory, MemoryStore};

    #[tokio::test]
    async fn who_asks_in_vain_misses_no_update() {
        let memory = Memory::default();
        let store = MemoryStore::new(memory.clone(), "/net");
        let mut watch = Watch::new(&store, &store.list().await.unwrap());
        for number in 0..3 {
            tokio::select! {
                biased;
                _ = watch.next() => panic!("nothing was written"),
                () = tokio::task::yield_now() => {}
            }
            let name = format!("10.200.{number}.0-24");
            memory.set(&format!("/net/subnets/{name}"), "{}", None);
            let update = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap();
            let Update::Events(events) = update else { panic!("{update:?}") };
            assert!(matches!(events.as_slice(), [Event::Put(record)] if record.name == name), "{events:?}");
        }
    }

    #[tokio::test]
    async fn the_store_comes_first_and_a_flood_of_updates_keeps_nobody_waiting() {
        let mut turns = Turns::default();
        let mut served = Vec::new();
        for _ in 0..4 {
            served.push(turns.next(pin!(ready("store")), pin!(ready("others"))).await);
        }
        assert_eq!(served, ["store", "others", "store", "others"]);
        assert_eq!(turns.next(pin!(ready("store")), pin!(pending())).await, "store");
        assert_eq!(
            turns.next(pin!(ready("store")), pin!(pending())).await,
            "store",
            "nobody else wants anything"
        );
        assert_eq!(turns.next(pin!(pending()), pin!(ready("others"))).await, "others");
    }
}
