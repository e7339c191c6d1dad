//! What an HTTP server that should be an etcd answers. Whatever it is: an answer with names below the folder that was asked for, or
//! words short enough for a log.

use super::{Reply, event, poll, record, records, reply};
use crate::store::{Event, Record};

const FOLDER: &str = "/coreos.com/network/subnets/";

/// The target.
pub fn check(body: &[u8]) {
    list(body);
    match poll(body) {
        Ok(Ok(raw)) => {
            let (action, index) = (raw.action.clone(), raw.node.modified);
            match event(raw, FOLDER) {
                Some(Event::Delete(name, at)) => {
                    assert!(named(&name, body));
                    assert_eq!(at, index);
                    assert!(["delete", "expire", "compareAndDelete"].contains(&action.as_str()));
                }
                Some(Event::Put(put)) => whole(&put, body),
                _ => {}
            }
        }
        Ok(Err(Reply::Node(_))) => {}
        Ok(Err(Reply::Error { text, .. })) => error(&text, body),
        Err(words) => short(&words),
    }
}

fn list(body: &[u8]) {
    match reply(body) {
        Ok(Reply::Node(root)) => records(root, FOLDER).iter().for_each(|found| whole(found, body)),
        Ok(Reply::Error { text, .. }) => error(&text, body),
        Err(words) => short(&words),
    }
    if let Ok(Reply::Node(node)) = reply(body) {
        record(node, None).iter().for_each(|found| assert!(!found.name.contains('/')));
    }
}

/// Nothing stands in a record that the answer did not say.
fn whole(found: &Record, body: &[u8]) {
    assert!(named(&found.name, body) && found.value.len() <= body.len());
}

/// JSON only shrinks when it is read.
fn named(name: &str, body: &[u8]) -> bool {
    FOLDER.len() + name.len() <= body.len()
}

/// An etcd's own words are passed on trimmed.
fn error(text: &str, body: &[u8]) {
    assert!(text.len() <= body.len() + 2 && text.trim() == text, "{text:?}");
}

fn short(words: &str) {
    assert!(words.len() <= 1024, "{words:?}");
}
