//! What the kernel says about tables, chains and rules, cut down to what decisions need. Every length is checked: other programs make
//! most of it.

use netlink_packet_core::{DecodeError, NLA_HEADER_SIZE, NlasIterator};
use nix::libc;

use super::attributes::*;
use super::family::Family;

/// Size of `nfgenmsg`, whose first byte is the family.
const NFGENMSG: usize = 4;

/// Expressions that every packet passes, or that end its way.
const UNCONDITIONAL: [&str; 5] = ["counter", "immediate", "log", "reject", "target"];
/// `NF_DROP`
const DROP: u32 = 0;

/// A table (`nft list tables`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenTable {
    pub(super) family: Family,
    pub(super) name: String,
    /// No flag is set: among them is `dormant`, which switches a table off.
    pub(super) plain: bool,
}

/// A chain (`nft list chains`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenChain {
    pub(super) family: Family,
    pub(super) table: String,
    pub(super) name: String,
    /// Type, hook number and priority of a base chain.
    pub(super) base: Option<(String, libc::c_int, libc::c_int)>,
    pub(super) policy_drops: bool,
    /// How many rules it has, and how many refer to it.
    pub(super) uses: u32,
}

/// A rule (`nft list chain`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SeenRule {
    pub(super) comment: Option<String>,
    /// It can drop or reject a packet.
    pub(super) drops: bool,
    /// It has a condition, so that it does not concern every packet.
    pub(super) conditional: bool,
    /// Chains it can go on in.
    pub(super) jumps: Vec<String>,
}

/// Which object a notification is about; `None` for kinds of objects that do not concern us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) family: Family,
    pub(super) table: String,
    /// `None`: the table itself.
    pub(super) chain: Option<String>,
}

/// A table, chain or rule as the kernel dumped it: what follows the netlink header, and which kind of message it is.
#[derive(Debug)]
pub(super) struct Dumped {
    kind: u16,
    payload: Vec<u8>,
}

/// Bytes that are no attributes, or an attribute that is missing or too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

impl From<DecodeError> for Unreadable {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

impl Dumped {
    pub(super) fn new(kind: u16, payload: &[u8]) -> Self {
        Self { kind, payload: payload.to_vec() }
    }

    /// Family and attributes of a message of this kind.
    fn attributes(&self, wanted: libc::c_int) -> Option<(Family, &[u8])> {
        let (family, attributes) = (self.payload.first()?, self.payload.get(NFGENMSG..)?);
        let [subsystem, kind] = self.kind.to_be_bytes().map(i32::from);
        let ours = subsystem == libc::NFNL_SUBSYS_NFTABLES && kind == wanted;
        ours.then_some((Family(*family), attributes))
    }

    pub(super) fn table(&self) -> Option<SeenTable> {
        let (family, attributes) = self.attributes(libc::NFT_MSG_NEWTABLE)?;
        let plain = find(attributes, NFTA_TABLE_FLAGS).is_none_or(|flags| number(flags) == Some(0));
        Some(SeenTable { family, name: text(find(attributes, NFTA_TABLE)?), plain })
    }

    pub(super) fn chain(&self) -> Option<SeenChain> {
        let (family, attributes) = self.attributes(libc::NFT_MSG_NEWCHAIN)?;
        let number_of = |kind| number(find(attributes, kind)?);
        let hook = find(attributes, NFTA_CHAIN_HOOK).and_then(|hook| {
            Some((signed(find(hook, NFTA_HOOK_HOOKNUM)?)?, signed(find(hook, NFTA_HOOK_PRIORITY)?)?))
        });
        let kind = find(attributes, NFTA_CHAIN_TYPE).map(text).unwrap_or_default();
        Some(SeenChain {
            family,
            table: text(find(attributes, NFTA_TABLE)?),
            name: text(find(attributes, NFTA_CHAIN_NAME)?),
            base: hook.map(|(number, priority)| (kind, number, priority)),
            policy_drops: number_of(NFTA_CHAIN_POLICY) == Some(DROP),
            uses: number_of(NFTA_CHAIN_USE).unwrap_or(0),
        })
    }

    /// `Ok(None)`: it is no rule.
    ///
    /// # Errors
    /// When it is one and cannot be read as a whole.
    pub(super) fn rule(&self) -> Result<Option<SeenRule>, Unreadable> {
        let Some((_, attributes)) = self.attributes(libc::NFT_MSG_NEWRULE) else { return Ok(None) };
        let mut seen = SeenRule::default();
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match attribute.kind() {
                NFTA_RULE_USERDATA => seen.comment = comment(attribute.value()),
                NFTA_RULE_EXPRESSIONS => {
                    for element in NlasIterator::new(attribute.value()) {
                        note_expression(element?.value(), &mut seen)?;
                    }
                }
                _ => {}
            }
        }
        Ok(Some(seen))
    }
}

fn note_expression(parts: &[u8], seen: &mut SeenRule) -> Result<(), Unreadable> {
    let name = text(find(parts, NFTA_EXPR_NAME).ok_or(Unreadable)?);
    seen.conditional |= !UNCONDITIONAL.contains(&name.as_str());
    let data = find(parts, NFTA_EXPR_DATA).unwrap_or_default();
    match name.as_str() {
        "reject" => seen.drops = true,
        "target" => seen.drops |= find(data, NFTA_TARGET_NAME).is_some_and(|name| text(name) == "REJECT"),
        "immediate" => {
            let value = find(data, NFTA_IMMEDIATE_DATA).ok_or(Unreadable)?;
            let verdict = find(value, NFTA_DATA_VERDICT).unwrap_or_default();
            seen.drops |= find(verdict, NFTA_VERDICT_CODE).and_then(number) == Some(DROP);
            seen.jumps.extend(find(verdict, NFTA_VERDICT_CHAIN).map(text));
        }
        _ => {}
    }
    Ok(())
}

/// The value of the first attribute of this kind.
fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut readable = NlasIterator::new(attributes).map_while(Result::ok);
    let found = readable.find(|attribute| attribute.kind() == wanted)?;
    let length = usize::from(found.length());
    found.into_inner().get(NLA_HEADER_SIZE..length)
}

/// Up to the first NUL.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

fn signed(value: &[u8]) -> Option<libc::c_int> {
    Some(libc::c_int::from_be_bytes(*value.first_chunk()?))
}

/// The comment in user data as `nft` writes it: entries of type, length, value; a comment has type 0.
pub(super) fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8(text.to_vec()).ok();
        }
        data = next;
    }
    None
}

/// What a notification is about; `None`: sets, objects, generations, other subsystems.
///
/// Reads only the names: a program that rewrites thousands of rules is heard of once for each of them.
pub(super) fn subject(kind: u16, payload: &[u8]) -> Option<Subject> {
    let [subsystem, kind] = kind.to_be_bytes();
    if i32::from(subsystem) != libc::NFNL_SUBSYS_NFTABLES {
        return None;
    }
    let chain_name = match i32::from(kind) {
        libc::NFT_MSG_NEWTABLE | libc::NFT_MSG_DELTABLE => None,
        libc::NFT_MSG_NEWCHAIN | libc::NFT_MSG_DELCHAIN => Some(NFTA_CHAIN_NAME),
        libc::NFT_MSG_NEWRULE | libc::NFT_MSG_DELRULE => Some(NFTA_RULE_CHAIN),
        _ => return None,
    };
    let attributes = payload.get(NFGENMSG..)?;
    let name = |wanted| find(attributes, wanted).map(text);
    let family = Family(*payload.first()?);
    Some(Subject { family, table: name(NFTA_TABLE)?, chain: chain_name.and_then(name) })
}

#[cfg(test)]
mod tests {
    use super::super::encode::{add_rule, add_table, batch, comment_data, delete_table};
    use super::*;
    use crate::model::masquerade::{Overlay, RuleOptions, RuleSet};
    use netlink_packet_core::NetlinkBuffer;

    /// `iptables-nft -A FORWARD -j REJECT` as the kernel dumps it (Linux 6.18, iptables 1.8.9).
    const REJECT: &str = "9c000000060a02080100000039780000020000050b00010066696c74657200000c000200464f5257415244000c000300 \
        0000000000000003640004002c0001000c000100636f756e746572001c0002000c00010000000000000000000c000200 \
        0000000000000000340001000b0001007461726765740000240002000b00010052454a45435400000800020000000000 \
        0c0003000300000000000000";
    /// `iptables-nft -A FORWARD -d 1.2.3.4 -j DROP`
    const DROP_RULE: &str = "04010000060a02080100000039780000020000050b00010066696c74657200000c000200464f5257415244000c000300 \
        00000000000000040c0006000000000000000003c0000400340001000c0001007061796c6f6164002400020008000100 \
        000000010800020000000001080003000000001008000400000000042c00010008000100636d70002000020008000100 \
        0000000108000200000000000c00030008000100010203042c0001000c000100636f756e746572001c0002000c000100 \
        00000000000000000c0002000000000000000000300001000e000100696d6d6564696174650000001c00020008000100 \
        00000000100002000c0002000800010000000000";
    /// `iptables-nft -A FORWARD -g GATE`
    const GOTO: &str = "b0000000060a02080100000039780000020000050b00010066696c74657200000c000200464f5257415244000c000300 \
        00000000000000050c00060000000000000000046c0004002c0001000c000100636f756e746572001c0002000c000100 \
        00000000000000000c00020000000000000000003c0001000e000100696d6d6564696174650000002800020008000100 \
        000000001c0002001800020008000100fffffffc090002004741544500000000";

    fn message(bytes: &[u8]) -> Dumped {
        let message = NetlinkBuffer::new_checked(bytes).unwrap();
        Dumped::new(message.message_type(), message.payload())
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn dumped(hex: &str) -> SeenRule {
        message(&bytes(hex)).rule().unwrap().unwrap()
    }

    #[test]
    fn verdicts_of_others_are_seen() {
        let (reject, drop) = (dumped(REJECT), dumped(DROP_RULE));
        assert_eq!((reject.drops, reject.conditional), (true, false));
        assert_eq!((drop.drops, drop.conditional), (true, true));
        let goto = dumped(GOTO);
        assert_eq!((goto.drops, goto.jumps), (false, vec!["GATE".to_owned()]));
    }

    #[test]
    fn a_rule_that_cannot_be_read_as_a_whole_is_not_half_understood() {
        let mut broken = bytes(DROP_RULE);
        let expressions = broken.windows(4).position(|header| header == [0xc0, 0, 4, 0]).unwrap();
        // The first expression ends beyond all of them.
        broken[expressions + 5] = 1;
        assert_eq!(message(&broken).rule(), Err(Unreadable));
    }

    #[test]
    fn a_rule_of_ours_is_known_by_its_comment() {
        let options =
            RuleOptions { ip_masq: true, forward_rules: true, fully_random: true, exclude: Vec::new() };
        let overlay =
            Overlay { network: "10.200.0.0/16".parse().unwrap(), subnet: "10.200.43.0/24".parse().unwrap() };
        for wanted in RuleSet::new(overlay, None, &options).masquerade {
            let bytes = batch(&[add_rule("t", "c", &wanted, "a comment")], 1);
            let begin = usize::try_from(u32::from_ne_bytes(bytes[..4].try_into().unwrap())).unwrap();
            let seen = message(&bytes[begin..]).rule().unwrap().unwrap();
            let expected =
                SeenRule { comment: Some("a comment".to_owned()), conditional: true, ..SeenRule::default() };
            assert_eq!(seen, expected, "{wanted}");
        }
    }

    #[test]
    fn the_names_in_a_notification_say_what_it_is_about() {
        let rules = RuleSet::new(
            Overlay { network: "10.200.0.0/16".parse().unwrap(), subnet: "10.200.43.0/24".parse().unwrap() },
            None,
            &RuleOptions { ip_masq: true, forward_rules: true, fully_random: true, exclude: Vec::new() },
        );
        let chain = |name: &str| Some(name.to_owned());
        for (request, expected) in [
            (add_table(Family::IPV4, "t", "a comment"), None),
            (delete_table(Family::IPV4, "t"), None),
            (add_rule("t", "c", &rules.masquerade[0], "a comment"), chain("c")),
        ] {
            let bytes = batch(&[request], 1);
            let begin = usize::try_from(u32::from_ne_bytes(bytes[..4].try_into().unwrap())).unwrap();
            let message = NetlinkBuffer::new(&bytes[begin..]);
            let seen = subject(message.message_type(), message.payload());
            let family = Family::IPV4;
            assert_eq!(seen, Some(Subject { family, table: "t".to_owned(), chain: expected }));
            assert_eq!(subject(message.message_type() ^ 0x100, message.payload()), None, "another subsystem");
            assert_eq!(subject(message.message_type(), &[]), None);
        }
    }

    #[test]
    fn foreign_user_data_is_no_comment() {
        assert_eq!(comment(&comment_data("x")), Some("x".to_owned()));
        assert_eq!(comment(&[2, 4, 0, 0, 0, 0, 0, 2, b'x', 0]), Some("x".to_owned()));
        for data in [&[][..], &[0], &[0, 9, b'x'], &[1, 1, 0], &[0, 2, 0xff, 0xfe]] {
            assert_eq!(comment(data), None, "{data:?}");
        }
    }
}
