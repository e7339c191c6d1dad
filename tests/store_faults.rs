//! Faults: lost answers, broken streams, dead and silent members, a full store, expired logins, replaced stores.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod store_support;

use std::process::Command;
use std::time::Duration;

use flanneld::store::{
    Config, Etcd, Event, Held, LeaseStore, Memory, MemoryStore, Record, StoreError, Update, Written,
};
use store_support::{
    PATIENCE, PREFIX, Proxy, Server, Watching, attrs, cluster, config, etcd, eventually, held, key, name,
    renewed, subnet, v2, v3, with_login,
};

const DAY: Duration = Duration::from_secs(86_400);

fn memory() -> (Memory, MemoryStore) {
    let memory = Memory::default();
    (memory.clone(), Etcd::new(memory, PREFIX))
}

async fn only_record<S: LeaseStore>(store: &S) -> Record {
    let records = store.list().await.unwrap().records;
    assert_eq!(records.len(), 1, "{records:?}");
    records.into_iter().next().unwrap()
}

/// A port of loopback where nobody listens.
fn dead() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

// --- in memory ---

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_is_recognised() {
    let (memory, store) = memory();
    memory.lose_answer();
    let first = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    assert_eq!(memory.read(&key(1)).unwrap().modified, first.modified);
    let record = only_record(&store).await;
    memory.lose_answer();
    let second = held(store.update(subnet(1), &record, &attrs(2), DAY).await.unwrap());
    assert!(second.modified > first.modified);
    assert_eq!(memory.leases(), 1, "the former lease is revoked");
}

#[tokio::test(start_paused = true)]
async fn a_lost_race_leaves_no_lease_behind() {
    let (memory, store) = memory();
    memory.set(&key(1), "theirs", Some(DAY));
    assert_eq!(store.create(subnet(1), &attrs(1), DAY).await.unwrap(), Written::Conflict);
    assert_eq!(memory.leases(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_list_is_one_request_whatever_its_length() {
    let (memory, store) = memory();
    for number in 0..200 {
        memory.set(&key(number), "x", Some(DAY));
    }
    let before = memory.calls();
    assert_eq!(store.list().await.unwrap().records.len(), 200);
    assert_eq!(memory.calls() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_two_requests_and_no_write() {
    let (memory, store) = memory();
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let before = memory.calls();
    assert_eq!(renewed(store.renew(&mine, DAY).await.unwrap()), mine);
    assert_eq!(memory.calls() - before, 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_outlived_its_lease_is_written_again_under_a_new_one() {
    let (memory, store) = memory();
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    memory.forget_lease(mine.lease.unwrap());
    let again = renewed(store.renew(&mine, DAY).await.unwrap());
    assert_ne!(again.lease, mine.lease);
    let record = only_record(&store).await;
    assert_eq!((record.modified, record.lease), (again.modified, again.lease));
}

#[tokio::test(start_paused = true)]
async fn an_adopted_lease_keeps_the_length_it_was_granted() {
    let (memory, store) = memory();
    memory.set(&key(1), &attrs(1).to_json(), Some(Duration::from_secs(100)));
    let record = only_record(&store).await;
    let adopted = Held {
        subnet: subnet(1),
        attrs: attrs(1),
        modified: record.modified,
        lease: record.lease,
        ttl: None,
    };
    let mine = renewed(store.renew(&adopted, DAY).await.unwrap());
    assert_eq!(mine.ttl, Some(Duration::from_secs(100)));
}

#[tokio::test(start_paused = true)]
async fn a_broken_watch_says_so_once_and_misses_nothing() {
    let (memory, store) = memory();
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    memory.set(&key(1), "x", None);
    assert!(matches!(watching.next().await, Update::Events(_)));
    memory.set_down(true);
    assert!(matches!(watching.next().await, Update::Down(_)));
    memory.set(&key(2), "x", None);
    // Many attempts fail; none of them is worth a word.
    tokio::time::sleep(Duration::from_secs(60)).await;
    memory.remove(&key(1));
    memory.set_down(false);
    assert_eq!(watching.next().await, Update::Up);
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(Event::Delete(..))) {
        let Update::Events(events) = watching.next().await else { panic!("no events") };
        seen.extend(events);
    }
    assert!(
        seen.iter().any(|event| matches!(event, Event::Put(record) if record.name == name(2))),
        "{seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn attempts_to_reopen_become_rare() {
    let (memory, store) = memory();
    let _watching = Watching::from(&store, store.list().await.unwrap().next);
    memory.set_down(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = memory.calls();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let attempts = memory.calls() - before;
    assert!((12..=24).contains(&attempts), "{attempts} a minute");
}

#[tokio::test(start_paused = true)]
async fn changes_forgotten_while_the_watch_was_down_come_as_a_list() {
    let (memory, store) = memory();
    memory.set(&key(1), "x", None);
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    memory.set_down(true);
    assert!(matches!(watching.next().await, Update::Down(_)));
    memory.remove(&key(1));
    memory.set(&key(2), "x", None);
    memory.compact();
    memory.set_down(false);
    let snapshot = loop {
        match watching.next().await {
            Update::Snapshot(snapshot) => break snapshot,
            Update::Events(events) => panic!("{events:?}"),
            Update::Down(_) | Update::Up => {}
        }
    };
    assert_eq!(snapshot.records.iter().map(|record| &record.name).collect::<Vec<_>>(), [&name(2)]);
    memory.remove(&key(2));
    while !matches!(watching.next().await, Update::Events(_)) {}
}

#[tokio::test(start_paused = true)]
async fn a_replaced_store_is_noticed_by_its_cluster_or_its_revision() {
    for cluster in [1, 2] {
        let (memory, store) = memory();
        for number in 0..10 {
            memory.set(&key(number), "x", None);
        }
        let mut watching = Watching::from(&store, store.list().await.unwrap().next);
        memory.set(&key(20), "x", None);
        assert!(matches!(watching.next().await, Update::Events(_)));
        memory.replace(cluster);
        if cluster == 2 {
            // Further on than the old one was: only its name tells.
            (0..30).for_each(|_| {
                memory.set("/elsewhere", "x", None);
            });
        }
        assert!(matches!(watching.next().await, Update::Down(_)));
        let snapshot = loop {
            if let Update::Snapshot(snapshot) = watching.next().await {
                break snapshot;
            }
        };
        assert_eq!(snapshot.records, [], "cluster {cluster}");
        memory.set(&key(30), "x", None);
        while !matches!(watching.next().await, Update::Events(_)) {}
    }
}

// --- real servers ---

#[tokio::test]
async fn dead_members_cost_no_call() {
    let server = etcd(&["--enable-v2"]).await;
    for _ in 0..6 {
        let mut config = server.config();
        config.endpoints.extend([dead(), dead()]);
        v3(&config).list().await.unwrap();
        v2(&config).list().await.unwrap();
    }
}

#[tokio::test]
async fn without_a_live_member_the_error_names_each_and_its_reason() {
    let mut endpoints = vec![dead(), dead()];
    let config = Config { endpoints: endpoints.clone(), ..Config::default() };
    endpoints.sort();
    let expected = format!(
        "no etcd endpoint answers: {}: connection refused; {}: connection refused",
        endpoints[0], endpoints[1]
    );
    assert_eq!(v3(&config).list().await.unwrap_err().to_string(), expected);
    assert_eq!(v2(&config).list().await.unwrap_err().to_string(), expected);
    let mut watching = Watching::from(&v3(&config), 1);
    let Update::Down(error) = watching.next().await else { panic!("not down") };
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_paused_member_costs_no_call() {
    let servers = cluster(&["--enable-v2"]).await;
    let all: Vec<&Server> = servers.iter().collect();
    let (store3, store2) = (v3(&config(&all)), v2(&config(&all)));
    held(store3.create(subnet(1), &attrs(1), DAY).await.unwrap());
    held(store2.create(subnet(1), &attrs(1), DAY).await.unwrap());
    for server in &servers {
        server.signal(nix::libc::SIGSTOP);
        let (three, two) = tokio::join!(store3.list(), store2.list());
        server.signal(nix::libc::SIGCONT);
        assert_eq!(three.unwrap().records.len(), 1);
        assert_eq!(two.unwrap().records.len(), 1);
    }
}

async fn everything_works<S: LeaseStore>(store: &S) {
    let mut watching = Watching::from(store, store.list().await.unwrap().next);
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mine = renewed(store.renew(&mine, DAY).await.unwrap());
    while !matches!(watching.next().await, Update::Events(_)) {}
    assert!(store.delete(subnet(1), mine.modified).await.unwrap());
    while !matches!(watching.next().await, Update::Events(_)) {}
}

#[tokio::test]
async fn a_slow_member_is_waited_for() {
    let server = etcd(&["--enable-v2"]).await;
    let proxy = Proxy::to(&server).await;
    proxy.slow_down(Duration::from_secs(1));
    let config = Config { username: "root".to_owned(), password: "x".to_owned(), ..proxy.config() };
    everything_works(&v3(&config)).await;
    everything_works(&v2(&config)).await;
}

#[tokio::test]
async fn a_half_open_connection_costs_no_call() {
    let server = etcd(&["--enable-v2"]).await;
    let proxy = Proxy::to(&server).await;
    let (three, two) = (v3(&proxy.config()), v2(&proxy.config()));
    for _ in 0..2 {
        three.list().await.unwrap();
        two.list().await.unwrap();
        proxy.freeze();
    }
    everything_works(&three).await;
    everything_works(&two).await;
}

#[tokio::test]
async fn a_deletion_in_v2_is_an_expiry_for_those_who_watch() {
    let server = etcd(&["--enable-v2"]).await;
    let store = v2(&server.config());
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let from = mine.modified + 1;
    assert!(store.delete(subnet(1), mine.modified).await.unwrap());
    // What Go flannel asks for; it skips `compareAndDelete`.
    let target = format!("/v2/keys{PREFIX}/subnets?recursive=true&wait=true&waitIndex={from}");
    let seen = server.http("GET", &target, "").await;
    assert!(seen.contains(r#""action":"expire""#), "{seen}");
}

#[tokio::test]
async fn a_killed_member_costs_no_call_and_no_event() {
    let mut servers = cluster(&[]).await;
    let store = {
        let all: Vec<&Server> = servers.iter().collect();
        v3(&config(&all))
    };
    let mut mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    for (victim, number) in [0, 1, 2].into_iter().zip(10_u8..) {
        servers[victim].kill();
        mine = renewed(store.renew(&mine, DAY).await.unwrap());
        held(store.create(subnet(number), &attrs(number), DAY).await.unwrap());
        loop {
            let Update::Events(events) = watching.next().await else { continue };
            if events.iter().any(|event| matches!(event, Event::Put(record) if record.name == name(number))) {
                break;
            }
        }
        servers[victim].restart(false).await;
    }
}

#[tokio::test]
async fn a_restarted_store_is_watched_on() {
    let mut server = etcd(&[]).await;
    let store = v3(&server.config());
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    assert!(matches!(watching.next().await, Update::Events(_)));
    server.kill();
    assert!(matches!(watching.next().await, Update::Down(_)));
    server.restart(false).await;
    held(store.create(subnet(2), &attrs(2), DAY).await.unwrap());
    let mut up = false;
    loop {
        match watching.next().await {
            Update::Down(_) => {}
            Update::Up => up = true,
            Update::Events(events) => {
                if events.iter().any(|event| matches!(event, Event::Put(record) if record.name == name(2))) {
                    break;
                }
            }
            other @ Update::Snapshot(_) => panic!("{other:?}"),
        }
    }
    assert!(up);
}

async fn a_wiped_store_is_listed_again<S: LeaseStore>(mut server: Server, store: S) {
    for number in 1..10 {
        held(store.create(subnet(number), &attrs(number), DAY).await.unwrap());
    }
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    held(store.create(subnet(11), &attrs(11), DAY).await.unwrap());
    assert!(matches!(watching.next().await, Update::Events(_)));
    server.kill();
    server.restart(true).await;
    let snapshot = loop {
        if let Update::Snapshot(snapshot) = watching.next().await {
            break snapshot;
        }
    };
    assert_eq!(snapshot.records, []);
}

#[tokio::test]
async fn a_wiped_v3_store_is_listed_again() {
    let server = etcd(&[]).await;
    let store = v3(&server.config());
    a_wiped_store_is_listed_again(server, store).await;
}

#[tokio::test]
async fn a_wiped_v2_store_is_listed_again() {
    let server = etcd(&["--enable-v2"]).await;
    let store = v2(&server.config());
    a_wiped_store_is_listed_again(server, store).await;
}

#[tokio::test]
async fn a_list_larger_than_any_message_is_paged() {
    let server = etcd(&[]).await;
    let mut client = server.client().await;
    let value = "x".repeat(1_000_000);
    for number in 0..70 {
        client.put(key(number), value.clone(), None).await.unwrap();
    }
    let snapshot = v3(&server.config()).list().await.unwrap();
    assert_eq!(snapshot.records.len(), 70);
    assert!(snapshot.records.iter().all(|record| record.value.len() == value.len()));
    let mut names: Vec<_> = snapshot.records.iter().map(|record| &record.name).collect();
    names.dedup();
    assert_eq!(names.len(), 70);
}

#[tokio::test]
async fn a_full_store_still_renews() {
    let server = etcd(&["--quota-backend-bytes=4000000", "--enable-v2"]).await;
    let (store, older) = (v3(&server.config()), v2(&server.config()));
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mine_in_v2 = held(older.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut client = server.client().await;
    let value = "x".repeat(500_000);
    while client.put("/elsewhere", value.clone(), None).await.is_ok() {}
    eventually("the store is full", async || store.create(subnet(2), &attrs(2), DAY).await.err()).await;
    let error = store.create(subnet(2), &attrs(2), DAY).await.unwrap_err();
    assert!(error.to_string().ends_with("mvcc: database space exceeded"), "{error}");
    assert_eq!(renewed(store.renew(&mine, DAY).await.unwrap()), mine);
    // The quota is v3's alone.
    renewed(older.renew(&mine_in_v2, DAY).await.unwrap());
    held(older.create(subnet(2), &attrs(2), DAY).await.unwrap());
}

/// What stays behind in etcd if nobody gives it up: a lease for each renewal by rewriting, and one for each lost race.
#[tokio::test]
async fn no_lease_is_left_behind_in_etcd() {
    let server = etcd(&[]).await;
    let store = v3(&server.config());
    let leases = async || {
        let leases = server.client().await.leases().await.unwrap();
        leases.leases().iter().map(etcd_client::LeaseStatus::id).collect::<Vec<_>>()
    };
    let first = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    assert_eq!(leases().await, [first.lease.unwrap()]);
    let second = held(store.update(subnet(1), &only_record(&store).await, &attrs(2), DAY).await.unwrap());
    assert_ne!(second.lease, first.lease);
    assert_eq!(leases().await, [second.lease.unwrap()], "the former one is revoked");
    assert_eq!(store.create(subnet(1), &attrs(3), DAY).await.unwrap(), Written::Conflict);
    assert_eq!(leases().await, [second.lease.unwrap()], "nothing of the lost race");
    assert_eq!(only_record(&store).await.modified, second.modified, "and the key stands");
}

#[tokio::test]
async fn a_login_survives_the_loss_of_its_token_also_under_a_watch() {
    let mut server = etcd(&[]).await;
    let store = v3(&with_login(&server).await);
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    // etcd keeps its tokens in memory: a restart makes every one of them invalid.
    server.kill();
    server.restart(false).await;
    assert_eq!(renewed(store.renew(&mine, DAY).await.unwrap()), mine);
    held(store.create(subnet(2), &attrs(2), DAY).await.unwrap());
    loop {
        let Update::Events(events) = watching.next().await else { continue };
        if events.iter().any(|event| matches!(event, Event::Put(record) if record.name == name(2))) {
            break;
        }
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_in_words_and_never_shown() {
    let server = etcd(&[]).await;
    let config = Config { password: "wrong".to_owned(), ..with_login(&server).await };
    let error = v3(&config).list().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("etcd refused to list {PREFIX}/subnets/: authentication failed, invalid user ID or password")
    );
    let nobody = Config { username: String::new(), ..config };
    let error = v3(&nobody).list().await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn v2_wants_the_login_with_every_request() {
    let server = etcd(&["--enable-v2"]).await;
    let root = r#"{"user":"root","password":"hunter2"}"#;
    assert!(server.http("PUT", "/v2/auth/users/root", root).await.contains("201"));
    assert!(server.http("PUT", "/v2/auth/enable", "").await.contains("200"));
    // Without this anybody may do everything.
    let revoked = Command::new("etcdctl")
        .args(["--endpoints", &server.url, "--username", "root:hunter2"])
        .env("ETCDCTL_API", "2")
        .args(["role", "revoke", "guest", "--path", "/*", "--readwrite"])
        .output()
        .unwrap();
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    let config = Config { username: "root".to_owned(), password: "hunter2".to_owned(), ..server.config() };
    let store = v2(&config);
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    renewed(store.renew(&mine, DAY).await.unwrap());
    let wrong = Config { password: "wrong".to_owned(), ..config };
    assert_eq!(
        v2(&wrong).list().await.unwrap_err().to_string(),
        format!(
            "etcd refused to list {PREFIX}/subnets/: the user may not do this, or user name or password are wrong \
             (etcd-username, etcd-password)"
        )
    );
}

#[tokio::test]
async fn a_password_for_a_store_without_users_is_no_obstacle() {
    let server = etcd(&["--enable-v2"]).await;
    let config = Config { username: "root".to_owned(), password: "x".to_owned(), ..server.config() };
    v3(&config).list().await.unwrap();
    v2(&config).list().await.unwrap();
}

#[tokio::test]
async fn nothing_blocks_when_a_server_accepts_but_never_answers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let config = Config { endpoints: vec![endpoint.clone()], ..Config::default() };
    let expected = format!("no etcd endpoint answers: {endpoint}: no answer within 2.5 s");
    let (three, two) = (v3(&config), v2(&config));
    let both = async { tokio::join!(three.list(), two.list()) };
    let (three, two) = tokio::time::timeout(PATIENCE, both).await.expect("no call blocks");
    assert_eq!(three.unwrap_err().to_string(), expected);
    assert_eq!(two.unwrap_err().to_string(), expected);
}
