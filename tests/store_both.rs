//! Both stores at once (`etcd-api=both`), over two stores in memory and over one real etcd that serves v2 and v3.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod store_support;

use std::time::Duration;

use flanneld::model::two_stores::Origin::{self, V2, V3};
use flanneld::model::{LeaseAttrs, NodeId};
use flanneld::store::{
    Both, Etcd, EtcdV2, EtcdV3, Event, Held, LeaseStore, Memory, Record, Renewal, Snapshot, StoreError,
    Update, Written,
};
use store_support::{PREFIX, Server, Watching, encode, eventually, held, key, name, subnet};

const DAY: Duration = Duration::from_secs(86_400);
const CONFIG: &str = r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// The value of node `number`, which is one of ours.
fn attrs(number: u8) -> LeaseAttrs {
    LeaseAttrs { node_id: Some(NodeId::from_machine_id(&number.to_string())), ..store_support::attrs(number) }
}

fn json(number: u8) -> String {
    attrs(number).to_json()
}

fn config_key() -> String {
    format!("{PREFIX}/config")
}

/// Two stores and what others do to them.
trait Pair {
    type Store: LeaseStore;

    fn store(&self) -> Self::Store;
    async fn set(&self, origin: Origin, key: &str, value: &str, ttl: Option<Duration>);
    async fn remove(&self, origin: Origin, key: &str);
    async fn records(&self, origin: Origin) -> Vec<Record>;
    async fn config(&self, origin: Origin) -> Option<String>;

    async fn record(&self, origin: Origin, number: u8) -> Option<Record> {
        self.records(origin).await.into_iter().find(|record| record.name == name(number))
    }

    /// The value in the key of subnet `number` and whether it is a reservation.
    async fn standing(&self, origin: Origin, number: u8) -> Option<(String, bool)> {
        let record = self.record(origin, number).await?;
        Some((String::from_utf8(record.value).unwrap(), record.lease.is_none()))
    }

    /// Waits until both stores hold this in the key of subnet `number`.
    async fn both_hold(&self, number: u8, expected: Option<(String, bool)>) {
        let what = format!("both stores hold {expected:?} in {}", name(number));
        eventually(&what, async || {
            let found = (self.standing(V2, number).await, self.standing(V3, number).await);
            (found == (expected.clone(), expected.clone())).then_some(())
        })
        .await;
    }
}

#[derive(Default)]
struct InMemory {
    v2: Memory,
    v3: Memory,
}

impl InMemory {
    fn one(&self, origin: Origin) -> &Memory {
        match origin {
            V2 => &self.v2,
            V3 => &self.v3,
        }
    }
}

impl Pair for InMemory {
    type Store = Both<Memory, Memory>;

    fn store(&self) -> Self::Store {
        Both::new(Etcd::new(self.v2.clone(), PREFIX), Etcd::new(self.v3.clone(), PREFIX))
    }

    async fn set(&self, origin: Origin, key: &str, value: &str, ttl: Option<Duration>) {
        self.one(origin).set(key, value, ttl);
    }

    async fn remove(&self, origin: Origin, key: &str) {
        self.one(origin).remove(key);
    }

    async fn records(&self, origin: Origin) -> Vec<Record> {
        Etcd::new(self.one(origin).clone(), PREFIX).list().await.unwrap().records
    }

    async fn config(&self, origin: Origin) -> Option<String> {
        self.one(origin).read(&config_key()).map(|record| String::from_utf8(record.value).unwrap())
    }
}

struct Real(Server);

impl Real {
    fn v2(&self) -> Etcd<EtcdV2> {
        Etcd::new(EtcdV2::new(&self.0.config()).unwrap(), PREFIX)
    }

    fn v3(&self) -> Etcd<EtcdV3> {
        Etcd::new(EtcdV3::new(&self.0.config()).unwrap(), PREFIX)
    }
}

impl Pair for Real {
    type Store = Both<EtcdV2, EtcdV3>;

    fn store(&self) -> Self::Store {
        Both::new(self.v2(), self.v3())
    }

    async fn set(&self, origin: Origin, key: &str, value: &str, ttl: Option<Duration>) {
        if origin == V2 {
            let ttl = ttl.map_or_else(String::new, |ttl| format!("&ttl={}", ttl.as_secs()));
            let answer = self.0.v2("PUT", key, &format!("value={}{ttl}", encode(value))).await;
            assert!(answer.contains("\"node\""), "{answer}");
            return;
        }
        let mut client = self.0.client().await;
        let options = match ttl {
            None => None,
            Some(ttl) => {
                let lease = client.lease_grant(i64::try_from(ttl.as_secs()).unwrap(), None).await.unwrap();
                Some(etcd_client::PutOptions::new().with_lease(lease.id()))
            }
        };
        client.put(key, value, options).await.unwrap();
    }

    async fn remove(&self, origin: Origin, key: &str) {
        match origin {
            V2 => drop(self.0.v2("DELETE", key, "").await),
            V3 => drop(self.0.client().await.delete(key, None).await.unwrap()),
        }
    }

    async fn records(&self, origin: Origin) -> Vec<Record> {
        let listed = match origin {
            V2 => self.v2().list().await,
            V3 => self.v3().list().await,
        };
        listed.unwrap().records
    }

    async fn config(&self, origin: Origin) -> Option<String> {
        let config = match origin {
            V2 => self.v2().network_config().await,
            V3 => self.v3().network_config().await,
        };
        config.unwrap().map(|value| String::from_utf8(value).unwrap())
    }
}

async fn renewed<S: LeaseStore>(store: &S, held: &Held) -> Held {
    match store.renew(held, held.ttl.unwrap_or(DAY)).await.unwrap() {
        Renewal::Held(held) => held,
        Renewal::Lost(record) => panic!("lost: {record:?}"),
    }
}

fn find(snapshot: &Snapshot, number: u8) -> Record {
    snapshot.records.iter().find(|record| record.name == name(number)).unwrap().clone()
}

/// The next event; other updates are none of the test's business.
async fn next_event(watching: &mut Watching) -> Event {
    loop {
        if let Update::Events(events) = watching.next().await {
            let [event] = <[Event; 1]>::try_from(events).unwrap();
            return event;
        }
    }
}

/// Why a store is down. Which of the two told of our lease first, and how often, is none of the test's business.
async fn until_down(watching: &mut Watching) -> StoreError {
    loop {
        if let Update::Down(error) = watching.next().await {
            return error;
        }
    }
}

fn put_value(event: Event) -> String {
    match event {
        Event::Put(record) => String::from_utf8(record.value).unwrap(),
        Event::Delete(..) => panic!("{event:?}"),
    }
}

async fn the_config_is_copied_once_and_v2s_counts(pair: impl Pair) {
    let store = pair.store();
    assert_eq!(store.network_config().await.unwrap(), None);
    pair.set(V2, &config_key(), CONFIG, None).await;
    assert_eq!(store.network_config().await.unwrap().unwrap(), CONFIG.as_bytes());
    assert_eq!(pair.config(V3).await.unwrap(), CONFIG);
    let other = CONFIG.replace("10.200", "10.201");
    pair.set(V2, &config_key(), &other, None).await;
    assert_eq!(store.network_config().await.unwrap().unwrap(), other.as_bytes());
    assert_eq!(pair.config(V3).await.unwrap(), CONFIG, "what stands there is never overwritten");
}

async fn a_config_in_v3_alone_is_used_and_not_copied(pair: impl Pair) {
    pair.set(V3, &config_key(), CONFIG, None).await;
    assert_eq!(pair.store().network_config().await.unwrap().unwrap(), CONFIG.as_bytes());
    assert_eq!(pair.config(V2).await, None);
}

async fn a_lease_is_held_and_renewed_in_both(pair: impl Pair) {
    let store = pair.store();
    let ttl = Duration::from_secs(6);
    let mut mine = held(store.create(subnet(1), &attrs(1), ttl).await.unwrap());
    pair.both_hold(1, Some((json(1), false))).await;
    let until = tokio::time::Instant::now() + ttl + Duration::from_secs(2);
    while tokio::time::Instant::now() < until {
        mine = renewed(&store, &mine).await;
        tokio::time::sleep(ttl / 20).await;
    }
    pair.both_hold(1, Some((json(1), false))).await;
    // A later start adopts both by the handle that the list gives.
    let record = find(&store.list().await.unwrap(), 1);
    assert_eq!((record.modified, record.lease), (mine.modified, mine.lease));
    let later = pair.store();
    let updated = held(later.update(subnet(1), &record, &attrs(1), DAY).await.unwrap());
    assert_eq!(updated.ttl, Some(DAY));
    assert!(later.delete(subnet(1), updated.modified).await.unwrap());
    pair.both_hold(1, None).await;
}

async fn a_reservation_in_v2_is_one_in_v3(pair: impl Pair) {
    let store = pair.store();
    pair.set(V2, &key(1), &json(1), None).await;
    // A lease from before it was reserved must not keep it from lasting.
    pair.set(V3, &key(1), &json(1), Some(DAY)).await;
    let record = find(&store.list().await.unwrap(), 1);
    let mine = held(store.update(subnet(1), &record, &attrs(1), DAY).await.unwrap());
    assert_eq!((mine.lease, mine.ttl), (None, None));
    pair.both_hold(1, Some((json(1), true))).await;
    assert_eq!(renewed(&store, &mine).await, mine);
}

async fn a_reservation_in_v3_is_one_in_v2(pair: impl Pair) {
    let store = pair.store();
    pair.set(V3, &key(1), &json(1), None).await;
    let record = find(&store.list().await.unwrap(), 1);
    held(store.update(subnet(1), &record, &attrs(1), DAY).await.unwrap());
    pair.both_hold(1, Some((json(1), true))).await;
    // The same where v2 still has a lease of ours.
    pair.set(V3, &key(2), &json(2), None).await;
    let mine = held(pair.store().create(subnet(2), &attrs(2), DAY).await.unwrap());
    assert_eq!((mine.lease, mine.ttl), (None, None));
    pair.both_hold(2, Some((json(2), true))).await;
}

async fn a_lease_in_v3_alone_is_carried_back_into_v2(pair: impl Pair) {
    let store = pair.store();
    pair.set(V3, &key(1), &json(1), Some(DAY)).await;
    pair.set(V3, &key(2), &json(2), Some(DAY)).await;
    let snapshot = store.list().await.unwrap();
    let adopted = |number| {
        let record = find(&snapshot, number);
        Held {
            subnet: subnet(number),
            attrs: attrs(number),
            modified: record.modified,
            lease: record.lease,
            ttl: None,
        }
    };
    let mine = renewed(&store, &adopted(1)).await;
    pair.both_hold(1, Some((json(1), false))).await;
    renewed(&store, &mine).await;
    // Unless somebody was faster there.
    pair.set(V2, &key(2), &json(9), Some(DAY)).await;
    assert_eq!(store.renew(&adopted(2), DAY).await.unwrap(), Renewal::Lost(None));
    assert_eq!(pair.standing(V2, 2).await, Some((json(9), false)));
}

async fn peers_are_the_union_and_v2_wins(pair: impl Pair) {
    let store = pair.store();
    pair.set(V2, &key(1), &json(1), Some(DAY)).await;
    pair.set(V3, &key(2), &json(2), Some(DAY)).await;
    pair.set(V2, &key(3), &json(3), Some(DAY)).await;
    pair.set(V3, &key(3), &json(33), Some(DAY)).await;
    let snapshot = store.list().await.unwrap();
    let values: Vec<_> = [1, 2, 3].map(|number| find(&snapshot, number).value).into();
    assert_eq!(values, [json(1), json(2), json(3)].map(String::into_bytes));
    assert_eq!((snapshot.records.len(), snapshot.partial), (3, false));
    let mut watching = Watching::from(&store, snapshot.next);
    // The loser's changes are no news, and what v2 takes over is.
    pair.set(V3, &key(3), &json(34), Some(DAY)).await;
    pair.set(V3, &key(4), &json(4), Some(DAY)).await;
    assert_eq!(put_value(next_event(&mut watching).await), json(4));
    pair.set(V2, &key(4), &json(44), Some(DAY)).await;
    assert_eq!(put_value(next_event(&mut watching).await), json(44));
    // Gone is what is gone from both.
    pair.remove(V2, &key(3)).await;
    assert_eq!(put_value(next_event(&mut watching).await), json(34));
    pair.remove(V3, &key(3)).await;
    let gone = next_event(&mut watching).await;
    assert!(matches!(&gone, Event::Delete(gone, _) if *gone == name(3)), "{gone:?}");
}

async fn our_key_in_v3_is_put_back_and_a_usurpers_is_left(pair: impl Pair) {
    let store = pair.store();
    let snapshot = store.list().await.unwrap();
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let _watching = Watching::from(&store, snapshot.next);
    let in_v2 = pair.record(V2, 1).await;
    pair.remove(V3, &key(1)).await;
    pair.both_hold(1, Some((json(1), false))).await;
    // A Go daemon writes over whatever stands there: v2 still says that the subnet is ours.
    pair.set(V3, &key(1), &json(9), Some(DAY)).await;
    let mine = renewed(&store, &mine).await;
    assert_eq!(pair.standing(V3, 1).await, Some((json(9), false)), "not overwritten");
    pair.remove(V3, &key(1)).await;
    pair.both_hold(1, Some((json(1), false))).await;
    assert_eq!(pair.record(V2, 1).await.unwrap().created, in_v2.unwrap().created, "v2 was never touched");
    renewed(&store, &mine).await;
}

async fn our_key_in_v3_gives_way_to_v2s_holder(pair: impl Pair) {
    // Another node got our subnet in v2 while we were in v3 alone.
    pair.set(V3, &key(1), &json(1), Some(DAY)).await;
    pair.set(V2, &key(1), &json(9), Some(DAY)).await;
    let store = pair.store();
    let snapshot = store.list().await.unwrap();
    assert_eq!(find(&snapshot, 1).value, json(9).into_bytes());
    let mine = held(store.create(subnet(2), &attrs(1), DAY).await.unwrap());
    let _watching = Watching::from(&store, snapshot.next);
    pair.both_hold(2, Some((json(1), false))).await;
    eventually("our key is gone from v3", async || pair.standing(V3, 1).await.is_none().then_some(())).await;
    // The same while we run: the new subnet is taken in v2, and we have to move again.
    pair.set(V2, &key(2), &json(9), Some(DAY)).await;
    assert!(matches!(store.renew(&mine, DAY).await.unwrap(), Renewal::Lost(Some(_))));
    held(store.create(subnet(3), &attrs(1), DAY).await.unwrap());
    pair.both_hold(3, Some((json(1), false))).await;
    eventually("our key is gone from v3", async || pair.standing(V3, 2).await.is_none().then_some(())).await;
}

async fn of_many_that_create_the_same_subnet_one_wins_in_both(pair: impl Pair) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let store = pair.store();
        tasks.spawn(async move { store.create(subnet(1), &attrs(number), DAY).await.unwrap() });
    }
    let written = tasks.join_all().await;
    let won = written.into_iter().filter_map(|written| match written {
        Written::Held(held) => Some(held),
        Written::Conflict => None,
    });
    let [winner] = <[Held; 1]>::try_from(won.collect::<Vec<_>>()).unwrap();
    pair.both_hold(1, Some((winner.attrs.to_json(), false))).await;
}

macro_rules! on_both {
    ($($test:ident)*) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $test() {
                super::$test(super::InMemory::default()).await;
            })*
        }

        mod real {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Real(super::store_support::etcd(&["--enable-v2"]).await)).await;
            })*
        }
    };
}

on_both! {
    the_config_is_copied_once_and_v2s_counts
    a_config_in_v3_alone_is_used_and_not_copied
    a_lease_is_held_and_renewed_in_both
    a_reservation_in_v2_is_one_in_v3
    a_reservation_in_v3_is_one_in_v2
    a_lease_in_v3_alone_is_carried_back_into_v2
    peers_are_the_union_and_v2_wins
    our_key_in_v3_is_put_back_and_a_usurpers_is_left
    our_key_in_v3_gives_way_to_v2s_holder
    of_many_that_create_the_same_subnet_one_wins_in_both
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_v3_does_not_stop_v2_and_is_made_up_for() {
    let pair = InMemory::default();
    pair.set(V2, &config_key(), CONFIG, None).await;
    pair.v3.set(&key(5), &json(5), None);
    let store = pair.store();
    store.list().await.unwrap();
    pair.v3.set_down(true);
    assert!(store.network_config().await.unwrap().is_some());
    let snapshot = store.list().await.unwrap();
    assert_eq!((find(&snapshot, 5).value, snapshot.partial), (json(5).into_bytes(), false), "as last known");
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut watching = Watching::from(&store, snapshot.next);
    let error = until_down(&mut watching).await;
    assert_eq!(error.to_string(), "v3: no etcd endpoint answers: memory: unreachable on demand");
    pair.v2.set(&key(2), &json(2), None);
    while put_value(next_event(&mut watching).await) != json(2) {}
    renewed(&store, &mine).await;
    assert!(pair.v3.read(&key(1)).is_none());
    pair.v3.set_down(false);
    assert_eq!(watching.next().await, Update::Up);
    pair.both_hold(1, Some((json(1), false))).await;
    assert_eq!(pair.config(V3).await.unwrap(), CONFIG);
}

/// The watch of v3 is up all the time, so that nothing but the next try finds out that it works again.
#[tokio::test(start_paused = true)]
async fn a_copy_that_failed_is_tried_again_although_nothing_happens_in_v3() {
    let pair = InMemory::default();
    let store = pair.store();
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    pair.v3.set(&key(5), &json(5), None);
    assert_eq!(put_value(next_event(&mut watching).await), json(5));
    pair.v3.fail(4);
    held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    assert!(pair.v3.read(&key(1)).is_none());
    eventually("the copy in v3", async || pair.v3.read(&key(1))).await;
}

#[tokio::test(start_paused = true)]
async fn what_one_watch_could_not_copy_the_next_one_does() {
    let pair = InMemory::default();
    let store = pair.store();
    let snapshot = store.list().await.unwrap();
    pair.v3.set_down(true);
    held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut first = Watching::from(&store, snapshot.next);
    until_down(&mut first).await;
    drop(first);
    pair.v3.set_down(false);
    let _second = Watching::from(&store, store.list().await.unwrap().next);
    pair.both_hold(1, Some((json(1), false))).await;
}

#[tokio::test(start_paused = true)]
async fn a_v3_that_was_never_read_makes_the_list_a_partial_one() {
    let pair = InMemory::default();
    pair.v3.set(&key(5), &json(5), None);
    pair.v3.set_down(true);
    let store = pair.store();
    let snapshot = store.list().await.unwrap();
    assert_eq!((snapshot.records.len(), snapshot.partial), (0, true));
    let mut watching = Watching::from(&store, snapshot.next);
    assert!(matches!(watching.next().await, Update::Down(_)));
    pair.v3.set_down(false);
    assert_eq!(watching.next().await, Update::Up);
    let Update::Snapshot(whole) = watching.next().await else { panic!("no snapshot") };
    assert_eq!((find(&whole, 5).value, whole.partial), (json(5).into_bytes(), false));
}

/// A start over stores of which v3 takes requests and says nothing.
#[tokio::test(start_paused = true)]
async fn a_silent_v3_holds_a_start_up_for_three_seconds_a_call() {
    let pair = InMemory::default();
    pair.set(V2, &config_key(), CONFIG, None).await;
    pair.set(V2, &key(1), &json(1), Some(DAY)).await;
    pair.v3.set_silent(true);
    let store = pair.store();
    let mut last = tokio::time::Instant::now();
    let mut took = || {
        let before = std::mem::replace(&mut last, tokio::time::Instant::now());
        last.duration_since(before).as_secs()
    };
    assert_eq!(store.network_config().await.unwrap().unwrap(), CONFIG.as_bytes());
    assert_eq!(took(), 3);
    let snapshot = store.list().await.unwrap();
    assert_eq!((snapshot.partial, took()), (true, 3));
    // Our own lease is taken over: v2 knows that it is ours.
    let mine = held(store.update(subnet(1), &find(&snapshot, 1), &attrs(1), DAY).await.unwrap());
    assert_eq!(took(), 3);
    renewed(&store, &mine).await;
    assert_eq!(took(), 3);
    let _watching = Watching::from(&store, snapshot.next);
    pair.v3.set_silent(false);
    pair.both_hold(1, Some((json(1), false))).await;
    eventually("the config in v3", async || pair.config(V3).await).await;
}

/// Who has left v2 already holds its subnet only in v3.
#[tokio::test(start_paused = true)]
async fn a_new_subnet_is_not_taken_without_ever_having_read_v3() {
    let pair = InMemory::default();
    pair.set(V3, &key(5), &json(5), Some(DAY)).await;
    pair.v3.set_silent(true);
    let store = pair.store();
    assert!(store.list().await.unwrap().partial);
    let error = store.create(subnet(5), &attrs(1), DAY).await.unwrap_err();
    assert_eq!(error.to_string(), "v3: no etcd endpoint answers: memory: unreachable on demand");
    pair.v3.set_silent(false);
    assert_eq!(store.create(subnet(5), &attrs(1), DAY).await.unwrap(), Written::Conflict);
    assert_eq!(pair.standing(V2, 5).await, None);
    held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    pair.both_hold(1, Some((json(1), false))).await;
}

/// `etcd-api=auto`: beginning a move is the operator's.
#[tokio::test(start_paused = true)]
async fn without_the_config_only_the_lease_is_copied() {
    let pair = InMemory::default();
    pair.set(V2, &config_key(), CONFIG, None).await;
    let store = pair.store().without_config();
    assert!(store.network_config().await.unwrap().is_some());
    let _watching = Watching::from(&store, store.list().await.unwrap().next);
    held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    pair.both_hold(1, Some((json(1), false))).await;
    assert_eq!(pair.config(V3).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_v2_keeps_v3_going() {
    let pair = InMemory::default();
    let store = pair.store();
    let snapshot = store.list().await.unwrap();
    let ttl = Duration::from_secs(100);
    let mine = held(store.create(subnet(1), &attrs(1), ttl).await.unwrap());
    let mut watching = Watching::from(&store, snapshot.next);
    assert_eq!(put_value(next_event(&mut watching).await), json(1));
    pair.v2.set_down(true);
    assert!(matches!(until_down(&mut watching).await, StoreError::Half { store: V2, .. }));
    assert!(matches!(store.list().await, Err(StoreError::Half { store: V2, .. })));
    assert!(store.network_config().await.is_err(), "failing to read is not reading nothing");
    for _ in 0..4 {
        tokio::time::sleep(ttl / 2).await;
        assert!(store.renew(&mine, ttl).await.is_err());
    }
    assert!(pair.v3.read(&key(1)).is_some(), "renewed all the same");
    pair.v3.set(&key(2), &json(2), None);
    while put_value(next_event(&mut watching).await) != json(2) {}
    // Back in v2, where our lease has run out meanwhile: it is taken again from its copy.
    pair.v2.set_down(false);
    assert_eq!(store.renew(&mine, ttl).await.unwrap(), Renewal::Lost(None));
    let record = find(&store.list().await.unwrap(), 1);
    held(store.update(subnet(1), &record, &attrs(1), ttl).await.unwrap());
    pair.both_hold(1, Some((json(1), false))).await;
}

#[tokio::test(start_paused = true)]
async fn the_stores_are_up_when_both_are() {
    let pair = InMemory::default();
    let store = pair.store();
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    pair.v2.set_down(true);
    assert!(matches!(watching.next().await, Update::Down(StoreError::Half { store: V2, .. })));
    pair.v3.set_down(true);
    assert!(matches!(watching.next().await, Update::Down(StoreError::Half { store: V3, .. })));
    pair.v3.set_down(false);
    assert!(matches!(watching.next().await, Update::Down(StoreError::Half { store: V2, .. })));
    pair.v2.set_down(false);
    assert_eq!(watching.next().await, Update::Up);
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_an_older_position_begins_with_what_it_missed() {
    let pair = InMemory::default();
    let store = pair.store();
    let old = store.list().await.unwrap().next;
    pair.v3.set(&key(1), &json(1), None);
    let fresh = store.list().await.unwrap();
    let mut late = Watching::from(&store, old);
    assert_eq!(late.next().await, Update::Snapshot(fresh));
    pair.v3.set(&key(2), &json(2), None);
    while put_value(next_event(&mut late).await) != json(2) {}
}
