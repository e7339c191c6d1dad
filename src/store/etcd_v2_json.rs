//! The JSON of etcd's v2 API: nodes, events and errors, and what they are as records.

use serde::Deserialize;

use super::key_value::Grant;
use super::{Event, Record, Revision};

#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/bodies/etcd_v2_json.rs"]
pub(crate) mod fuzz;

/// A key or a folder.
#[derive(Debug, Deserialize)]
pub(super) struct Node {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    dir: bool,
    #[serde(default)]
    nodes: Vec<Node>,
    /// When it expires, by the server's clock; absent if never.
    expiration: Option<String>,
    #[serde(default, rename = "modifiedIndex")]
    pub(super) modified: Revision,
    #[serde(default, rename = "createdIndex")]
    created: Revision,
}

/// An answer to a read or write.
#[derive(Debug)]
pub(super) enum Reply {
    Node(Node),
    Error {
        code: ErrorCode,
        text: String,
        /// The store's index at that time.
        index: Revision,
    },
}

/// A finished long poll.
#[derive(Debug, Deserialize)]
pub(super) struct RawEvent {
    action: String,
    pub(super) node: Node,
}

/// The error codes that mean something to us (`Documentation/v2/errorcode.md` of etcd).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorCode {
    /// 100, key not found.
    Missing,
    /// 101, compare failed.
    Compare,
    /// 105, key already exists.
    Exists,
    /// 401, the event in the requested index is outdated and cleared.
    Cleared,
    Other,
}

#[derive(Deserialize)]
struct Whole {
    node: Option<Node>,
    #[serde(rename = "errorCode")]
    code: Option<u32>,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
    #[serde(default)]
    index: Revision,
}

/// Reads an answer.
pub(super) fn reply(body: &[u8]) -> Result<Reply, String> {
    let whole: Whole = serde_json::from_slice(body).map_err(|_| not_json(body))?;
    match (whole.code, whole.node) {
        (Some(code), _) => {
            let code = match code {
                100 => ErrorCode::Missing,
                101 => ErrorCode::Compare,
                105 => ErrorCode::Exists,
                401 => ErrorCode::Cleared,
                _ => ErrorCode::Other,
            };
            let text = [whole.message, whole.cause].map(|part| part.trim().to_owned()).join(": ");
            Ok(Reply::Error { code, text: text.trim_matches([':', ' ']).to_owned(), index: whole.index })
        }
        (None, Some(node)) => Ok(Reply::Node(node)),
        (None, None) => Err(not_json(body)),
    }
}

/// Reads a finished long poll: an event, or an error of the store.
pub(super) fn poll(body: &[u8]) -> Result<Result<RawEvent, Reply>, String> {
    match serde_json::from_slice::<RawEvent>(body) {
        Ok(event) => Ok(Ok(event)),
        Err(_) => reply(body).map(Err),
    }
}

/// What is said of an etcd that has no v2 store, or has it switched off.
pub(super) const NOT_SERVED: &str = "it does not serve the v2 API (etcd needs --enable-v2, and 3.6 has none)";

/// What an etcd without v2 and servers that are no etcd answer.
fn not_json(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let start: String = text.trim().chars().take(80).collect();
    match start.as_str() {
        "404 page not found" => NOT_SERVED.to_owned(),
        "Client sent an HTTP request to an HTTPS server." => {
            "it speaks TLS: use https:// in etcd-endpoints".to_owned()
        }
        _ => format!("not an answer of the v2 API: {start:?}"),
    }
}

fn name_below(key: &str, folder: Option<&str>) -> Option<String> {
    let name = match folder {
        Some(folder) => key.strip_prefix(folder)?,
        None => key.rsplit('/').next()?,
    };
    Some(name.to_owned())
}

/// A key as a record, named by what follows `folder` or by its last part.
pub(super) fn record(node: Node, folder: Option<&str>) -> Option<Record> {
    let name = name_below(&node.key, folder).filter(|_| !node.dir)?;
    Some(Record {
        name,
        value: node.value.into_bytes(),
        created: node.created,
        modified: node.modified,
        lease: node.expiration.map(|_| Grant::NO_ID),
    })
}

/// All keys below a folder, at any depth.
pub(super) fn records(root: Node, folder: &str) -> Vec<Record> {
    let (mut open, mut found) = (vec![root], Vec::new());
    while let Some(mut node) = open.pop() {
        open.append(&mut node.nodes);
        found.extend(record(node, Some(folder)));
    }
    found
}

/// An event as it concerns leases. Folders are none of our concern.
pub(super) fn event(raw: RawEvent, folder: &str) -> Option<Event> {
    match raw.action.as_str() {
        "delete" | "expire" | "compareAndDelete" => {
            Some(Event::Delete(name_below(&raw.node.key, Some(folder))?, raw.node.modified))
        }
        _ => record(raw.node, Some(folder)).map(Event::Put),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_flattened_and_tells_reservations_from_leases() {
        let body = br#"{"action":"get","node":{"key":"/n/subnets","dir":true,"nodes":[
            {"key":"/n/subnets/a","value":"1","expiration":"2026-01-01T00:00:00Z","ttl":9,"modifiedIndex":7,"createdIndex":5},
            {"key":"/n/subnets/d","dir":true,"nodes":[{"key":"/n/subnets/d/b","value":"2","modifiedIndex":8,"createdIndex":8}]}],
            "modifiedIndex":5,"createdIndex":5}}"#;
        let Reply::Node(node) = reply(body).unwrap() else { panic!() };
        let mut found = records(node, "/n/subnets/");
        found.sort_by_key(|record| record.modified);
        let found: Vec<_> =
            found.iter().map(|record| (record.name.as_str(), record.modified, record.lease)).collect();
        assert_eq!(found, [("a", 7, Some(Grant::NO_ID)), ("d/b", 8, None)]);
    }

    #[test]
    fn events_delete_or_put() {
        let read = |action: &str| {
            let body =
                format!(r#"{{"action":"{action}","node":{{"key":"/n/subnets/a","modifiedIndex":9}}}}"#);
            event(poll(body.as_bytes()).unwrap().unwrap(), "/n/subnets/")
        };
        for action in ["delete", "expire", "compareAndDelete"] {
            assert_eq!(read(action), Some(Event::Delete("a".to_owned(), 9)), "{action}");
        }
        for action in ["set", "create", "update", "compareAndSwap"] {
            assert!(matches!(read(action), Some(Event::Put(_))), "{action}");
        }
    }

    #[test]
    fn errors_keep_the_stores_words() {
        let body = br#"{"errorCode":100,"message":"Key not found","cause":"/n","index":42}"#;
        let Reply::Error { code, text, index } = reply(body).unwrap() else { panic!() };
        assert_eq!((code, text.as_str(), index), (ErrorCode::Missing, "Key not found: /n", 42));
        assert!(reply(b"404 page not found\n").unwrap_err().contains("--enable-v2"));
    }
}
