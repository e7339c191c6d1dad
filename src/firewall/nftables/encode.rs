//! Rules of the model as nf_tables messages. The equivalent `nft` command stands at each function.

use ipnetwork::Ipv4Network;
use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader,
};
use nix::libc;

use super::attributes::*;
use super::family::Family;
use crate::model::masquerade::{MASQUERADE_MARK, Place, Rule, Verdict};

/// The subsystem that a batch is for, as `nfgenmsg` has it.
const NFTABLES: u16 = 10;
const _: () = assert!(NFTABLES as libc::c_int == libc::NFNL_SUBSYS_NFTABLES);
/// Offset of the source address in an IPv4 header.
const SOURCE: libc::c_int = 12;
/// Offset of the destination address in an IPv4 header.
const DESTINATION: libc::c_int = 16;
/// The length of an address, of a mark.
const FOUR_BYTES: libc::c_int = 4;
/// The version of `nfgenmsg`.
const NFNETLINK_V0: u8 = 0;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
const RANDOM_FULLY: libc::c_int = 1 << 4;

/// A chain of ours with its rules; each rule has the comment it is recognised by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// `nat` or `filter`.
    pub(super) kind: &'static str,
    /// `NF_INET_…`
    pub(super) hook: libc::c_int,
    pub(super) priority: libc::c_int,
    pub(super) comment: &'static str,
    pub(super) rules: Vec<(Rule, String)>,
}

/// One message: what (`NFT_MSG_…`), for which family, how, and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    kind: libc::c_int,
    family: Family,
    flags: u16,
    attributes: Attributes,
}

/// `add table FAMILY NAME { comment "COMMENT" ; }`
pub(super) fn add_table(family: Family, name: &str, comment: &str) -> Request {
    let attributes =
        Attributes::new().text(NFTA_TABLE, name).bytes(NFTA_TABLE_USERDATA, &comment_data(comment));
    Request { kind: libc::NFT_MSG_NEWTABLE, family, flags: NLM_F_CREATE, attributes }
}

/// `delete table FAMILY NAME`
pub(super) fn delete_table(family: Family, name: &str) -> Request {
    let attributes = Attributes::new().text(NFTA_TABLE, name);
    Request { kind: libc::NFT_MSG_DELTABLE, family, flags: 0, attributes }
}

/// `add chain ip TABLE NAME { type KIND hook HOOK priority PRIORITY ; comment "COMMENT" ; }`
pub(super) fn add_chain(table: &str, chain: &Chain) -> Request {
    let attributes = Attributes::new()
        .text(NFTA_TABLE, table)
        .text(NFTA_CHAIN_NAME, chain.name)
        .nested(NFTA_CHAIN_HOOK, |hook| {
            hook.number(NFTA_HOOK_HOOKNUM, chain.hook).number(NFTA_HOOK_PRIORITY, chain.priority)
        })
        .number(NFTA_CHAIN_POLICY, libc::NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, chain.kind)
        .bytes(NFTA_CHAIN_USERDATA, &comment_data(chain.comment));
    Request { kind: libc::NFT_MSG_NEWCHAIN, family: Family::IPV4, flags: NLM_F_CREATE, attributes }
}

/// `add rule ip TABLE CHAIN RULE comment "COMMENT"`
pub(super) fn add_rule(table: &str, chain: &str, rule: &Rule, comment: &str) -> Request {
    let attributes = Attributes::new()
        .text(NFTA_TABLE, table)
        .text(NFTA_RULE_CHAIN, chain)
        .nested(NFTA_RULE_EXPRESSIONS, |list| expressions(list, rule))
        .bytes(NFTA_RULE_USERDATA, &comment_data(comment));
    let flags = NLM_F_CREATE | NLM_F_APPEND;
    Request { kind: libc::NFT_MSG_NEWRULE, family: Family::IPV4, flags, attributes }
}

/// One transaction: all of it comes into force at once, or nothing does. The last request is acknowledged; it has the
/// sequence number `sequence` + number of requests.
pub(super) fn batch(requests: &[Request], sequence: u32) -> Vec<u8> {
    let control = |kind| Message { kind, family: Family::UNSPEC, subsystem: NFTABLES, attributes: &[] };
    let messages = requests.iter().map(|request| (request.message(), request.flags));
    let begin = (control(libc::NFNL_MSG_BATCH_BEGIN), 0);
    let end = (control(libc::NFNL_MSG_BATCH_END), 0);
    let mut out = Vec::new();
    for (at, (message, flags)) in std::iter::once(begin).chain(messages).chain([end]).enumerate() {
        let flags = if at > 0 && at == requests.len() { flags | NLM_F_ACK } else { flags };
        message.append(&mut out, flags, sequence.wrapping_add(u32::try_from(at).unwrap_or_default()));
    }
    out
}

/// `list tables`
pub(super) fn list_tables(sequence: u32) -> Vec<u8> {
    dump(libc::NFT_MSG_GETTABLE, Family::UNSPEC, Attributes::new(), sequence)
}

/// `list chains`
pub(super) fn list_chains(sequence: u32) -> Vec<u8> {
    dump(libc::NFT_MSG_GETCHAIN, Family::UNSPEC, Attributes::new(), sequence)
}

/// `list chain FAMILY TABLE CHAIN`
pub(super) fn list_chain(family: Family, table: &str, chain: &str, sequence: u32) -> Vec<u8> {
    let names = Attributes::new().text(NFTA_TABLE, table).text(NFTA_RULE_CHAIN, chain);
    dump(libc::NFT_MSG_GETRULE, family, names, sequence)
}

fn dump(kind: libc::c_int, family: Family, attributes: Attributes, sequence: u32) -> Vec<u8> {
    let mut out = Vec::new();
    Request { kind, family, flags: 0, attributes }.message().append(&mut out, NLM_F_DUMP, sequence);
    out
}

/// What follows the header of a netlink message, and its type.
struct Message<'a> {
    kind: libc::c_int,
    family: Family,
    /// `res_id`
    subsystem: u16,
    attributes: &'a [u8],
}

impl Request {
    fn message(&self) -> Message<'_> {
        let kind = libc::NFNL_SUBSYS_NFTABLES << 8 | self.kind;
        Message { kind, family: self.family, subsystem: 0, attributes: self.attributes.as_bytes() }
    }
}

impl Message<'_> {
    fn append(&self, out: &mut Vec<u8>, flags: u16, sequence: u32) {
        let [high, low] = self.subsystem.to_be_bytes();
        let nfgenmsg = [self.family.0, NFNETLINK_V0, high, low];
        let mut header = NetlinkHeader::default();
        let length = header.buffer_len() + nfgenmsg.len() + self.attributes.len();
        header.length = u32::try_from(length).unwrap_or(u32::MAX);
        header.message_type = u16::try_from(self.kind).unwrap_or(u16::MAX);
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let start = out.len();
        out.resize(start + header.buffer_len(), 0);
        if let Some(place) = out.get_mut(start..) {
            header.emit(place);
        }
        out.extend(nfgenmsg);
        out.extend(self.attributes);
    }
}

/// User data as `nft` writes a comment: type 0, length, text and a zero byte. The kernel only stores it.
pub(super) fn comment_data(comment: &str) -> Vec<u8> {
    let text: Vec<u8> = comment.bytes().take(254).chain([0]).collect();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[0, length], text.as_slice()].concat()
}

fn expressions(list: Attributes, rule: &Rule) -> Attributes {
    let list = if rule.marked { marked(list) } else { list };
    let list = address(list, SOURCE, rule.source);
    verdict(address(list, DESTINATION, rule.destination), rule.verdict)
}

fn expression(list: Attributes, name: &str, data: impl FnOnce(Attributes) -> Attributes) -> Attributes {
    list.nested(NFTA_LIST_ELEM, |element| element.text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, data))
}

/// `meta mark & MARK == MARK`
fn marked(list: Attributes) -> Attributes {
    let list = expression(list, "meta", |meta| {
        meta.number(NFTA_META_DREG, libc::NFT_REG_1).number(NFTA_META_KEY, libc::NFT_META_MARK)
    });
    let mark = MASQUERADE_MARK.to_ne_bytes();
    compare(and(list, mark), libc::NFT_CMP_EQ, mark)
}

/// `ip saddr [!=] NETWORK`: load four bytes, cut them to the prefix, compare.
fn address(list: Attributes, offset: libc::c_int, place: Place) -> Attributes {
    let (operator, network): (_, Ipv4Network) = match place {
        Place::Any => return list,
        Place::In(network) => (libc::NFT_CMP_EQ, network),
        Place::NotIn(network) => (libc::NFT_CMP_NEQ, network),
    };
    let list = expression(list, "payload", |load| {
        load.number(NFTA_PAYLOAD_DREG, libc::NFT_REG_1)
            .number(NFTA_PAYLOAD_BASE, libc::NFT_PAYLOAD_NETWORK_HEADER)
            .number(NFTA_PAYLOAD_OFFSET, offset)
            .number(NFTA_PAYLOAD_LEN, FOUR_BYTES)
    });
    compare(and(list, network.mask().octets()), operator, network.network().octets())
}

fn and(list: Attributes, mask: [u8; 4]) -> Attributes {
    expression(list, "bitwise", |bitwise| {
        bitwise
            .number(NFTA_BITWISE_SREG, libc::NFT_REG_1)
            .number(NFTA_BITWISE_DREG, libc::NFT_REG_1)
            .number(NFTA_BITWISE_LEN, FOUR_BYTES)
            .nested(NFTA_BITWISE_MASK, |data| data.bytes(NFTA_DATA_VALUE, &mask))
            .nested(NFTA_BITWISE_XOR, |data| data.bytes(NFTA_DATA_VALUE, &[0; 4]))
    })
}

fn compare(list: Attributes, operator: libc::c_int, value: [u8; 4]) -> Attributes {
    expression(list, "cmp", |cmp| {
        cmp.number(NFTA_CMP_SREG, libc::NFT_REG_1)
            .number(NFTA_CMP_OP, operator)
            .nested(NFTA_CMP_DATA, |data| data.bytes(NFTA_DATA_VALUE, &value))
    })
}

fn verdict(list: Attributes, verdict: Verdict) -> Attributes {
    let immediate = |list, code| {
        expression(list, "immediate", |immediate| {
            immediate.number(NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT).nested(NFTA_IMMEDIATE_DATA, |data| {
                data.nested(NFTA_DATA_VERDICT, |verdict| verdict.number(NFTA_VERDICT_CODE, code))
            })
        })
    };
    match verdict {
        Verdict::Accept => immediate(list, libc::NF_ACCEPT),
        Verdict::Return => immediate(list, libc::NFT_RETURN),
        Verdict::Masquerade { fully_random } => expression(list, "masq", |masq| {
            if fully_random { masq.number(NFTA_MASQ_FLAGS, RANDOM_FULLY) } else { masq }
        }),
    }
}
