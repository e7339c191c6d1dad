//! Follows the other nodes' leases: events, lists, and lists of a store that was replaced.

use tracing::{info, warn};

use super::wake::Watch;
use super::{Reporter, Running};
use crate::clock::BootTime;
use crate::kernel::Kernel;
use crate::model::lease::key_of;
use crate::model::lease_set::{LeaseSet, Own, RawLease, Source, Touched};
use crate::store::{Event, LeaseStore, Record, Snapshot, Update};

/// How many renewals may follow each other before the loop turns: a flood of them keeps nobody waiting.
const RENEWALS: usize = 32;

/// The next update from which anything follows. That other nodes wrote their leases again as they were does not turn the loop: where
/// Go nodes renew theirs that is nearly all that comes. Cancel-safe.
pub(super) async fn next(watch: &mut Watch, leases: &mut LeaseSet, reporter: &mut Reporter) -> Update {
    for _ in 0..RENEWALS {
        let update = watch.next().await;
        let Update::Events(events) = &update else { return update };
        let renews = |event: &Event| matches!(event, Event::Put(record) if leases.put_renewal(&raw(record)));
        if !events.iter().all(renews) {
            return update;
        }
        seen(reporter, events);
    }
    watch.next().await
}

/// For people, who can wait.
fn seen(reporter: &mut Reporter, events: &[Event]) {
    if let Some(last) = events.last() {
        reporter.seen(last.revision());
    }
}

impl<S: LeaseStore, K: Kernel> Running<S, K> {
    /// Takes over what was listed at start.
    pub(super) fn take_first_list(&mut self) {
        let first = std::mem::take(&mut self.first);
        self.data_plane.keep_unknown = first.partial;
        self.reporter.seen(first.next.saturating_sub(1));
        let leases: Vec<RawLease<'_>> = first.records.iter().map(raw).collect();
        let skipped = self.data_plane.leases.begin(&leases, source(&first));
        self.reporter.skipped(&skipped);
    }

    pub(super) fn on_update(&mut self, update: Update) {
        match update {
            Update::Events(events) => self.on_events(&events),
            Update::Snapshot(snapshot) => self.on_snapshot(&snapshot),
            Update::Down(error) => self.reporter.store_down(&error),
            Update::Up => {
                self.reporter.store_up();
                if self.is_outdated() || self.reporter.renewal_is_failing() {
                    self.check_soon();
                }
            }
        }
    }

    fn on_events(&mut self, events: &[Event]) {
        let (started, kept) = (self.clock.now(), self.data_plane.leases.kept());
        let mut touched = Touched::default();
        for event in events {
            touched.append(match event {
                Event::Put(record) => {
                    self.suspect(&record.name, record.modified);
                    if self.is_claiming(record) {
                        continue;
                    }
                    self.data_plane.leases.put(&raw(record))
                }
                Event::Delete(name, revision) => {
                    self.suspect(name, *revision);
                    self.data_plane.leases.delete(name)
                }
            });
        }
        self.on_touched(started, &touched);
        seen(&mut self.reporter, events);
        self.tell_end_of_grace(kept);
    }

    fn on_snapshot(&mut self, snapshot: &Snapshot) {
        let (started, kept) = (self.clock.now(), self.data_plane.leases.kept());
        self.reporter.seen(snapshot.next.saturating_sub(1));
        let own = key_of(self.lease.held.subnet);
        let standing = snapshot.records.iter().find(|record| record.name == own);
        self.suspect(&own, standing.map_or(snapshot.next, |record| record.modified));
        let leases: Vec<RawLease<'_>> = snapshot.records.iter().map(raw).collect();
        let touched = self.data_plane.leases.list(&leases, source(snapshot), started.0);
        info!(leases = leases.len(), peers = self.data_plane.leases.usable(), "leases listed again");
        self.on_touched(started, &touched);
        if let Some(reason) = touched.replaced {
            // Whatever stands in our key now: its revision says nothing.
            self.check_soon();
            self.tell_replaced(reason);
        }
        self.tell_end_of_grace(kept);
        if std::mem::replace(&mut self.data_plane.keep_unknown, snapshot.partial) && !snapshot.partial {
            self.resync("whole list");
        }
    }

    fn tell_replaced(&self, reason: &'static str) {
        let (peers, grace) = (self.data_plane.leases.kept(), self.data_plane.leases.grace().as_secs());
        if peers == 0 {
            info!(reason, "the store looks replaced, and lists every peer");
            return;
        }
        warn!(
            peers,
            grace_s = grace,
            "the store looks replaced ({reason}): peers that it does not list are kept until they are \
            listed again, their subnet is leased anew, or the grace period (peer-grace) is over"
        );
    }

    /// All leases are judged from another point of view.
    pub(super) fn judge_from(&mut self, own: Own, snapshot: &Snapshot) {
        let kept = self.data_plane.leases.kept();
        let leases: Vec<RawLease<'_>> = snapshot.records.iter().map(raw).collect();
        let touched = self.data_plane.leases.set_own(own, &leases, source(snapshot), self.clock.now().0);
        self.reporter.skipped(&touched.skipped);
        touched.replaced.iter().for_each(|reason| self.tell_replaced(reason));
        self.tell_end_of_grace(kept);
    }

    /// Peers of a former store that nobody has registered again are gone.
    pub(super) fn end_grace(&mut self, now: BootTime) {
        let kept = self.data_plane.leases.kept();
        let touched = self.data_plane.leases.end_grace(now.0);
        let still_kept = self.data_plane.leases.kept();
        // Some are left only when the store was replaced again meanwhile: their end is told then.
        let nothing = if still_kept == 0 { "; nothing of the former store is kept any more" } else { "" };
        warn!(
            removed = kept.saturating_sub(still_kept),
            still_kept,
            "the grace period is over: peers of the former store that nobody listed again are removed{nothing}"
        );
        self.on_touched(now, &touched);
    }

    /// What the store holds now left nothing to remove.
    fn tell_end_of_grace(&self, before: usize) {
        if before > 0 && self.data_plane.leases.kept() == 0 {
            info!(
                removed = 0,
                "every peer of the former store is listed again or its subnet leased anew; \
                nothing of the former store is kept any more"
            );
        }
    }

    fn on_touched(&mut self, started: BootTime, touched: &Touched) {
        if touched.is_empty() {
            return;
        }
        self.reporter.skipped(&touched.skipped);
        let report = self.data_plane.on_leases(touched, started.0);
        self.after_round("leases", started, Ok(report));
        if self.give_up_shared_mac() {
            self.resync("VTEP MAC");
        }
        self.reporter.converged(self.clock.now().since(started));
    }
}

fn raw(record: &Record) -> RawLease<'_> {
    RawLease { name: &record.name, value: &record.value, created: record.created, modified: record.modified }
}

fn source(snapshot: &Snapshot) -> Source {
    Source { cluster: snapshot.cluster, revision: snapshot.next.saturating_sub(1) }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::Poll;
    use std::time::Duration;

    use super::*;
    use crate::model::Vni;
    use crate::notify::Notifier;
    use crate::store::{Memory, MemoryStore};

    const NAME: &str = "10.200.2.0-24";

    fn lease(mac: u8) -> String {
        format!(
            r#"{{"PublicIP":"10.8.0.2","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}}}}"#
        )
    }

    fn own() -> Own {
        Own {
            network: "10.200.0.0/16".parse().unwrap(),
            subnet: "10.200.1.0/24".parse().unwrap(),
            public_ip: [10, 8, 0, 1].into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            vni: Vni::DEFAULT,
            underlay: Vec::new(),
        }
    }

    async fn poll<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
    }

    /// Renewals are written one after the other, until one of them turns the loop.
    #[tokio::test]
    async fn renewals_are_no_news_but_a_flood_of_them_lets_the_loop_turn() {
        let (reporter, _questions, served) = Reporter::new(Notifier::new(None).unwrap(), || Duration::ZERO);
        let (memory, mut reporter, mut leases) = (Memory::default(), reporter, LeaseSet::new(own()));
        let key = format!("/net/subnets/{NAME}");
        memory.set(&key, &lease(2), None);
        let store = MemoryStore::new(memory.clone(), "/net");
        let snapshot = store.list().await.unwrap();
        let raw: Vec<RawLease<'_>> = snapshot.records.iter().map(raw).collect();
        leases.begin(&raw, source(&snapshot));
        let mut watch = Watch::new(&store, &snapshot);
        {
            let mut news = pin!(next(&mut watch, &mut leases, &mut reporter));
            assert!(poll(news.as_mut()).await.is_pending());
            for number in 0..RENEWALS {
                let revision = memory.set(&key, &lease(2), None);
                assert!(poll(news.as_mut()).await.is_pending(), "renewal {number}");
                assert_eq!(served.local.status.borrow().store.revision, revision);
            }
            memory.set(&key, &lease(2), None);
            assert!(matches!(poll(news.as_mut()).await, Poll::Ready(Update::Events(_))));
        }
        assert_eq!(
            leases.revision(),
            served.local.status.borrow().store.revision,
            "how far the store has counted"
        );
        memory.set(&key, &lease(3), None);
        let news =
            tokio::time::timeout(Duration::from_secs(10), next(&mut watch, &mut leases, &mut reporter));
        let Update::Events(events) = news.await.unwrap() else { panic!("no event") };
        assert!(matches!(events.as_slice(), [Event::Put(record)] if record.value == lease(3).as_bytes()));
    }
}
