//! The v2 API on the wire: what is asked for, and what odd answers do (contract section 7).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod store_support;

use std::time::Duration;

use flanneld::store::{Config, Event, LeaseStore, Update};
use store_support::{PREFIX, Proxy, Watching, attrs, etcd, eventually, held, key, name, renewed, subnet, v2};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn requests_are_those_that_go_makes_but_conditional() {
    let server = etcd(&["--enable-v2"]).await;
    let proxy = Proxy::to(&server).await;
    let store = v2(&proxy.config());
    let snapshot = store.list().await.unwrap();
    assert_eq!(store.network_config().await.unwrap(), None);
    let watching = Watching::from(&store, snapshot.next);
    let waiting = format!("waitIndex={}", snapshot.next);
    eventually("the watch is open", async || {
        proxy.requests().iter().any(|(head, _)| head.ends_with(&waiting)).then_some(())
    })
    .await;
    let first = held(store.create(subnet(1), &attrs(1), DAY).await.unwrap());
    let second = renewed(store.renew(&first, DAY).await.unwrap());
    let record = store.list().await.unwrap().records.remove(0);
    let third = held(store.update(subnet(1), &record, &attrs(2), DAY).await.unwrap());
    assert!(store.delete(subnet(1), third.modified).await.unwrap());
    drop(watching);

    let folder = format!("/v2/keys{PREFIX}/subnets");
    let own = format!("/v2/keys{}", key(1));
    let value = |number| store_support::encode(&attrs(number).to_json());
    let expected = [
        (format!("GET {folder}?quorum=true&recursive=true&sorted=false"), String::new()),
        (format!("GET /v2/keys{PREFIX}/config?quorum=true&recursive=false&sorted=false"), String::new()),
        (format!("GET {folder}/-?quorum=true"), String::new()),
        (format!("GET {folder}?recursive=true&wait=true&waitIndex={}", snapshot.next), String::new()),
        // The renewal is no event, so the next one comes after the first.
        (format!("GET {folder}?recursive=true&wait=true&waitIndex={}", first.modified + 1), String::new()),
        (format!("PUT {own}?prevExist=false"), format!("value={}&ttl=86400", value(1))),
        (format!("GET {own}?quorum=true&recursive=false&sorted=false"), String::new()),
        (format!("PUT {own}?refresh=true&prevIndex={}", first.modified), "ttl=86400".to_owned()),
        (format!("PUT {own}?prevIndex={}", second.modified), format!("value={}&ttl=86400", value(2))),
        (format!("PUT {own}?refresh=true&prevIndex={}", third.modified), "ttl=1".to_owned()),
    ];
    let mut asked = proxy.requests();
    // The watch goes on beside the rest, and looks for the expiry repeat.
    for request in &expected {
        let at = asked.iter().position(|asked| asked == request);
        asked.remove(at.unwrap_or_else(|| panic!("not asked: {request:?}\nbut {asked:#?}")));
    }
    for (head, form) in asked {
        assert!(head.starts_with("GET ") && form.is_empty(), "{head} {form}");
    }
}

/// A server that gives each request below `subnets` that waits the next of `polls` and then keeps silent; anything else is
/// answered as by an empty store. Answers are a status line's end, further header lines, and a body.
async fn odd_server(polls: Vec<(&'static str, String)>) -> Config {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let polls = std::sync::Arc::new(std::sync::Mutex::new(polls.into_iter()));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(BufReader::new(stream), polls.clone()));
        }
    });
    Config { endpoints: vec![url], prefix: PREFIX.to_owned(), ..Config::default() }
}

type Polls = std::sync::Arc<std::sync::Mutex<std::vec::IntoIter<(&'static str, String)>>>;

async fn serve(mut stream: BufReader<tokio::net::TcpStream>, polls: Polls) {
    loop {
        let (mut request, mut line) = (String::new(), String::new());
        while stream.read_line(&mut line).await.is_ok_and(|count| count > 2) {
            request.push_str(&std::mem::take(&mut line));
        }
        if request.is_empty() {
            return;
        }
        let missing = r#"{"errorCode":100,"message":"Key not found","cause":"/x","index":7}"#;
        let answer = match request.contains("wait=true") {
            false => ("404 Not Found", missing.to_owned()),
            true => match polls.lock().unwrap().next() {
                Some(answer) => answer,
                None => {
                    // A poll in which nothing happens: the head comes at once, the body never.
                    ("200 OK", "never".to_owned())
                }
            },
        };
        let silent = answer.1 == "never";
        let length = if silent { 1000 } else { answer.1.len() };
        let head = format!("HTTP/1.1 {}\r\nX-Etcd-Index: 100\r\nContent-Length: {length}\r\n\r\n", answer.0);
        let body = if silent { "" } else { &answer.1 };
        if stream.write_all(format!("{head}{body}").as_bytes()).await.is_err() {
            return;
        }
        if silent {
            let _ = stream.read_u8().await;
            return;
        }
    }
}

fn put(number: u8, index: u64) -> String {
    let key = key(number);
    format!(
        r#"{{"action":"set","node":{{"key":"{key}","value":"x","modifiedIndex":{index},"createdIndex":{index}}}}}"#
    )
}

async fn next_put(watching: &mut Watching) -> String {
    match watching.next().await {
        Update::Events(events) => match &events[..] {
            [Event::Put(record)] => record.name.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_empty_answer_to_a_poll_is_asked_again() {
    let ok = "200 OK";
    let config = odd_server(vec![(ok, String::new()), (ok, "\n".to_owned()), (ok, put(1, 8))]).await;
    let mut watching = Watching::from(&v2(&config), 8);
    assert_eq!(next_put(&mut watching).await, name(1), "and it is no failure of the watch");
}

#[tokio::test]
async fn an_event_of_an_unknown_action_or_a_folder_is_no_failure() {
    let key = key(1);
    let unknown = put(1, 8).replace("\"set\"", "\"touched\"");
    let folder = format!(r#"{{"action":"set","node":{{"key":"{key}/x","dir":true,"modifiedIndex":9}}}}"#);
    let config = odd_server(vec![("200 OK", unknown), ("200 OK", folder), ("200 OK", put(2, 10))]).await;
    let mut watching = Watching::from(&v2(&config), 8);
    assert_eq!(next_put(&mut watching).await, name(1));
    assert_eq!(next_put(&mut watching).await, name(2));
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_reported_and_asked_again() {
    for (status, body, words) in [
        (
            "200 OK",
            "<html>a proxy's page</html>",
            "the watch broke: not an answer of the v2 API: \"<html>a proxy's page</html>\"",
        ),
        ("200 OK", "{\"action\":", "the watch broke: not an answer of the v2 API: \"{\\\"action\\\":\""),
    ] {
        let config = odd_server(vec![(status, body.to_owned()), ("200 OK", put(1, 8))]).await;
        let mut watching = Watching::from(&v2(&config), 8);
        let Update::Down(error) = watching.next().await else { panic!("not down") };
        assert_eq!(error.to_string(), format!("no etcd endpoint answers: {words}"));
        assert_eq!(watching.next().await, Update::Up);
        assert_eq!(next_put(&mut watching).await, name(1));
    }
}

/// A server with one answer to everything.
async fn stubborn_server(answer: &'static str) -> Config {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Config { endpoints: vec![url], prefix: PREFIX.to_owned(), ..Config::default() }
}

#[tokio::test]
async fn answers_of_servers_that_are_no_etcd_are_named() {
    for (answer, words) in [
        (
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
            "it redirects to http://elsewhere/, which is not followed: name that server in etcd-endpoints",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n404 page not found\n",
            "it does not serve the v2 API (etcd needs --enable-v2, and 3.6 has none)",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nHello world",
            "not an answer of the v2 API: \"Hello world\"",
        ),
    ] {
        let error = v2(&stubborn_server(answer).await).list().await.unwrap_err();
        assert_eq!(error.to_string(), format!("etcd refused to list {PREFIX}/subnets/: {words}"));
    }
}

#[tokio::test]
async fn a_member_that_answers_5xx_costs_no_call() {
    let busy = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
    let raft = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 63\r\n\r\n\
                {\"errorCode\":300,\"message\":\"Raft Internal Error\",\"index\":12345}";
    let server = etcd(&["--enable-v2"]).await;
    for answer in [busy, raft] {
        for _ in 0..4 {
            let mut config = stubborn_server(answer).await;
            config.endpoints.push(server.url.clone());
            v2(&config).list().await.unwrap();
        }
    }
    let error = v2(&stubborn_server(raft).await).list().await.unwrap_err().to_string();
    assert!(
        error.starts_with("no etcd endpoint answers: ") && error.ends_with(": Raft Internal Error"),
        "{error}"
    );
}

#[tokio::test]
async fn a_list_of_many_megabytes_is_one_answer() {
    let server = etcd(&["--enable-v2"]).await;
    let value = "x".repeat(1_000_000);
    for number in 0..6 {
        server.v2("PUT", &key(number), &format!("value={value}")).await;
    }
    let records = v2(&server.config()).list().await.unwrap().records;
    assert_eq!(records.iter().map(|record| record.value.len()).collect::<Vec<_>>(), [value.len(); 6]);
}
