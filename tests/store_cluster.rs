//! Faults of a cluster and of what connects us to it: leaders that change, logins that end, connections nobody is behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod store_support;

use std::time::Duration;

use etcd_client::{ConnectOptions, Error};
use flanneld::store::{Config, Event, LeaseStore, Update};
use store_support::{
    Proxy, Server, Watching, attrs, cluster, config, etcd, eventually, held, name, renewed, subnet, v2, v3,
    with_login,
};

const DAY: Duration = Duration::from_secs(86_400);

/// Waits until the watch has told of node `number`'s key.
async fn seen(watching: &mut Watching, number: u8) {
    loop {
        let Update::Events(events) = watching.next().await else { continue };
        if events.iter().any(|event| is_put(event, number)) {
            return;
        }
    }
}

fn is_put(event: &Event, number: u8) -> bool {
    matches!(event, Event::Put(record) if record.name == name(number))
}

/// Holds the leader up: its position and its id. For about a second nobody leads.
async fn stop_leader(servers: &[Server]) -> (usize, u64) {
    let (position, id) = eventually("a leader", async || {
        for (position, server) in servers.iter().enumerate() {
            let status = server.client().await.status().await.ok()?;
            let id = status.header().unwrap().member_id();
            if status.leader() == id {
                return Some((position, id));
            }
        }
        None
    })
    .await;
    servers[position].signal(nix::libc::SIGSTOP);
    (position, id)
}

/// Waits until the others have another one, and lets the former go on.
async fn change_leader(servers: &[Server], (leader, former): (usize, u64)) {
    let other = &servers[(leader + 1) % servers.len()];
    eventually("another leader", async || {
        let status = other.client().await.status().await.ok()?;
        (status.leader() != former && status.leader() != 0).then_some(())
    })
    .await;
    servers[leader].signal(nix::libc::SIGCONT);
}

async fn lives_through_changes_of_the_leader<S: LeaseStore>(store: &S, servers: &[Server]) {
    let mut mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut watching = Watching::from(store, store.list().await.unwrap().next);
    for number in 2..6 {
        let value = attrs(number);
        let stopped = stop_leader(servers).await;
        let (_, mine_again, created) = tokio::join!(
            change_leader(servers, stopped),
            store.renew(&mine, DAY),
            store.create(subnet(number), &value, DAY)
        );
        mine = renewed(mine_again.unwrap());
        held(created.unwrap());
        seen(&mut watching, number).await;
    }
}

#[tokio::test]
async fn a_change_of_the_leader_costs_no_call_and_no_event() {
    let servers = cluster(&["--enable-v2"]).await;
    let config = config(&servers.iter().collect::<Vec<_>>());
    lives_through_changes_of_the_leader(&v3(&config), &servers).await;
    lives_through_changes_of_the_leader(&v2(&config), &servers).await;
}

#[tokio::test]
async fn a_killed_member_costs_no_call_over_v2_either() {
    let mut servers = cluster(&["--enable-v2"]).await;
    let store = v2(&config(&servers.iter().collect::<Vec<_>>()));
    let mut mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    for (victim, number) in [0, 1, 2].into_iter().zip(10_u8..) {
        servers[victim].kill();
        mine = renewed(store.renew(&mine, DAY).await.unwrap());
        held(store.create(subnet(number), &attrs(number), DAY).await.unwrap());
        seen(&mut watching, number).await;
        servers[victim].restart(false).await;
    }
}

/// A server whose tokens run out two seconds after the login, used or not.
async fn with_short_tokens() -> (Server, Proxy, Config) {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "any secret of the server").unwrap();
    let token = format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=2s", secret.path().display());
    let server = etcd(&[&token]).await;
    let proxy = Proxy::to(&server).await;
    let config = Config { endpoints: proxy.config().endpoints, ..with_login(&server).await };
    (server, proxy, config)
}

/// A plain client that has just logged in.
async fn client_of(server: &Server, config: &Config) -> etcd_client::Client {
    let login = ConnectOptions::new().with_user(&config.username, &config.password);
    etcd_client::Client::connect([&server.url], Some(login)).await.unwrap()
}

/// Waits until a token that is taken now has run out, and with it every older one.
async fn tokens_run_out(server: &Server, config: &Config) {
    let client = client_of(server, config).await;
    let refused =
        eventually("the token runs out", async || client.kv_client().get("/x", None).await.err()).await;
    assert!(
        matches!(&refused, Error::GRpcStatus(status) if status.message().contains("invalid auth token")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_token_that_ran_out_under_a_watch_is_replaced() {
    let (server, proxy, config) = with_short_tokens().await;
    let store = v3(&config);
    let mut mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    for number in [2, 4] {
        tokens_run_out(&server, &config).await;
        // The open watch goes on, and calls log in again.
        mine = renewed(store.renew(&mine, DAY).await.unwrap());
        held(store.create(subnet(number), &attrs(number), DAY).await.unwrap());
        seen(&mut watching, number).await;
        // A watch that has to be opened with a token of before does, too.
        tokens_run_out(&server, &config).await;
        proxy.cut();
        let another = v3(&Config { endpoints: vec![server.url.clone()], ..config.clone() });
        held(another.create(subnet(number + 1), &attrs(number + 1), DAY).await.unwrap());
        seen(&mut watching, number + 1).await;
    }
}

#[tokio::test]
async fn a_change_of_users_does_not_end_a_login() {
    let (server, proxy, config) = with_short_tokens().await;
    let store = v3(&config);
    let mine = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    let mut client = client_of(&server, &config).await;
    // etcd refuses every older token then: "revision of auth store is old".
    client.user_add("somebody", "else", None).await.unwrap();
    renewed(store.renew(&mine, DAY).await.unwrap());
    // This client's own login is short, too.
    let mut client = client_of(&server, &config).await;
    client.user_delete("somebody").await.unwrap();
    proxy.cut();
    held(store.create(subnet(2), &attrs(2), DAY).await.unwrap());
    seen(&mut watching, 2).await;
}

/// Watches with one store, lets `silence` happen, and has a key written by the other: it is told of within a minute.
async fn is_told_after_a_silence<S: LeaseStore>(watching: &S, writing: &S, silence: impl AsyncFnOnce()) {
    let mut updates = Watching::from(watching, watching.list().await.unwrap().next);
    held(writing.create(subnet(1), &attrs(1), DAY).await.unwrap());
    seen(&mut updates, 1).await;
    silence().await;
    held(writing.create(subnet(2), &attrs(2), DAY).await.unwrap());
    let told = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let update = updates.updates.recv().await;
            if matches!(update, Some(Update::Events(events)) if events.iter().any(|event| is_put(event, 2))) {
                return;
            }
        }
    });
    told.await.unwrap_or_else(|_| panic!("{} was silent for a minute", watching.describe()));
}

async fn a_half_open_watch_is_given_up<S: LeaseStore>(open: fn(&Config) -> S) {
    let server = etcd(&["--enable-v2"]).await;
    let proxy = Proxy::to(&server).await;
    let (watching, writing) = (open(&proxy.config()), open(&server.config()));
    is_told_after_a_silence(&watching, &writing, async || proxy.freeze()).await;
}

/// `metric` counts a member's watchers.
async fn a_paused_member_is_left<S: LeaseStore>(open: fn(&Config) -> S, metric: &str) {
    let servers = cluster(&["--enable-v2"]).await;
    let all = config(&servers.iter().collect::<Vec<_>>());
    let (watching, writing) = (open(&all), open(&all));
    // A long poll has just been answered with the first key: the next one is on its way.
    let pause = async || {
        let watched = eventually("a member with a watcher", async || {
            for server in &servers {
                let metrics = server.http("GET", "/metrics", "").await;
                if metrics.lines().any(|line| line == format!("{metric} 1")) {
                    return Some(server);
                }
            }
            None
        });
        watched.await.signal(nix::libc::SIGSTOP);
    };
    is_told_after_a_silence(&watching, &writing, pause).await;
    for server in &servers {
        server.signal(nix::libc::SIGCONT);
    }
}

/// The keepalive would take half a minute. Nobody is told of a trouble, as there is none.
async fn a_half_open_watch_is_left_when_the_address_changes<S: LeaseStore>(open: fn(&Config) -> S) {
    let server = etcd(&["--enable-v2"]).await;
    let proxy = Proxy::to(&server).await;
    let (store, writing) = (open(&proxy.config()), open(&server.config()));
    let mut watching = Watching::from(&store, store.list().await.unwrap().next);
    for number in 1..4 {
        held(writing.create(subnet(number), &attrs(number), DAY).await.unwrap());
        // What came last may come again.
        loop {
            match watching.next().await {
                Update::Events(events) if events.iter().any(|event| is_put(event, number)) => break,
                Update::Events(_) => {}
                other => panic!("{other:?}"),
            }
        }
        proxy.freeze();
        store.reconnect();
        store.list().await.unwrap();
    }
}

#[tokio::test]
async fn a_changed_address_is_followed_by_calls_and_watches() {
    tokio::join!(
        a_half_open_watch_is_left_when_the_address_changes(v3),
        a_half_open_watch_is_left_when_the_address_changes(v2),
    );
}

/// The time is that of the keepalive (v3) and of a long poll (v2): spent once for all.
#[tokio::test]
async fn a_watch_on_which_nothing_can_come_any_more_is_opened_anew() {
    tokio::join!(
        a_half_open_watch_is_given_up(v3),
        a_half_open_watch_is_given_up(v2),
        a_paused_member_is_left(v3, "etcd_debugging_mvcc_watcher_total"),
        a_paused_member_is_left(v2, "etcd_debugging_store_watchers"),
    );
}
