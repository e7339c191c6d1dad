//! Recorded netlink messages for tests: the requests of the Go daemon, the notifications and answers of the kernel.

use serde_json::Value;

/// A request of the Go daemon, by the command that would do the same. Its sequence number is set to 0.
pub(super) fn go(name: &str) -> Vec<u8> {
    let fixture = include_str!("../../tests/fixtures/netlink/go.json");
    let mut found = messages(fixture, "name", name).into_iter();
    let mut bytes = found.next().unwrap();
    bytes[8..12].fill(0);
    bytes
}

/// What the kernel sent when `command` was run.
pub(super) fn kernel(command: &str) -> Vec<Vec<u8>> {
    messages(include_str!("../../tests/fixtures/netlink/kernel.json"), "command", command)
}

fn messages(fixture: &str, key: &str, wanted: &str) -> Vec<Vec<u8>> {
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    let messages = fixture["messages"].as_array().unwrap().iter();
    let found: Vec<Vec<u8>> = messages.filter(|message| message[key] == wanted).map(bytes).collect();
    assert!(!found.is_empty(), "{wanted:?} is not recorded");
    found
}

fn bytes(message: &Value) -> Vec<u8> {
    let hex = message["hex"].as_str().unwrap().as_bytes();
    hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
