//! The outer shape of netlink: messages in a datagram, attributes in a message, errors and their texts.
//!
//! Knows nothing of links or routes. Never panics, whatever the bytes are.
//!
//! Attributes are walked one by one instead of through the message types of `netlink-packet-route`, because those refuse a
//! whole message over one attribute of an unexpected shape: a link nobody asked about must not make a dump unreadable.

use std::net::Ipv4Addr;

use super::refusal::Refusal;
use crate::model::MacAddr;
use netlink_packet_core::{NLM_F_ACK_TLVS, NLMSG_ERROR, NetlinkBuffer, NlaBuffer, NlasIterator};

/// Size of `nlmsghdr` (`linux/netlink.h`).
const HEADER: usize = 16;

/// Size of the negative errno in front of `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR_CODE: usize = 4;

/// `NLMSGERR_ATTR_MSG` (`linux/netlink.h`): the extended acknowledgement's text.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The socket whose request this answers or tells about; 0: the kernel does not say.
    pub(super) port: u32,
    pub(super) payload: &'a [u8],
}

/// Bytes that are no netlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The messages of one datagram. After a malformed one nothing follows.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut datagram);
        let Ok(buffer) = NetlinkBuffer::new_checked(rest) else { return Some(Err(Malformed)) };
        let length = usize::try_from(buffer.length()).unwrap_or(usize::MAX);
        datagram = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let message = rest.get(HEADER..length).map(|payload| Message {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            sequence: buffer.sequence_number(),
            port: buffer.port_number(),
            payload,
        });
        Some(message.ok_or(Malformed))
    })
}

impl Message<'_> {
    /// What `NLMSG_ERROR` and `NLMSG_DONE` report: nothing, or a refusal with the kernel's text.
    pub(super) fn outcome(&self) -> Result<(), Refusal> {
        let code = self.payload.first_chunk::<ERROR_CODE>().map_or(0, |code| i32::from_ne_bytes(*code));
        match code {
            0 => Ok(()),
            _ => Err(Refusal { errno: code.saturating_neg(), words: self.extended_text() }),
        }
    }

    /// The TLVs stand behind the error code and, in `NLMSG_ERROR`, the header of the request (`NETLINK_CAP_ACK`
    /// leaves out its body).
    fn extended_text(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let start = if self.kind == NLMSG_ERROR { ERROR_CODE + HEADER } else { ERROR_CODE };
        let text = attributes(self.payload, start).find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
        let text = text.value().split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// The attributes behind a fixed header of `header` bytes, up to the first malformed one.
pub(super) fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(payload.get(header..).unwrap_or_default()).map_while(Result::ok)
}

/// An attribute value that is a number in host order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// An attribute value that is an IPv4 address.
pub(super) fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

/// An attribute value that is an Ethernet address.
pub(super) fn mac(value: &[u8]) -> Option<MacAddr> {
    value.try_into().ok().map(MacAddr::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::recorded::kernel;
    use proptest::prelude::*;

    /// Recorded with the device down.
    fn refused() -> Vec<u8> {
        let command = "ip route replace 10.200.54.0/24 via 10.200.54.0 dev flannel.1 onlink (device down)";
        kernel(command).concat()
    }

    #[test]
    fn the_text_behind_an_error_is_found() {
        let bytes = refused();
        let message = messages(&bytes).next().unwrap().unwrap();
        assert_eq!(message.sequence, 11);
        let words = Some("Nexthop device is not up".to_owned());
        assert_eq!(message.outcome(), Err(Refusal { errno: nix::libc::ENETDOWN, words }));
    }

    #[test]
    fn several_messages_in_a_datagram_are_told_apart() {
        let mut bytes = refused();
        bytes.extend(refused());
        assert_eq!(messages(&bytes).filter(Result::is_ok).count(), 2);
        bytes.truncate(100);
        let found: Vec<bool> = messages(&bytes).map(|message| message.is_ok()).collect();
        assert_eq!(found, [true, false]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), header in 0_usize..30) {
            for message in messages(&bytes).flatten() {
                let _ = message.outcome();
                let _ = attributes(message.payload, header).count();
            }
            let _ = attributes(&bytes, header).count();
        }
    }
}
