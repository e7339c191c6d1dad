//! Which API is chosen, and the reason given, against a real etcd that holds both stores.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod store_support;

use flanneld::model::two_stores::Origin;
use flanneld::model::{LeaseAttrs, NodeId};
use flanneld::store::{Api, Candidates, Choice, LeaseStore, Ourselves, Store, StoreError};
use store_support::{PREFIX, Server, attrs, etcd, key, with_login};

const CONFIG: &str = "{}";

async fn in_v2(server: &Server, key: &str, form: &str) {
    let answer = server.v2("PUT", key, form).await;
    assert!(answer.contains("\"node\""), "{answer}");
}

async fn in_v3(server: &Server, key: &str, value: &str) {
    server.client().await.put(key, value, None).await.unwrap();
}

fn machine() -> NodeId {
    NodeId::from_machine_id("us")
}

fn config_key() -> String {
    format!("{PREFIX}/config")
}

/// `v2: reason`, `v3: reason`, `both: reason` or `none: text`.
async fn chosen(server: &Server, api: Api) -> Result<String, StoreError> {
    let candidates = Candidates::new(&server.config(), api).unwrap();
    let own = Ourselves { public_ip: Some([10, 0, 0, 1].into()), node_id: Some(machine()) };
    Ok(match candidates.choose(own).await? {
        Choice::Chosen(store @ Store::V2(_), reason) => {
            store.list().await?;
            format!("v2: {reason}")
        }
        Choice::Chosen(store @ Store::V3(_), reason) => {
            store.list().await?;
            format!("v3: {reason}")
        }
        Choice::Chosen(store @ Store::Both(_), reason) => {
            store.list().await?;
            format!("both: {reason}")
        }
        Choice::Missing(text) => format!("none: {text}"),
    })
}

#[tokio::test]
async fn auto_takes_the_store_that_holds_the_config() {
    let server = etcd(&["--enable-v2"]).await;
    let auto = async || chosen(&server, Api::Auto).await.unwrap();
    assert_eq!(auto().await, format!("none: {PREFIX}/config exists neither in the v3 nor in the v2 store"));
    in_v2(&server, &config_key(), "value={}").await;
    assert_eq!(auto().await, format!("v2: {PREFIX}/config exists only in the v2 store"));
    in_v3(&server, &config_key(), CONFIG).await;
    let alone =
        format!("v3: {PREFIX}/config exists in both stores, and in v2 no other node holds a live lease");
    assert_eq!(auto().await, alone);
    // Our own lease does not keep v2 alive, whichever address it has, nor does a reservation that v3 knows.
    let value = |number| attrs(number).to_json();
    let readdressed = LeaseAttrs { node_id: Some(machine()), ..attrs(9) };
    in_v2(&server, &key(1), &format!("value={}&ttl=1000", value(1))).await;
    in_v2(&server, &key(9), &format!("value={}&ttl=1000", readdressed.to_json())).await;
    in_v2(&server, &key(2), &format!("value={}", value(2))).await;
    in_v3(&server, &key(2), &value(2)).await;
    assert_eq!(auto().await, alone);
    let another = |who| {
        format!(
            "both: {PREFIX}/config exists in both stores, and in v2 {who}: v2 decides. Our lease is kept in v3 as well, for the nodes \
             that have moved there"
        )
    };
    in_v2(&server, &key(4), &format!("value={}", value(4))).await;
    assert_eq!(
        auto().await,
        another("another node (10.0.0.4) holds a live lease"),
        "a reservation that v3 lacks"
    );
    in_v2(&server, &key(3), &format!("value={}&ttl=1000", value(3))).await;
    assert_eq!(auto().await, another("another node (10.0.0.3) holds a live lease"));
    server.v2("DELETE", &config_key(), "").await;
    assert_eq!(auto().await, format!("v3: {PREFIX}/config exists only in the v3 store"));
}

#[tokio::test]
async fn auto_works_where_v2_is_not_served() {
    let server = etcd(&[]).await;
    let auto = async || chosen(&server, Api::Auto).await.unwrap();
    assert!(auto().await.starts_with("none: "));
    in_v3(&server, &config_key(), CONFIG).await;
    assert_eq!(auto().await, format!("v3: {PREFIX}/config exists only in the v3 store"));
    let error = chosen(&server, Api::V2).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "etcd refused to list {PREFIX}/subnets/: it does not serve the v2 API (etcd needs --enable-v2, and 3.6 has none)"
        )
    );
}

/// Users of v3 do not exist in v2, and the other way round.
#[tokio::test]
async fn a_store_that_refuses_us_is_named_and_is_no_store_without_a_config() {
    let server = etcd(&["--enable-v2"]).await;
    with_login(&server).await;
    let refused = chosen(&server, Api::Auto).await.unwrap_err().to_string();
    assert!(refused.starts_with(&format!("etcd refused to read {PREFIX}/config: ")), "{refused}");
    in_v2(&server, &config_key(), "value={}").await;
    let v2 = chosen(&server, Api::Auto).await.unwrap();
    let words =
        format!("v2: {PREFIX}/config exists in the v2 store, and the v3 store is closed to us: {refused}");
    assert_eq!(v2, words);
}

#[tokio::test]
async fn an_api_that_was_told_is_not_questioned() {
    let server = etcd(&["--enable-v2"]).await;
    for api in ["v2", "v3", "both"] {
        let told = chosen(&server, api.parse().unwrap()).await.unwrap();
        assert_eq!(told, format!("{api}: etcd-api={api}"));
        // Where a missing network config has to be written.
        let expected = if api == "v3" { Origin::V3 } else { Origin::V2 };
        assert_eq!(told_store(&server, api.parse().unwrap()).await.decides(), expected);
    }
}

#[tokio::test]
async fn nothing_is_chosen_while_no_server_answers() {
    let mut server = etcd(&["--enable-v2"]).await;
    in_v3(&server, &config_key(), CONFIG).await;
    server.kill();
    let error = chosen(&server, Api::Auto).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
}

async fn seed(server: &Server, api: Api, config: &str) -> Option<&'static str> {
    Candidates::new(&server.config(), api).unwrap().seed(config).await.unwrap()
}

async fn told_store(server: &Server, api: Api) -> Store {
    let candidates = Candidates::new(&server.config(), api).unwrap();
    match candidates.choose(Ourselves::default()).await.unwrap() {
        Choice::Chosen(store, _) => store,
        Choice::Missing(_) => panic!("{api} was told"),
    }
}

async fn config_in(server: &Server, api: Api) -> Option<String> {
    let store = told_store(server, api).await;
    store.network_config().await.unwrap().map(|value| String::from_utf8(value).unwrap())
}

#[tokio::test]
async fn a_seed_is_written_where_it_belongs_and_never_over_another() {
    for (api, written, in_v2, in_v3) in [
        (Api::Auto, "v3", None, Some("first")),
        (Api::V3, "v3", None, Some("first")),
        (Api::V2, "v2", Some("first"), None),
        (Api::Both, "both", Some("first"), Some("first")),
    ] {
        let server = etcd(&["--enable-v2"]).await;
        assert_eq!(seed(&server, api, "first").await, Some(written), "{api}");
        assert_eq!(seed(&server, api, "second").await, None, "{api}");
        assert_eq!(config_in(&server, Api::V2).await.as_deref(), in_v2, "{api}");
        assert_eq!(config_in(&server, Api::V3).await.as_deref(), in_v3, "{api}");
        // What stands in the other store counts where both are looked at.
        for api in [Api::Auto, Api::Both] {
            assert_eq!(seed(&server, api, "third").await, None, "{api}");
        }
    }
    let server = etcd(&[]).await;
    assert_eq!(seed(&server, Api::Auto, "first").await, Some("v3"), "v2 is not served");
}

#[test]
fn an_unknown_api_is_named() {
    assert_eq!("v4".parse::<Api>().unwrap_err(), "\"v4\" is no etcd API (expected auto, v2, v3 or both)");
    assert_eq!("auto".parse::<Api>().unwrap().to_string(), "auto");
}
