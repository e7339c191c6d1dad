//! Rules of the model as nf_tables messages. The equivalent `nft` command stands at each function.

use ipnetwork::Ipv4Network;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    HookNumber, Immediate, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload,
    Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict as WireVerdict,
    VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use crate::model::masquerade::{MASQUERADE_MARK, Place, Rule, Verdict};

/// `NFNL_SUBSYS_NFTABLES`: the subsystem a batch is for.
const SUBSYSTEM: u16 = 10;
/// `NF_ACCEPT`
const ACCEPT: u32 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER`
const NETWORK_HEADER: u32 = 1;
/// Offset of the source address in an IPv4 header.
const SOURCE: u32 = 12;
/// Offset of the destination address in an IPv4 header.
const DESTINATION: u32 = 16;
/// `NFTA_MASQ_FLAGS`
const MASQ_FLAGS: u16 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
const RANDOM_FULLY: u32 = 1 << 4;

/// A chain of ours with its rules; each rule has the comment it is recognised by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// `nat` or `filter`.
    pub(super) kind: &'static str,
    pub(super) hook: InetHookNumber,
    pub(super) priority: u32,
    pub(super) comment: &'static str,
    pub(super) rules: Vec<(Rule, String)>,
}

/// One message of a batch: what, for which family, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    family: NetfilterProtoFamily,
    message: NfTablesMessage,
    flags: u16,
}

/// `add table FAMILY NAME { comment "COMMENT" ; }`
pub(super) fn add_table(family: NetfilterProtoFamily, name: &str, comment: &str) -> Request {
    let attributes =
        vec![TableAttribute::Name(name.to_owned()), TableAttribute::UserData(comment_data(comment))];
    let message = NfTablesMessage::NewTable(TableMessage { attributes });
    Request { family, message, flags: NLM_F_CREATE }
}

/// `delete table FAMILY NAME`
pub(super) fn delete_table(family: NetfilterProtoFamily, name: &str) -> Request {
    let attributes = vec![TableAttribute::Name(name.to_owned())];
    Request { family, message: NfTablesMessage::DeleteTable(TableMessage { attributes }), flags: 0 }
}

/// `add chain ip TABLE NAME { type KIND hook HOOK priority PRIORITY ; comment "COMMENT" ; }`
pub(super) fn add_chain(table: &str, chain: &Chain) -> Request {
    let hook = vec![Hook::Number(HookNumber::Inet(chain.hook)), Hook::Priority(chain.priority)];
    let attributes = vec![
        ChainAttribute::Table(table.to_owned()),
        ChainAttribute::Name(chain.name.to_owned()),
        ChainAttribute::Hook(hook),
        ChainAttribute::Policy(ACCEPT),
        ChainAttribute::Type(chain.kind.to_owned()),
        ChainAttribute::UserData(comment_data(chain.comment)),
    ];
    let message = NfTablesMessage::NewChain(ChainMessage { attributes });
    Request { family: NetfilterProtoFamily::IPv4, message, flags: NLM_F_CREATE }
}

/// `add rule ip TABLE CHAIN RULE comment "COMMENT"`
pub(super) fn add_rule(table: &str, chain: &str, rule: &Rule, comment: &str) -> Request {
    let attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions(rule)),
        RuleAttribute::UserData(comment_data(comment)),
    ];
    let message = NfTablesMessage::NewRule(RuleMessage { attributes });
    Request { family: NetfilterProtoFamily::IPv4, message, flags: NLM_F_CREATE | NLM_F_APPEND }
}

/// One transaction: all of it comes into force at once, or nothing does. The last request is acknowledged; it has the
/// sequence number `sequence` + number of requests.
pub(super) fn batch(requests: &[Request], sequence: u32) -> Vec<u8> {
    let control = |message| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
        NetfilterMessage::new(header, NetfilterMessageInner::None(message))
    };
    let mut messages = vec![(control(ControlMessage::BatchBegin), 0)];
    for (at, request) in requests.iter().enumerate() {
        let header = NetfilterHeader::new(request.family, 0, 0);
        let last = at + 1 == requests.len();
        let flags = request.flags | if last { NLM_F_ACK } else { 0 };
        messages.push((NetfilterMessage::new(header, request.message.clone()), flags));
    }
    messages.push((control(ControlMessage::BatchEnd), 0));
    let numbered = (sequence..).zip(messages);
    numbered.flat_map(|(sequence, (message, flags))| serialize(message, flags, sequence)).collect()
}

/// `list tables`, `list chains`, `list chain FAMILY TABLE CHAIN`
pub(super) fn dump(family: NetfilterProtoFamily, message: NfTablesMessage, sequence: u32) -> Vec<u8> {
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    serialize(message, NLM_F_DUMP, sequence)
}

fn serialize(message: NetfilterMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// User data as `nft` writes a comment: type 0, length, text and a zero byte. The kernel only stores it.
pub(super) fn comment_data(comment: &str) -> Vec<u8> {
    let text: Vec<u8> = comment.bytes().take(254).chain([0]).collect();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[0, length], text.as_slice()].concat()
}

type Expression = ListAttribute<ExpressionAttribute>;

fn expression(name: &str, data: Expressions) -> Expression {
    ListAttribute::Element(vec![ExpressionAttribute::Name(name.to_owned()), ExpressionAttribute::Data(data)])
}

fn expressions(rule: &Rule) -> Vec<Expression> {
    let mut all = Vec::new();
    if rule.marked {
        all.push(expression(
            "meta",
            Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(MetaKey::Mark)]),
        ));
        all.push(and(MASQUERADE_MARK.to_ne_bytes()));
        all.push(compare(Operator::Equal, MASQUERADE_MARK.to_ne_bytes()));
    }
    all.extend(address(SOURCE, rule.source));
    all.extend(address(DESTINATION, rule.destination));
    all.push(verdict(rule.verdict));
    all
}

/// `ip saddr [!=] NETWORK`: load four bytes, cut them to the prefix, compare.
fn address(offset: u32, place: Place) -> Vec<Expression> {
    let (operator, network): (_, Ipv4Network) = match place {
        Place::Any => return Vec::new(),
        Place::In(network) => (Operator::Equal, network),
        Place::NotIn(network) => (Operator::NotEqual, network),
    };
    let load = Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(NETWORK_HEADER),
        Payload::Offset(offset),
        Payload::Len(4),
    ]);
    vec![
        expression("payload", load),
        and(network.mask().octets()),
        compare(operator, network.network().octets()),
    ]
}

fn and(mask: [u8; 4]) -> Expression {
    let data = vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(4),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
    ];
    expression("bitwise", Expressions::Bitwise(data))
}

fn compare(operator: Operator, value: [u8; 4]) -> Expression {
    let data = vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ];
    expression("cmp", Expressions::Cmp(data))
}

fn verdict(verdict: Verdict) -> Expression {
    let immediate = |code| {
        let data = DataAttribute::Verdict(vec![VerdictAttribute::Code(code)]);
        let attributes = vec![Immediate::DestinationRegister(Register::Verdict), Immediate::Data(data)];
        expression("immediate", Expressions::Immediate(attributes))
    };
    match verdict {
        Verdict::Accept => immediate(WireVerdict::Other(ACCEPT)),
        Verdict::Return => immediate(WireVerdict::Return),
        Verdict::Masquerade { fully_random } => {
            let flags = DefaultNla::new(MASQ_FLAGS, RANDOM_FULLY.to_be_bytes().to_vec());
            let attributes = if fully_random { vec![flags] } else { Vec::new() };
            expression("masq", Expressions::Other { expression_type: "masq".to_owned(), attributes })
        }
    }
}
