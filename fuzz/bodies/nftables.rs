//! The kernel's messages about tables, chains and rules, most of them other programs'. Whatever the bytes are: one meaning, and the
//! comment by which a rule of ours is recognised is the one we would write.

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::NetfilterMessage;

use super::decode::{self, Subject};
use super::encode::comment_data;
use super::socket::{Notification, messages, notification};

/// The longest comment that we would write.
const LONGEST: usize = 254;

/// The target.
pub fn check(bytes: &[u8]) {
    for bytes in messages(bytes) {
        // Whatever its port is, it is not ours.
        let port = NetlinkBuffer::new_checked(bytes).map_or(0, |message| !message.port_number());
        let subject = match notification(bytes, port) {
            Some(Notification::Change(subject)) => Some(subject),
            _ => None,
        };
        if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) =
            NetlinkMessage::<NetfilterMessage>::deserialize(bytes)
        {
            understood(&message, subject.as_ref(), bytes.len());
        }
    }
    for data in [bytes, bytes.get(20..).unwrap_or_default()] {
        comment(decode::comment(data));
    }
}

/// What a notification is about is read by names alone: the same as in the whole message.
fn understood(message: &NetfilterMessage, subject: Option<&Subject>, length: usize) {
    let family = message.header.family;
    let kinds = [
        decode::table(message).map(|table| (table.family, table.name, None)),
        decode::chain(message).map(|chain| (chain.family, chain.table, Some(chain.name))),
    ];
    for (of, table, chain) in kinds.into_iter().flatten() {
        assert_eq!(of, family);
        assert_eq!(subject, Some(&Subject { family, table, chain }));
    }
    if let Some(rule) = decode::rule(message) {
        assert!(decode::table(message).is_none() && decode::chain(message).is_none());
        assert!(rule.jumps.iter().map(String::len).sum::<usize>() <= 3 * length);
        comment(rule.comment);
    }
}

fn comment(found: Option<String>) {
    let Some(text) = found.filter(|text| text.len() <= LONGEST) else { return };
    assert_eq!(decode::comment(&comment_data(&text)), Some(text));
}
