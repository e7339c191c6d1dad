//! What every store has to do, over the one in memory, a real etcd v3 and a real etcd v2.
//!
//! Where the rows of the contract's tables are tested; without a file it is here, over both.
//!
//! | v2 (section 7) | test |
//! |---|---|
//! | requests of read, list, create, update, renew, delete, watch | `store_v2_wire`: `requests_are_those_that_go_makes_but_conditional` |
//! | a missing folder is an empty list, with the index to watch from | `an_empty_store_is_an_empty_list_to_watch_from` |
//! | exists already (105), somebody else's write in between | `a_subnet_is_created_once`, `an_update_needs_the_revision_that_was_read` |
//! | no ttl for a reservation | `a_reservation_stays_one`; `netns-tests/tests/etcd_v2.rs` |
//! | delete, as Go sees it: `expire` | `store_faults`: `a_deletion_in_v2_is_an_expiry_for_those_who_watch` |
//! | own key watched | `netns-tests/tests/etcd_v2.rs`: `a_reservation_in_v2_stays_one_and_a_deleted_key_is_taken_again` |
//! | start index, then the event's plus one | `requests_are_those…`; `a_watch_misses_nothing_since_the_list` |
//! | actions that remove, all others add | `store/etcd_v2_json.rs`; `netns-tests/tests/etcd_v2.rs`: `peers_come_change_and_leave_in_every_way_v2_knows` |
//! | an empty 200 | `store_v2_wire`: `an_empty_answer_to_a_poll_is_asked_again` |
//! | 401, index cleared | `a_watch_from_a_forgotten_past_delivers_the_list` |
//! | any other error of a watch; an event nobody understands | `store_v2_wire`: `an_answer_that_cannot_be_read…`, `an_event_of_an_unknown_action…` |
//! | endpoints shuffled, pinned, the next at transport errors and 5xx | `store/endpoints.rs`; `store_v2_wire`: `a_member_that_answers_5xx_costs_no_call`; `store_faults` |
//! | redirects (not followed), paths and `unix://` (refused) | `store_v2_wire`: `answers_of_servers_that_are_no_etcd_are_named`; `options/etcd.rs` |
//! | timeouts, keepalive | `store/connect.rs`; `store_faults`: `nothing_blocks_when…`; `store_cluster`: `a_watch_on_which_nothing_can_come…` |
//! | basic auth with every request | `store_faults`: `v2_wants_the_login_with_every_request` |
//! | TLS | `store_tls`, every test over both |
//!
//! | v3 (section 8) | test |
//! |---|---|
//! | read: linearizable; no key | `netns-tests/tests/etcd_faults.rs`: `a_member_without_its_quorum_is_left`; `daemon/waiting.rs` |
//! | list: one range, the folder only, paged when too large | `store_faults`: `a_list_is_one_request…`, `…is_paged`; `keys_beside_the_folder_are_none_of_ours` |
//! | create: grant, then if absent; a lost race leaves no lease | `a_subnet_is_created_once`, `of_many_that_create…`; `store_faults`: `no_lease_is_left_behind_in_etcd` |
//! | update, conditional; the former lease is revoked | `an_update_needs_the_revision…`; `no_lease_is_left_behind_in_etcd` |
//! | renewal (Go: a write; here: keepalive) | `a_renewal_prolongs_without_an_event`; `store_faults`: `a_renewal_is_two_requests_and_no_write` |
//! | delete | `a_key_is_deleted_only_at_the_known_revision` |
//! | TTL −1 is for ever | `a_reservation_stays_one` |
//! | watch from the list's revision, with a leader required | `a_watch_misses_nothing_since_the_list`; `store_cluster`; `netns-tests/tests/etcd_faults.rs` |
//! | CA alone, mixed schemes | `store_tls`: `a_ca_alone_is_enough…`, `each_endpoint_has_a_scheme_of_its_own` |
//! | all endpoints tried | `store_faults`: `dead_members_cost_no_call`, `a_killed_member…`, `a_paused_member…`; `store_cluster` |
//! | login, its token lost or run out, also under a watch | `store_faults`: `a_login_survives…`; `store_cluster`: `a_token_that_ran_out…`, `a_change_of_users…` |
//! | a deadline for every call, keepalive 3 s/1 s (TCP) and 30 s/10 s (HTTP/2) | `store_faults`: `nothing_blocks_when…`, `a_half_open_connection…`; `store_cluster`: `a_watch_on_which_nothing_can_come…` |
//! | a retried write is made once | `store_faults`: `a_write_whose_answer_was_lost_is_recognised` |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod store_support;

use std::time::Duration;

use flanneld::store::{
    Both, Etcd, EtcdV2, EtcdV3, Event, LeaseStore, Memory, Record, Renewal, Update, Written,
};
use store_support::{PREFIX, Server, Watching, attrs, encode, held, key, name, subnet};

const DAY: Duration = Duration::from_secs(86_400);

/// A store and what others do to it.
trait Lab {
    type Store: LeaseStore;

    fn store(&self) -> Self::Store;
    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>);
    async fn remove(&self, key: &str);
    /// Makes the store forget all changes so far, so that a watch from the past has to fail.
    async fn forget(&self);
}

struct InMemory(Memory);

impl Lab for InMemory {
    type Store = Etcd<Memory>;

    fn store(&self) -> Self::Store {
        Etcd::new(self.0.clone(), PREFIX)
    }

    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>) {
        self.0.set(key, value, ttl);
    }

    async fn remove(&self, key: &str) {
        self.0.remove(key);
    }

    async fn forget(&self) {
        self.0.compact();
    }
}

struct V3(Server);

impl Lab for V3 {
    type Store = Etcd<EtcdV3>;

    fn store(&self) -> Self::Store {
        Etcd::new(EtcdV3::new(&self.0.config()).unwrap(), PREFIX)
    }

    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>) {
        let mut client = self.0.client().await;
        let options = match ttl {
            None => None,
            Some(ttl) => {
                let seconds = i64::try_from(ttl.as_secs()).unwrap();
                let id = client.lease_grant(seconds, None).await.unwrap().id();
                Some(etcd_client::PutOptions::new().with_lease(id))
            }
        };
        client.put(key, value, options).await.unwrap();
    }

    async fn remove(&self, key: &str) {
        self.0.client().await.delete(key, None).await.unwrap();
    }

    async fn forget(&self) {
        let mut client = self.0.client().await;
        let revision = client.put("/elsewhere", "", None).await.unwrap().header().unwrap().revision();
        client.compact(revision, None).await.unwrap();
    }
}

struct V2(Server);

impl Lab for V2 {
    type Store = Etcd<EtcdV2>;

    fn store(&self) -> Self::Store {
        Etcd::new(EtcdV2::new(&self.0.config()).unwrap(), PREFIX)
    }

    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>) {
        let ttl = ttl.map_or_else(String::new, |ttl| format!("&ttl={}", ttl.as_secs()));
        let answer = self.0.v2("PUT", &encode(key), &format!("value={}{ttl}", encode(value))).await;
        assert!(answer.contains("\"node\""), "{answer}");
    }

    async fn remove(&self, key: &str) {
        self.0.v2("DELETE", key, "").await;
    }

    async fn forget(&self) {
        for _ in 0..1001 {
            self.0.v2("PUT", "/elsewhere", "value=x").await;
        }
    }
}

/// Both stores at once, as nodes of v2 see and change them. A key that is removed goes from both.
#[derive(Default)]
struct InBoth {
    v2: Memory,
    v3: Memory,
}

impl Lab for InBoth {
    type Store = Both<Memory, Memory>;

    fn store(&self) -> Self::Store {
        Both::new(Etcd::new(self.v2.clone(), PREFIX), Etcd::new(self.v3.clone(), PREFIX))
    }

    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>) {
        self.v2.set(key, value, ttl);
    }

    async fn remove(&self, key: &str) {
        self.v3.remove(key);
        self.v2.remove(key);
    }

    async fn forget(&self) {
        self.v2.compact();
        self.v3.compact();
    }
}

async fn records<S: LeaseStore>(store: &S) -> Vec<Record> {
    store.list().await.unwrap().records
}

async fn only_record<S: LeaseStore>(store: &S) -> Record {
    let records = records(store).await;
    assert_eq!(records.len(), 1, "{records:?}");
    records.into_iter().next().unwrap()
}

/// Events until one is about `name`.
async fn event_about(watching: &mut Watching, name: &str) -> Event {
    loop {
        let Update::Events(events) = watching.next().await else { continue };
        let about = |event: &Event| match event {
            Event::Put(record) => record.name == name,
            Event::Delete(deleted, _) => deleted == name,
        };
        if let Some(event) = events.into_iter().find(about) {
            return event;
        }
    }
}

async fn the_config_is_read_or_missing(lab: impl Lab) {
    let store = lab.store();
    assert_eq!(store.network_config().await.unwrap(), None);
    lab.set(&format!("{PREFIX}/config"), r#"{"Network":"10.200.0.0/16"}"#, None).await;
    assert_eq!(store.network_config().await.unwrap().unwrap(), br#"{"Network":"10.200.0.0/16"}"#);
}

async fn an_empty_store_is_an_empty_list_to_watch_from(lab: impl Lab) {
    let store = lab.store();
    let snapshot = store.list().await.unwrap();
    assert_eq!(snapshot.records, []);
    let mut watching = Watching::from(&store, snapshot.next);
    lab.set(&key(1), "x", None).await;
    assert!(matches!(event_about(&mut watching, &name(1)).await, Event::Put(_)));
}

async fn a_subnet_is_created_once(lab: impl Lab) {
    let store = lab.store();
    let first = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    assert_eq!((first.subnet, &first.attrs, first.ttl), (subnet(1), &attrs(1), Some(DAY)));
    assert_eq!(store.create(subnet(1), &attrs(2), DAY).await.unwrap(), Written::Conflict);
    let record = only_record(&store).await;
    assert_eq!(record.name, name(1));
    assert_eq!(record.value, attrs(1).to_json().as_bytes());
    assert_eq!((record.modified, record.lease), (first.modified, first.lease));
    assert!(record.lease.is_some());
}

async fn of_many_that_create_the_same_subnet_one_wins(lab: impl Lab) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12 {
        let store = lab.store();
        tasks.spawn(async move { store.create(subnet(1), &attrs(number), DAY).await.unwrap() });
    }
    let written = tasks.join_all().await;
    let won: Vec<_> = written.into_iter().filter(|written| *written != Written::Conflict).collect();
    assert_eq!(won.len(), 1, "{won:?}");
}

async fn an_update_needs_the_revision_that_was_read(lab: impl Lab) {
    let store = lab.store();
    let first = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let record = only_record(&store).await;
    let second = held(store.update(subnet(1), &record, &attrs(2), DAY).await.unwrap());
    assert!(second.modified > first.modified);
    let stale = store.update(subnet(1), &record, &attrs(3), DAY).await.unwrap();
    assert_eq!(stale, Written::Conflict);
    // The former lease is gone, and the key did not go with it.
    let now = only_record(&store).await;
    assert_eq!((now.modified, now.lease), (second.modified, second.lease));
    assert_eq!(now.value, attrs(2).to_json().as_bytes());
    assert_eq!(now.created, record.created);
}

async fn an_update_of_a_deleted_key_is_a_conflict(lab: impl Lab) {
    let store = lab.store();
    held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let record = only_record(&store).await;
    lab.remove(&key(1)).await;
    assert_eq!(store.update(subnet(1), &record, &attrs(1), DAY).await.unwrap(), Written::Conflict);
    assert_eq!(records(&store).await, []);
}

async fn a_reservation_stays_one(lab: impl Lab) {
    let store = lab.store();
    lab.set(&key(1), &attrs(1).to_json(), None).await;
    let record = only_record(&store).await;
    assert_eq!(record.lease, None);
    let updated = held(store.update(subnet(1), &record, &attrs(2), DAY).await.unwrap());
    assert_eq!((updated.lease, updated.ttl), (None, None));
    assert_eq!(store.renew(&updated, DAY).await.unwrap(), Renewal::Held(updated.clone()));
    let now = only_record(&store).await;
    assert_eq!((now.lease, now.modified), (None, updated.modified));
}

async fn a_renewal_prolongs_without_an_event(lab: impl Lab) {
    let store = lab.store();
    let ttl = Duration::from_secs(6);
    let mut mine = held(store.create(subnet(1), &attrs(1), ttl).await.unwrap());
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    let until = tokio::time::Instant::now() + ttl + Duration::from_secs(2);
    while tokio::time::Instant::now() < until {
        match store.renew(&mine, ttl).await.unwrap() {
            Renewal::Held(held) => mine = held,
            Renewal::Lost(record) => panic!("lost: {record:?}"),
        }
        tokio::time::sleep(ttl / 20).await;
    }
    assert_eq!(only_record(&store).await.lease, mine.lease);
    // The first that is heard of the key is its end, when nobody renews it any more.
    let Update::Events(events) = watching.next().await else { panic!("no events") };
    assert!(matches!(&events[..], [Event::Delete(deleted, _)] if *deleted == name(1)), "{events:?}");
    assert_eq!(store.renew(&mine, ttl).await.unwrap(), Renewal::Lost(None));
}

async fn a_renewal_tells_what_stands_in_place_of_ours(lab: impl Lab) {
    let store = lab.store();
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    lab.set(&key(1), &attrs(2).to_json(), Some(DAY)).await;
    let Renewal::Lost(Some(record)) = store.renew(&mine, DAY).await.unwrap() else { panic!("not lost") };
    assert_eq!(record.value, attrs(2).to_json().as_bytes());
    lab.remove(&key(1)).await;
    assert_eq!(store.renew(&mine, DAY).await.unwrap(), Renewal::Lost(None));
}

async fn a_key_is_deleted_only_at_the_known_revision(lab: impl Lab) {
    let store = lab.store();
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    assert!(!store.delete(subnet(1), mine.modified + 1000).await.unwrap());
    assert!(store.delete(subnet(1), mine.modified).await.unwrap());
    assert_eq!(records(&store).await, [], "gone when it is said to be gone");
    assert!(matches!(event_about(&mut watching, &name(1)).await, Event::Delete(..)));
    assert!(!store.delete(subnet(1), mine.modified).await.unwrap());
}

async fn a_watch_misses_nothing_since_the_list(lab: impl Lab) {
    let store = lab.store();
    lab.set(&key(1), "before", None).await;
    let next = store.list().await.unwrap().next;
    lab.set(&key(2), "two", None).await;
    lab.set(&key(3), "three", None).await;
    lab.remove(&key(2)).await;
    let mut watching = Watching::from(&store, next);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let Update::Events(events) = watching.next().await else { panic!("no events") };
        seen.extend(events);
    }
    let [Event::Put(two), Event::Put(three), Event::Delete(gone, revision)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!((&two.name, &two.value[..]), (&name(2), &b"two"[..]));
    assert_eq!((&three.name, &three.value[..]), (&name(3), &b"three"[..]));
    assert_eq!(gone, &name(2));
    assert!(two.modified < three.modified && three.modified < *revision);
}

async fn keys_beside_the_folder_are_none_of_ours(lab: impl Lab) {
    let store = lab.store();
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    lab.set(&format!("{PREFIX}/subnets2/{}", name(1)), "x", None).await;
    lab.set(&format!("{PREFIX}/config"), "x", None).await;
    lab.set(&key(2), "x", None).await;
    let Update::Events(events) = watching.next().await else { panic!("no events") };
    assert!(matches!(&events[..], [Event::Put(record)] if record.name == name(2)), "{events:?}");
    assert_eq!(only_record(&store).await.name, name(2));
}

async fn junk_is_passed_on_as_it_is(lab: impl Lab) {
    let store = lab.store();
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    for junk in ["junk", "deeper/junk", "10.200.1.0-24&fd00::-64"] {
        lab.set(&format!("{PREFIX}/subnets/{junk}"), "no json", None).await;
        let Event::Put(record) = event_about(&mut watching, junk).await else { panic!("no put") };
        assert_eq!(record.value, b"no json");
    }
    let mut names: Vec<_> = records(&store).await.into_iter().map(|record| record.name).collect();
    names.sort();
    assert_eq!(names, ["10.200.1.0-24&fd00::-64", "deeper/junk", "junk"]);
}

async fn a_watch_from_a_forgotten_past_delivers_the_list(lab: impl Lab) {
    let store = lab.store();
    let next = store.list().await.unwrap().next;
    lab.set(&key(1), "one", None).await;
    lab.set(&key(2), "two", None).await;
    lab.forget().await;
    let mut watching = Watching::from(&store, next);
    let Update::Snapshot(snapshot) = watching.next().await else { panic!("no snapshot") };
    let mut names: Vec<_> = snapshot.records.into_iter().map(|record| record.name).collect();
    names.sort();
    assert_eq!(names, [name(1), name(2)]);
    lab.set(&key(3), "three", None).await;
    assert!(matches!(event_about(&mut watching, &name(3)).await, Event::Put(_)));
}

macro_rules! suite {
    ($module:ident, $attribute:meta, $lab:expr, $($test:ident)*) => {
        mod $module {
            $(#[$attribute]
            async fn $test() {
                super::$test($lab).await;
            })*
        }
    };
}

/// `alone`: what holds for one store. In both at once a lease that nobody renews ends twice, and a watch that finds out late begins
/// with a list.
macro_rules! contract {
    (alone: $($alone:ident)*; always: $($always:ident)*) => {
        suite!(memory, tokio::test(start_paused = true), super::InMemory(super::Memory::default()), $($alone)* $($always)*);
        suite!(v3, tokio::test, super::V3(super::store_support::etcd(&[]).await), $($alone)* $($always)*);
        suite!(v2, tokio::test, super::V2(super::store_support::etcd(&["--enable-v2"]).await), $($alone)* $($always)*);
        suite!(both, tokio::test(start_paused = true), super::InBoth::default(), $($always)*);
    };
}

contract! {
    alone:
    a_renewal_prolongs_without_an_event
    a_key_is_deleted_only_at_the_known_revision;
    always:
    the_config_is_read_or_missing
    an_empty_store_is_an_empty_list_to_watch_from
    a_subnet_is_created_once
    of_many_that_create_the_same_subnet_one_wins
    an_update_needs_the_revision_that_was_read
    an_update_of_a_deleted_key_is_a_conflict
    a_reservation_stays_one
    a_renewal_tells_what_stands_in_place_of_ours
    a_watch_misses_nothing_since_the_list
    keys_beside_the_folder_are_none_of_ours
    junk_is_passed_on_as_it_is
    a_watch_from_a_forgotten_past_delivers_the_list
}
