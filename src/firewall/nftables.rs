//! Our rules in an nftables table of our own, spoken over netlink: no `nft` process, no timer.
//!
//! The table and its chains have the names the Go daemon gives them, so that it finds them if somebody goes back. The
//! same sockets tell what else is on the host: the tables of iptables-nft are ordinary nftables tables.

mod decode;
mod encode;
mod socket;

use std::collections::BTreeSet;

use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use netlink_packet_netfilter::nftables::{
    ChainMessage, InetHookNumber, NfTablesMessage, RuleAttribute, RuleMessage, TableMessage,
};
use nix::errno::Errno;

use self::decode::{SeenChain, SeenRule, SeenTable, Subject};
use self::encode::Chain;
use self::socket::{Notification, Notifications, Refusal, Requests};
use super::FirewallError;
use crate::model::masquerade::{Rule, RuleSet};

const TABLE: &str = "flannel-ipv4";
const TABLE_COMMENT: &str = "rules for flannel-ipv4";
/// The Go daemon also makes an IPv6 table, which stays empty in an IPv4 network.
const TABLE_V6: &str = "flannel-ipv6";
/// Goes into the hash of every rule: raise it when the encoding of rules changes.
const ENCODING: u32 = 1;
/// Tables that iptables-nft makes.
const IPTABLES_TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
const HOOK_FORWARD: u32 = 2;

/// What nftables holds on this host, read at one time.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    tables: Vec<SeenTable>,
    chains: Vec<SeenChain>,
    /// Chains of the filter table of iptables-nft that a forwarded packet can come through.
    forward_chains: BTreeSet<String>,
    forward_drops: bool,
}

impl Ruleset {
    fn of_iptables(&self) -> impl Iterator<Item = &SeenChain> {
        let known = |chain: &&SeenChain| {
            chain.family == Family::IPv4 && IPTABLES_TABLES.contains(&chain.table.as_str())
        };
        self.chains.iter().filter(known)
    }

    /// iptables-nft has a table on this host, be it empty.
    pub(super) fn iptables_present(&self) -> bool {
        self.of_iptables().next().is_some()
    }

    /// iptables-nft holds a rule, or a policy that is not accept.
    pub(super) fn iptables_in_use(&self) -> bool {
        self.of_iptables().any(|chain| chain.uses > 0 || chain.policy_drops)
    }

    /// iptables-nft holds a chain of ours.
    pub(super) fn iptables_has_ours(&self) -> bool {
        self.of_iptables().any(|chain| chain.name.starts_with("FLANNEL-"))
    }

    /// The FORWARD chain of iptables-nft can drop a packet, by its policy or by a rule.
    pub(super) fn iptables_forward_drops(&self) -> bool {
        self.forward_drops
    }

    /// A table of ours, or of the Go daemon, is there.
    pub(super) fn has_table(&self) -> bool {
        self.tables.iter().any(|table| table.family == Family::IPv4 && table.name == TABLE)
            || self.has_empty_v6()
    }

    fn has_empty_v6(&self) -> bool {
        let is_v6 = |family, name: &str| family == Family::IPv6 && name == TABLE_V6;
        self.tables.iter().any(|table| is_v6(table.family, &table.name))
            && !self.chains.iter().any(|chain| is_v6(chain.family, &chain.table))
    }

    /// Forward chains of other programs (not of iptables) whose policy is drop: no rule of ours can overrule them.
    pub(super) fn foreign_forward_drops(&self) -> Vec<String> {
        let drops = |chain: &&SeenChain| {
            let hooked = matches!(&chain.base, Some((kind, HOOK_FORWARD, _)) if kind == "filter");
            let concerns_us = matches!(chain.family, Family::IPv4 | Family::Inet);
            let reachable = chain.family == Family::IPv4 && IPTABLES_TABLES.contains(&chain.table.as_str());
            hooked && concerns_us && !reachable && chain.table != TABLE && chain.policy_drops
        };
        let name = |chain: &SeenChain| {
            let family = if chain.family == Family::Inet { "inet" } else { "ip" };
            format!("{family} {} {}", chain.table, chain.name)
        };
        self.chains.iter().filter(drops).map(name).collect()
    }
}

/// The connection to nf_tables.
#[derive(Debug)]
pub(super) struct Nftables {
    requests: Requests,
    notifications: Notifications,
    /// Chains of iptables-nft whose changes matter, as (table, chain).
    watched: BTreeSet<(String, String)>,
    /// Something happened to our table that was not looked at yet.
    noticed: bool,
}

impl Nftables {
    /// Opens both sockets; from here on changes are queued. `None`: the kernel has no nf_tables.
    pub(super) fn open() -> Result<Option<Self>, FirewallError> {
        let absent = |errno: &Errno| {
            matches!(errno, Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EINVAL)
        };
        let failed = |errno| match errno {
            errno if absent(&errno) => Ok(None),
            errno => Err(refused("open a netfilter socket", Refusal::Errno(errno))),
        };
        let mut requests = match Requests::open() {
            Ok(requests) => requests,
            Err(errno) => return failed(errno),
        };
        let notifications = match Notifications::open() {
            Ok(notifications) => notifications,
            Err(error) => return failed(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
        };
        match requests.dump(|sequence| encode::dump(Family::Unspec, all_tables(), sequence)) {
            Err(Refusal::Errno(errno)) => failed(errno),
            _ => Ok(Some(Self { requests, notifications, watched: BTreeSet::new(), noticed: false })),
        }
    }

    /// Reads tables, chains, and the rules a forwarded packet meets in iptables-nft.
    ///
    /// Forgets the notifications queued so far: what they speak of is read here. `masquerade_in_iptables` says whether the nat table of iptables-nft has rules of ours: then it is watched too.
    pub(super) fn observe(&mut self, masquerade_in_iptables: bool) -> Result<Ruleset, FirewallError> {
        self.notifications.queued();
        self.noticed = false;
        let tables = self.dump("list the tables of nftables", Family::Unspec, &all_tables())?;
        let all_chains = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let chains = self.dump("list the chains of nftables", Family::Unspec, &all_chains)?;
        let mut ruleset = Ruleset {
            tables: tables.iter().flatten().filter_map(decode::table).collect(),
            chains: chains.iter().flatten().filter_map(decode::chain).collect(),
            ..Ruleset::default()
        };
        self.follow_forward(&mut ruleset)?;
        self.watched =
            ruleset.forward_chains.iter().map(|chain| ("filter".to_owned(), chain.clone())).collect();
        self.watched.extend(["FORWARD", "FLANNEL-FWD"].map(|chain| ("filter".to_owned(), chain.to_owned())));
        if masquerade_in_iptables {
            self.watch_masquerade();
        }
        Ok(ruleset)
    }

    /// From now on changes of the masquerade rules in iptables-nft matter.
    pub(super) fn watch_masquerade(&mut self) {
        let chains = ["POSTROUTING", "FLANNEL-POSTRTG"];
        self.watched.extend(chains.map(|chain| ("nat".to_owned(), chain.to_owned())));
    }

    /// Walks from FORWARD through all jumps and notes whether a rule drops.
    fn follow_forward(&mut self, ruleset: &mut Ruleset) -> Result<(), FirewallError> {
        let is_forward = |chain: &&SeenChain| chain.table == "filter" && chain.name == "FORWARD";
        let Some(forward) = ruleset.of_iptables().find(is_forward) else { return Ok(()) };
        ruleset.forward_drops = forward.policy_drops;
        let mut open = vec!["FORWARD".to_owned()];
        while let Some(chain) = open.pop() {
            if chain.starts_with("FLANNEL-") || !ruleset.forward_chains.insert(chain.clone()) {
                continue;
            }
            for rule in self.rules("filter", &chain)? {
                ruleset.forward_drops |= rule.drops;
                open.extend(rule.jumps);
            }
        }
        Ok(())
    }

    /// `nft list chain ip TABLE CHAIN`. A rule that cannot be read counts as one that may drop.
    fn rules(&mut self, table: &str, chain: &str) -> Result<Vec<SeenRule>, FirewallError> {
        let attributes = vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.to_owned())];
        let request = NfTablesMessage::GetRule(RuleMessage { attributes });
        let unreadable = || Some(SeenRule { drops: true, ..SeenRule::default() });
        let doing = format!("list chain {chain} of table ip {table}");
        let messages = self.dump(&doing, Family::IPv4, &request)?;
        Ok(messages
            .iter()
            .filter_map(|message| message.as_ref().map_or_else(unreadable, decode::rule))
            .collect())
    }

    fn dump(
        &mut self,
        doing: &str,
        family: Family,
        request: &NfTablesMessage,
    ) -> Result<Vec<socket::Dumped>, FirewallError> {
        let bytes = |sequence| encode::dump(family, request.clone(), sequence);
        match self.requests.dump(bytes) {
            // A table or chain that went away since it was listed has no rules.
            Err(Refusal::Errno(Errno::ENOENT)) => Ok(Vec::new()),
            other => other.map_err(|refusal| refused(doing, refusal)),
        }
    }

    /// Puts our table into force if it is not exactly as it should be. Answers with what was wrong.
    pub(super) fn ensure(
        &mut self,
        rules: &RuleSet,
        ruleset: &Ruleset,
    ) -> Result<Option<String>, FirewallError> {
        let chains = chains(rules);
        if chains.is_empty() {
            return self.remove(ruleset);
        }
        let Some(wrong) = self.difference(&chains, ruleset)? else { return Ok(None) };
        let mut batch = vec![
            encode::add_table(Family::IPv4, TABLE, TABLE_COMMENT),
            encode::delete_table(Family::IPv4, TABLE),
            encode::add_table(Family::IPv4, TABLE, TABLE_COMMENT),
        ];
        for chain in &chains {
            batch.push(encode::add_chain(TABLE, chain));
            let rules = chain.rules.iter();
            batch.extend(rules.map(|(rule, comment)| encode::add_rule(TABLE, chain.name, rule, comment)));
        }
        self.transact("replace table ip flannel-ipv4", &batch)?;
        Ok(Some(wrong))
    }

    /// The first thing about our table that is not as it should be.
    fn difference(&mut self, chains: &[Chain], ruleset: &Ruleset) -> Result<Option<String>, FirewallError> {
        let table = ruleset.tables.iter().find(|table| table.family == Family::IPv4 && table.name == TABLE);
        match table {
            None => return Ok(Some("table ip flannel-ipv4 was missing".to_owned())),
            Some(table) if !table.plain => return Ok(Some("table ip flannel-ipv4 had flags".to_owned())),
            Some(_) => {}
        }
        let seen: Vec<_> = ruleset
            .chains
            .iter()
            .filter(|chain| chain.family == Family::IPv4 && chain.table == TABLE)
            .collect();
        if let Some(foreign) = seen.iter().find(|seen| chains.iter().all(|chain| chain.name != seen.name)) {
            return Ok(Some(format!("table ip flannel-ipv4 had another chain, {}", foreign.name)));
        }
        for chain in chains {
            let base = Some((chain.kind.to_owned(), u32::from(chain.hook), chain.priority));
            let same =
                |seen: &&&SeenChain| seen.name == chain.name && seen.base == base && !seen.policy_drops;
            if seen.iter().find(same).is_none() {
                return Ok(Some(format!(
                    "chain {} of table ip flannel-ipv4 was missing or different",
                    chain.name
                )));
            }
            let found = self.rules(TABLE, chain.name)?;
            let comments = found.iter().map(|rule| rule.comment.as_deref());
            if !comments.eq(chain.rules.iter().map(|(_, comment)| Some(comment.as_str()))) {
                return Ok(Some(format!("chain {} of table ip flannel-ipv4 had other rules", chain.name)));
            }
        }
        Ok(None)
    }

    /// Removes our table, and the empty one the Go daemon makes for IPv6. Answers with what was removed.
    pub(super) fn remove(&mut self, ruleset: &Ruleset) -> Result<Option<String>, FirewallError> {
        if !ruleset.has_table() {
            return Ok(None);
        }
        let mut names = vec![(Family::IPv4, TABLE)];
        if ruleset.has_empty_v6() {
            names.push((Family::IPv6, TABLE_V6));
        }
        // Adding first makes deleting succeed in any case.
        let batch: Vec<_> = names
            .into_iter()
            .flat_map(|(family, name)| {
                [encode::add_table(family, name, ""), encode::delete_table(family, name)]
            })
            .collect();
        self.transact("delete table ip flannel-ipv4", &batch)?;
        Ok(Some("removed table ip flannel-ipv4".to_owned()))
    }

    fn transact(&mut self, doing: &str, batch: &[encode::Request]) -> Result<(), FirewallError> {
        let bytes = |sequence| encode::batch(batch, sequence);
        self.requests.transact(batch.len(), bytes).map_err(|refusal| refused(doing, refusal))
    }

    /// Forgets the queued notifications about iptables-nft: its rules are about to be read.
    pub(super) fn forget_iptables(&mut self) {
        let ours = |notification: &Notification| match notification {
            Notification::Change { message, .. } => {
                self.matters(notification)
                    && decode::subject(message).is_some_and(|subject| subject.table == TABLE)
            }
            Notification::Unknown => true,
        };
        self.noticed |= self.notifications.queued().iter().any(ours);
    }

    /// Waits until somebody else changed something that matters. Cancel-safe.
    pub(super) async fn changed(&self) {
        while !self.noticed && !self.notifications.queued().iter().any(|change| self.matters(change)) {
            self.notifications.readable().await;
        }
    }

    fn matters(&self, notification: &Notification) -> bool {
        let Notification::Change { port, message } = notification else { return true };
        *port != self.requests.port
            && decode::subject(message).is_some_and(|subject| concerns(&self.watched, subject))
    }
}

fn all_tables() -> NfTablesMessage {
    NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() })
}

/// Whether a change of `subject` can mean that something has to be repaired.
fn concerns(watched: &BTreeSet<(String, String)>, subject: Subject) -> bool {
    if subject.family != Family::IPv4 {
        return false;
    }
    match subject.chain {
        _ if subject.table == TABLE => true,
        None => watched.iter().any(|(table, _)| *table == subject.table),
        Some(chain) => watched.contains(&(subject.table, chain)),
    }
}

/// The chains of our table, with comments on the rules that change when a rule or its place does.
fn chains(rules: &RuleSet) -> Vec<Chain> {
    let chain = |name, kind, hook, priority, comment, rules: &[Rule]| Chain {
        name,
        kind,
        hook,
        priority,
        comment,
        rules: rules.iter().enumerate().map(|(at, rule)| (*rule, mark(name, at, rule))).collect(),
    };
    let masquerade = chain(
        "postrtg",
        "nat",
        InetHookNumber::PostRouting,
        100,
        "chain to manage traffic masquerading by flannel",
        &rules.masquerade,
    );
    let forward = chain(
        "forward",
        "filter",
        InetHookNumber::Forward,
        0,
        "chain to accept flannel traffic",
        &rules.forward,
    );
    [masquerade, forward].into_iter().filter(|chain| !chain.rules.is_empty()).collect()
}

/// FNV-1a of everything that makes the rule, so that it can be recognised.
fn mark(chain: &str, at: usize, rule: &Rule) -> String {
    let text = format!("{ENCODING} {chain} {at} {rule}");
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("flanneld {:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

fn refused(doing: &str, refusal: Refusal) -> FirewallError {
    let (reason, retry) = match refusal {
        Refusal::Errno(errno @ (Errno::EPERM | Errno::EACCES)) => {
            (format!("{}; flanneld needs CAP_NET_ADMIN", errno.desc()), false)
        }
        Refusal::Errno(errno @ (Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => (
            format!(
                "{}; is the kernel module nf_tables there? The option firewall=iptables does without",
                errno.desc()
            ),
            false,
        ),
        Refusal::Errno(errno) => (format!("{} ({errno:?})", errno.desc()), true),
        Refusal::Garbled => ("the kernel's answer is incomplete or cannot be read".to_owned(), true),
        Refusal::Restless => ("the rules kept changing while they were read".to_owned(), true),
    };
    FirewallError::Nftables { doing: doing.to_owned(), reason, retry }
}
