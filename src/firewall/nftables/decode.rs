//! What the kernel says about tables, chains and rules, cut down to what decisions need.

use netlink_packet_core::{DefaultNla, Nla, NlasIterator};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, ExpressionAttribute, Expressions, Hook, Immediate,
    ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict,
    VerdictAttribute,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use nix::libc;

/// Size of `nfgenmsg`, whose first byte is the family.
const NFGENMSG: usize = 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;

/// Expressions that every packet passes, or that end its way.
const UNCONDITIONAL: [&str; 5] = ["counter", "immediate", "log", "reject", "target"];
/// `NF_DROP`
const DROP: u32 = 0;

/// A table (`nft list tables`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenTable {
    pub(super) family: NetfilterProtoFamily,
    pub(super) name: String,
    /// No flag is set: among them is `dormant`, which switches a table off.
    pub(super) plain: bool,
}

/// A chain (`nft list chains`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenChain {
    pub(super) family: NetfilterProtoFamily,
    pub(super) table: String,
    pub(super) name: String,
    /// Type, hook number and priority of a base chain.
    pub(super) base: Option<(String, u32, u32)>,
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
    pub(super) family: NetfilterProtoFamily,
    pub(super) table: String,
    /// `None`: the table itself.
    pub(super) chain: Option<String>,
}

pub(super) fn table(message: &NetfilterMessage) -> Option<SeenTable> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(TableMessage { attributes })) =
        &message.inner
    else {
        return None;
    };
    let mut plain = true;
    for attribute in attributes {
        if let TableAttribute::Flags(flags) = attribute {
            plain = flags.is_empty();
        }
    }
    Some(SeenTable { family: message.header.family, name: table_name(attributes)?, plain })
}

fn table_name(attributes: &[TableAttribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match attribute {
        TableAttribute::Name(name) => Some(name.clone()),
        _ => None,
    })
}

pub(super) fn chain(message: &NetfilterMessage) -> Option<SeenChain> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(ChainMessage { attributes })) =
        &message.inner
    else {
        return None;
    };
    let (table, name) = chain_name(attributes)?;
    let mut kind = String::new();
    let mut hook = None;
    let mut seen =
        SeenChain { family: message.header.family, table, name, base: None, policy_drops: false, uses: 0 };
    for attribute in attributes {
        match attribute {
            ChainAttribute::Type(text) => kind.clone_from(text),
            ChainAttribute::Hook(attributes) => hook = hook_of(attributes),
            ChainAttribute::Policy(policy) => seen.policy_drops = *policy == DROP,
            ChainAttribute::Use(uses) => seen.uses = *uses,
            _ => {}
        }
    }
    seen.base = hook.map(|(number, priority)| (kind, number, priority));
    Some(seen)
}

fn chain_name(attributes: &[ChainAttribute]) -> Option<(String, String)> {
    let table = attributes.iter().find_map(|attribute| match attribute {
        ChainAttribute::Table(name) => Some(name.clone()),
        _ => None,
    });
    let name = attributes.iter().find_map(|attribute| match attribute {
        ChainAttribute::Name(name) => Some(name.clone()),
        _ => None,
    });
    Some((table?, name?))
}

fn hook_of(attributes: &[Hook]) -> Option<(u32, u32)> {
    let number = attributes.iter().find_map(|attribute| match attribute {
        Hook::Number(number) => Some(u32::from(*number)),
        _ => None,
    });
    let priority = attributes.iter().find_map(|attribute| match attribute {
        Hook::Priority(priority) => Some(*priority),
        _ => None,
    });
    Some((number?, priority?))
}

pub(super) fn rule(message: &NetfilterMessage) -> Option<SeenRule> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(RuleMessage { attributes })) =
        &message.inner
    else {
        return None;
    };
    let mut seen = SeenRule::default();
    for attribute in attributes {
        match attribute {
            RuleAttribute::UserData(data) => seen.comment = comment(data),
            RuleAttribute::Expressions(expressions) => {
                expressions.iter().for_each(|expression| note_expression(expression, &mut seen));
            }
            _ => {}
        }
    }
    Some(seen)
}

fn note_expression(expression: &ListAttribute<ExpressionAttribute>, seen: &mut SeenRule) {
    let ListAttribute::Element(parts) = expression else { return };
    for part in parts {
        match part {
            ExpressionAttribute::Name(name) => {
                seen.conditional |= !UNCONDITIONAL.contains(&name.as_str());
            }
            ExpressionAttribute::Data(Expressions::Immediate(attributes)) => {
                attributes.iter().for_each(|attribute| note_immediate(attribute, seen));
            }
            ExpressionAttribute::Data(Expressions::Other { expression_type, attributes }) => {
                seen.drops |= expression_type == "reject"
                    || (expression_type == "target" && attributes.iter().any(is_reject_target));
            }
            _ => {}
        }
    }
}

fn note_immediate(attribute: &Immediate, seen: &mut SeenRule) {
    let Immediate::Data(DataAttribute::Verdict(parts)) = attribute else { return };
    for part in parts {
        match part {
            VerdictAttribute::Code(Verdict::Other(DROP)) => seen.drops = true,
            VerdictAttribute::Chain(name) => seen.jumps.push(name.clone()),
            _ => {}
        }
    }
}

/// `NFTA_TARGET_NAME` of an extension of iptables-nft.
fn is_reject_target(attribute: &DefaultNla) -> bool {
    let mut name = vec![0; attribute.value_len()];
    attribute.emit_value(&mut name);
    attribute.kind() == 1 && name.starts_with(b"REJECT\0")
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
    // linux/netfilter/nf_tables.h: the table's name is attribute 1 of all three.
    let chain_name = match i32::from(kind) {
        libc::NFT_MSG_NEWTABLE | libc::NFT_MSG_DELTABLE => None,
        libc::NFT_MSG_NEWCHAIN | libc::NFT_MSG_DELCHAIN => Some(NFTA_CHAIN_NAME),
        libc::NFT_MSG_NEWRULE | libc::NFT_MSG_DELRULE => Some(NFTA_RULE_CHAIN),
        _ => return None,
    };
    let text = |wanted| {
        let attributes = NlasIterator::new(payload.get(NFGENMSG..)?).map_while(Result::ok);
        let name = attributes.into_iter().find(|attribute| attribute.kind() == wanted)?;
        let name = name.value().strip_suffix(&[0]).unwrap_or(name.value());
        Some(String::from_utf8_lossy(name).into_owned())
    };
    let family = NetfilterProtoFamily::from(*payload.first()?);
    Some(Subject { family, table: text(NFTA_TABLE)?, chain: chain_name.and_then(text) })
}

#[cfg(test)]
mod tests {
    use super::super::encode::{add_rule, add_table, batch, comment_data, delete_table};
    use super::*;
    use crate::model::masquerade::{Overlay, RuleOptions, RuleSet};
    use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};

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

    fn message(bytes: &[u8]) -> NetfilterMessage {
        match NetlinkMessage::<NetfilterMessage>::deserialize(bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(message) => message,
            other => panic!("{other:?}"),
        }
    }

    fn dumped(hex: &str) -> SeenRule {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        rule(&message(&digits.chunks(2).map(byte).collect::<Vec<_>>())).unwrap()
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
    fn a_rule_of_ours_is_known_by_its_comment() {
        let options =
            RuleOptions { ip_masq: true, forward_rules: true, fully_random: true, exclude: Vec::new() };
        let overlay =
            Overlay { network: "10.200.0.0/16".parse().unwrap(), subnet: "10.200.43.0/24".parse().unwrap() };
        for wanted in RuleSet::new(overlay, None, &options).masquerade {
            let bytes = batch(&[add_rule("t", "c", &wanted, "a comment")], 1);
            let begin = usize::try_from(u32::from_ne_bytes(bytes[..4].try_into().unwrap())).unwrap();
            let seen = rule(&message(&bytes[begin..])).unwrap();
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
            (add_table(NetfilterProtoFamily::IPv4, "t", "a comment"), None),
            (delete_table(NetfilterProtoFamily::IPv4, "t"), None),
            (add_rule("t", "c", &rules.masquerade[0], "a comment"), chain("c")),
        ] {
            let bytes = batch(&[request], 1);
            let begin = usize::try_from(u32::from_ne_bytes(bytes[..4].try_into().unwrap())).unwrap();
            let message = NetlinkBuffer::new(&bytes[begin..]);
            let seen = subject(message.message_type(), message.payload());
            let family = NetfilterProtoFamily::IPv4;
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
