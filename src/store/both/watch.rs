//! Follows both stores and delivers one stream: each change as it looks when v2 decides.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::{Both, half};
use crate::model::two_stores::{Collision, Origin};
use crate::store::etcd::Etcd;
use crate::store::key_value::KeyValue;
use crate::store::{Event, LeaseStore, Revision, Snapshot, StoreError, Update, random};

/// Updates of one store that may wait.
const BACKLOG: usize = 16;
/// First and longest pause between two tries to list a store that was never read.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Delivers changes since `next`.
pub(super) async fn follow<P: KeyValue, S: KeyValue>(
    both: &Both<P, S>,
    next: Revision,
    sink: &Sender<Update>,
) -> Infallible {
    let (v2_sink, mut v2) = mpsc::channel(BACKLOG);
    let (v3_sink, mut v3) = mpsc::channel(BACKLOG);
    let (from_v2, from_v3, missed) = {
        let view = both.view();
        let missed = (view.position() != next).then(|| view.snapshot());
        (view.next(Origin::V2), view.next(Origin::V3), missed)
    };
    let mut merge = Merge { both, sink, down: BTreeMap::new(), told: BTreeMap::new() };
    merge.look_at_all();
    if let Some(missed) = missed {
        merge.tell(Update::Snapshot(missed)).await;
    }
    tokio::select! {
        never = merge.run(&mut v2, &mut v3) => never,
        never = one(&both.v2, from_v2, v2_sink) => never,
        never = one(&both.v3, from_v3, v3_sink) => never,
    }
}

/// Follows one store, which has to be listed first if that was never possible.
async fn one<K: KeyValue>(store: &Etcd<K>, from: Option<Revision>, sink: Sender<Update>) -> Infallible {
    let next = match from {
        Some(next) => next,
        None => {
            let snapshot = listed(store, &sink).await;
            let next = snapshot.next;
            let _ = sink.send(Update::Snapshot(snapshot)).await;
            next
        }
    };
    store.watch(next, sink).await
}

async fn listed<K: KeyValue>(store: &Etcd<K>, sink: &Sender<Update>) -> Snapshot {
    let (mut pause, mut down) = (RETRY.0, false);
    loop {
        match store.list().await {
            Ok(snapshot) => {
                if down {
                    let _ = sink.send(Update::Up).await;
                }
                return snapshot;
            }
            Err(error) if !down => {
                down = true;
                let _ = sink.send(Update::Down(error)).await;
            }
            Err(_) => {}
        }
        tokio::time::sleep(random::jitter(pause)).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Two streams becoming one.
struct Merge<'a, P, S> {
    both: &'a Both<P, S>,
    sink: &'a Sender<Update>,
    /// The stores that are down.
    down: BTreeMap<Origin, StoreError>,
    /// What the operator has been told.
    told: BTreeMap<String, Collision>,
}

impl<P: KeyValue, S: KeyValue> Merge<'_, P, S> {
    async fn run(&mut self, v2: &mut Receiver<Update>, v3: &mut Receiver<Update>) -> Infallible {
        loop {
            let update = tokio::select! {
                Some(update) = v2.recv() => self.take(Origin::V2, update),
                Some(update) = v3.recv() => self.take(Origin::V3, update),
                () = self.both.mirror.moved() => {
                    self.look_at_all();
                    None
                }
            };
            if let Some(update) = update {
                self.tell(update).await;
            }
        }
    }

    async fn tell(&self, update: Update) {
        // Whoever does not listen any more drops the watch.
        let _ = self.sink.send(update).await;
    }

    fn take(&mut self, origin: Origin, update: Update) -> Option<Update> {
        match update {
            Update::Events(events) => self.on_events(origin, events),
            Update::Snapshot(snapshot) => {
                self.both.view().replace(origin, snapshot);
                self.look_at_all();
                self.both.mirror.look_again();
                Some(Update::Snapshot(self.both.view().snapshot()))
            }
            Update::Down(error) => {
                let error = half(origin)(error);
                self.down.insert(origin, error.clone());
                Some(Update::Down(error))
            }
            Update::Up => {
                self.down.remove(&origin);
                self.both.mirror.look_again();
                Some(self.down.values().next().map_or(Update::Up, |error| Update::Down(error.clone())))
            }
        }
    }

    fn on_events(&mut self, origin: Origin, events: Vec<Event>) -> Option<Update> {
        let mut news = Vec::with_capacity(events.len());
        for event in events {
            let name = self.both.view().apply(origin, event);
            news.extend(self.both.view().news(origin, &name));
            self.look_at(&name);
            if origin == Origin::V3 {
                let stands = self.both.view().record(Origin::V3, &name).map(|record| record.modified);
                self.both.mirror.heard(&name, stands);
            }
        }
        (!news.is_empty()).then_some(Update::Events(news))
    }

    /// Tells when a collision begins and ends, and makes our own key in v3 give way.
    fn look_at(&mut self, name: &str) {
        let (collision, ours) = {
            let view = self.both.view();
            let own = self.both.mirror.own();
            (view.collision(name), own.and_then(|own| view.to_give_way(name, &own)))
        };
        if let Some((subnet, modified)) = ours {
            self.both.mirror.give_way(subnet, modified);
            return;
        }
        match collision {
            Some(collision) if self.told.get(name) == Some(&collision) => {}
            Some(collision) => {
                if collision.ends_by_itself() {
                    tracing::warn!("{collision}");
                } else {
                    tracing::error!("{collision}");
                }
                self.told.insert(name.to_owned(), collision);
            }
            None => {
                if self.told.remove(name).is_some() {
                    tracing::info!(key = name, "the two stores agree again");
                }
            }
        }
    }

    fn look_at_all(&mut self) {
        let mut names = self.both.view().shared();
        names.extend(self.told.keys().cloned());
        for name in names {
            self.look_at(&name);
        }
    }
}
