//! The kernel's messages about tables, chains and rules, most of them other programs'. Whatever the bytes are: one meaning, and the
//! comment by which a rule of ours is recognised is the one we would write.

use netlink_packet_core::NetlinkBuffer;

use super::decode::{self, Dumped, Subject};
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
        if let Ok(message) = NetlinkBuffer::new_checked(bytes) {
            let dumped = Dumped::new(message.message_type(), message.payload());
            understood(&dumped, subject.as_ref(), bytes.len());
        }
    }
    for data in [bytes, bytes.get(20..).unwrap_or_default()] {
        comment(decode::comment(data));
    }
}

/// What a notification is about is read by names alone: the same as in the whole message.
fn understood(message: &Dumped, subject: Option<&Subject>, length: usize) {
    let named = [
        message.table().map(|table| Subject { family: table.family, table: table.name, chain: None }),
        message.chain().map(|chain| Subject {
            family: chain.family,
            table: chain.table,
            chain: Some(chain.name),
        }),
    ];
    assert!(named.iter().flatten().all(|of| subject == Some(of)));
    if let Ok(Some(rule)) = message.rule() {
        assert!(named.iter().all(Option::is_none));
        assert!(rule.jumps.iter().map(String::len).sum::<usize>() <= 3 * length);
        comment(rule.comment);
    }
}

fn comment(found: Option<String>) {
    let Some(text) = found.filter(|text| text.len() <= LONGEST) else { return };
    assert_eq!(decode::comment(&comment_data(&text)), Some(text));
}
