//! etcd's v2 store as operators and Go flannel up to v0.16 use it: JSON over HTTP.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::etcd::{Etcd, KeyValue};
use crate::http;

/// Where every member listens for its own node, without TLS.
const LOOPBACK: &str = "127.0.0.1:2379";
/// A key's `lease` in the v2 store, where keys carry their time to live themselves, if it has one.
pub const EXPIRES: i64 = 1;

/// The v2 store of a cluster that was started with `--enable-v2`.
#[derive(Debug, Clone, Copy)]
pub struct V2<'a>(pub(crate) &'a Etcd);

impl V2<'_> {
    /// One request below `/v2/keys`, to the first member that answers: the status and the answer.
    ///
    /// # Errors
    /// When no member answers.
    pub fn request(&self, method: &str, target: &str, form: &str) -> Result<(u16, Value)> {
        let address = LOOPBACK.parse().context("an address")?;
        let path = format!("/v2/keys{target}");
        let mut last = None;
        for node in self.0.nodes() {
            match node.in_network(|| http::request(address, method, &path, form)) {
                Ok((status, body)) => {
                    let answer = serde_json::from_str(&body);
                    return Ok((status, answer.with_context(|| format!("{method} {path}: {body}"))?));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no etcd member")?)
    }

    fn accepted(&self, method: &str, target: &str, form: &str) -> Result<Value> {
        let (status, answer) = self.request(method, target, form)?;
        ensure!((200..300).contains(&status), "{method} {target}: {status} {answer}");
        Ok(answer)
    }

    /// Writes a key, to live for `ttl` or for ever.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn put(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<()> {
        let ttl = ttl.map(|ttl| format!("&ttl={}", ttl.as_secs())).unwrap_or_default();
        self.accepted("PUT", key, &format!("value={}{ttl}", encode(value))).map(drop)
    }

    /// Deletes a key. `query` may hold a condition (`?prevIndex=7`), which Go flannel does not understand.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn delete(&self, key: &str, query: &str) -> Result<()> {
        self.accepted("DELETE", &format!("{key}{query}"), "").map(drop)
    }

    /// One key.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, key: &str) -> Result<KeyValue> {
        let answer = self.accepted("GET", &format!("{key}?quorum=true"), "")?;
        key_value(answer.get("node").context("an answer without a node")?)
    }

    /// All keys below a folder; none if there is no such folder.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn list(&self, folder: &str) -> Result<Vec<KeyValue>> {
        let target = format!("{}?quorum=true&recursive=true&sorted=true", folder.trim_end_matches('/'));
        let (status, answer) = self.request("GET", &target, "")?;
        if status == 404 {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        collect(answer.get("node").context("an answer without a node")?, &mut found)?;
        Ok(found)
    }

    /// Remaining seconds of a key.
    ///
    /// # Errors
    /// When it is gone or never expires.
    pub fn time_to_live(&self, key: &str) -> Result<i64> {
        let answer = self.accepted("GET", &format!("{key}?quorum=true"), "")?;
        answer.pointer("/node/ttl").and_then(Value::as_i64).with_context(|| format!("{key} has no ttl"))
    }
}

fn collect(node: &Value, found: &mut Vec<KeyValue>) -> Result<()> {
    if node.get("dir").is_none() {
        found.push(key_value(node)?);
    }
    let below = node.get("nodes").and_then(Value::as_array);
    below.into_iter().flatten().try_for_each(|node| collect(node, found))
}

fn key_value(node: &Value) -> Result<KeyValue> {
    let text = |name: &str| {
        let text = node.get(name).and_then(Value::as_str);
        text.map(str::to_owned).with_context(|| format!("no {name} in {node}"))
    };
    let number = |name: &str| node.get(name).and_then(Value::as_i64).unwrap_or(0);
    Ok(KeyValue {
        key: text("key")?,
        value: text("value")?,
        mod_revision: number("modifiedIndex"),
        create_revision: number("createdIndex"),
        lease: node.get("expiration").map_or(0, |_| EXPIRES),
    })
}

/// Percent-encodes everything but letters and digits.
fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_at_any_depth_and_folders_are_not_keys() {
        let answer = serde_json::json!({"key": "/a", "dir": true, "nodes": [
            {"key": "/a/b", "value": "x", "modifiedIndex": 3, "createdIndex": 2, "expiration": "2026-01-01T00:00:00Z"},
            {"key": "/a/c", "dir": true, "nodes": [{"key": "/a/c/d", "value": "y"}]}]});
        let mut found = Vec::new();
        collect(&answer, &mut found).unwrap();
        let found: Vec<_> = found.iter().map(|key| (key.key.as_str(), key.mod_revision, key.lease)).collect();
        assert_eq!(found, [("/a/b", 3, EXPIRES), ("/a/c/d", 0, 0)]);
    }

    #[test]
    fn values_are_percent_encoded() {
        assert_eq!(encode(r#"{"a b"}"#), "%7B%22a%20b%22%7D");
    }
}
