//! What a node's kernel holds, as `ip -j` and `bridge -j` show it, and what it should hold for a set of leases.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::lease::Lease;
use crate::node::Node;

/// The routes, permanent neighbours and FDB entries of an overlay device, each list sorted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerState {
    /// `ip -d -j -4 route show dev DEV`
    pub routes: Vec<Value>,
    /// `ip -j neigh show dev DEV nud permanent`
    pub neighbours: Vec<Value>,
    /// `bridge -j fdb show dev DEV`
    pub fdb: Vec<Value>,
}

impl PeerState {
    /// Reads the kernel of a node.
    ///
    /// # Errors
    /// When the device does not exist.
    pub fn observe(node: &Node, device: &str) -> Result<Self> {
        Ok(Self {
            routes: sorted(&node.json(&format!("ip -d -j -4 route show dev {device}"))?),
            neighbours: sorted(&node.json(&format!("ip -j neigh show dev {device} nud permanent"))?),
            fdb: sorted(&node.json(&format!("bridge -j fdb show dev {device}"))?),
        })
    }

    /// What contract section 11.4 demands for these peers, and nothing else: three entries each.
    #[must_use]
    pub fn expected<'a>(peers: impl IntoIterator<Item = &'a Lease>) -> Self {
        let mut state = Self::default();
        for peer in peers {
            let (gateway, mac) = (peer.network().to_string(), &peer.vtep_mac);
            state.routes.push(json!({
                "type": "unicast", "dst": peer.subnet, "gateway": gateway, "protocol": "boot",
                "scope": "global", "flags": ["onlink"],
            }));
            state.neighbours.push(json!({ "dst": gateway, "lladdr": mac, "state": ["PERMANENT"] }));
            state.fdb.push(json!({
                "mac": mac, "dst": peer.public_ip, "flags": ["self"], "state": "permanent",
            }));
        }
        for list in [&mut state.routes, &mut state.neighbours, &mut state.fdb] {
            list.sort_by_key(Value::to_string);
        }
        state
    }

    /// Fails with both sides when the node's device does not hold exactly this.
    ///
    /// # Errors
    /// When it differs or cannot be read.
    pub fn ensure_on(&self, node: &Node, device: &str) -> Result<()> {
        let found = Self::observe(node, device)?;
        let differences: Vec<String> = [
            difference("route", &found.routes, &self.routes),
            difference("neighbour", &found.neighbours, &self.neighbours),
            difference("FDB entry", &found.fdb, &self.fdb),
        ]
        .concat();
        ensure!(differences.is_empty(), "{device} on {}:\n{}", node.name(), differences.join("\n"));
        Ok(())
    }
}

/// What is too much and what is missing in `found`, a line each.
#[must_use]
pub fn difference(kind: &str, found: &[Value], expected: &[Value]) -> Vec<String> {
    // As texts in sets: thousands of entries are compared again and again.
    let texts =
        |entries: &[Value]| entries.iter().map(|entry| canonical(entry).to_string()).collect::<BTreeSet<_>>();
    let (present, wanted) = (texts(found), texts(expected));
    let extra = present.difference(&wanted).map(|entry| format!("  {kind} too much: {entry}"));
    let missing = wanted.difference(&present).map(|entry| format!("  {kind} missing: {entry}"));
    let mut lines: Vec<String> = extra.chain(missing).collect();
    if lines.is_empty() && found.len() != expected.len() {
        lines.push(format!("  {} entries of kind {kind} instead of {}", found.len(), expected.len()));
    }
    lines
}

/// The same with the keys of every object in alphabetical order: as the workspace is built, objects keep the order in which
/// they were read, which means nothing.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Array(elements) => elements.iter().map(canonical).collect(),
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> =
                fields.iter().map(|(key, value)| (key.clone(), canonical(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        other => other.clone(),
    }
}

/// The elements of a JSON list in an order of their own.
#[must_use]
pub fn sorted(list: &Value) -> Vec<Value> {
    let mut elements = list.as_array().cloned().unwrap_or_default();
    elements.sort_by_key(Value::to_string);
    elements
}

/// One link: `ip -d -j link show DEV`.
///
/// # Errors
/// When it does not exist.
pub fn link(node: &Node, device: &str) -> Result<Value> {
    let links = node.json(&format!("ip -d -j link show {device}"))?;
    links.get(0).cloned().with_context(|| format!("{}: no link {device}", node.name()))
}

/// The MAC of a link.
///
/// # Errors
/// When it does not exist.
pub fn mac(node: &Node, device: &str) -> Result<String> {
    let link = link(node, device)?;
    let mac = link.get("address").and_then(Value::as_str);
    Ok(mac.with_context(|| format!("{device} has no MAC"))?.to_owned())
}

/// The IPv4 addresses of a link: the `addr_info` of `ip -j -4 address show dev DEV`.
///
/// # Errors
/// When it does not exist.
pub fn addresses(node: &Node, device: &str) -> Result<Vec<Value>> {
    let links = node.json(&format!("ip -j -4 address show dev {device}"))?;
    Ok(links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| link.get("addr_info"))
        .flat_map(sorted)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_keys_is_no_difference_and_a_value_is_one() {
        let of = |text: &str| vec![serde_json::from_str::<Value>(text).unwrap()];
        let (one, same, other) =
            (of(r#"{"a":[{"x":1,"y":2}]}"#), of(r#"{"a":[{"y":2,"x":1}]}"#), of(r#"{"a":[]}"#));
        assert_eq!(difference("link", &one, &same), Vec::<String>::new());
        assert_eq!(difference("link", &one, &other).len(), 2);
    }
}
