//! Our rules in an nftables table of our own, spoken over netlink: no `nft` process, no timer.
//!
//! The table and its chains have the names the Go daemon gives them, so that it finds them if somebody goes back. The
//! same sockets tell what else is on the host: the tables of iptables-nft are ordinary nftables tables.

mod attributes;
mod decode;
mod encode;
mod family;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/bodies/nftables.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub(crate) mod fuzz;
mod ruleset;
mod socket;

use std::collections::BTreeSet;

use nix::errno::Errno;
use nix::libc;

pub(super) use self::ruleset::Ruleset;

use self::decode::{Dumped, SeenChain, SeenRule, Subject};
use self::encode::Chain;
use self::family::Family;
use self::ruleset::{OUR_CHAINS, TABLE, TABLE_V6};
use self::socket::{Notification, Notifications, Refusal, Requests};
use super::FirewallError;
use crate::model::masquerade::{Rule, RuleSet};

/// Goes into the hash of every rule: raise it when the encoding of rules changes.
const ENCODING: u32 = 1;
const TABLE_COMMENT: &str = "rules for flannel-ipv4";

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
        let notifications = match Notifications::open(requests.port) {
            Ok(notifications) => notifications,
            Err(error) => return failed(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
        };
        match requests.dump(encode::list_tables) {
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
        let tables = self.dump("list the tables of nftables", encode::list_tables)?;
        let chains = self.dump("list the chains of nftables", encode::list_chains)?;
        let mut ruleset = Ruleset {
            tables: tables.iter().filter_map(Dumped::table).collect(),
            chains: chains.iter().filter_map(Dumped::chain).collect(),
            ..Ruleset::default()
        };
        self.follow_forward(&mut ruleset)?;
        ruleset.foreign_drops = self.foreign_drops(&ruleset)?;
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
        ruleset.iptables_forward_drops = forward.policy_drops;
        let mut open = vec!["FORWARD".to_owned()];
        while let Some(chain) = open.pop() {
            if OUR_CHAINS.contains(&chain.as_str()) || !ruleset.forward_chains.insert(chain.clone()) {
                continue;
            }
            for rule in self.rules(Family::IPV4, "filter", &chain)? {
                ruleset.iptables_forward_drops |= rule.drops;
                open.extend(rule.jumps);
            }
        }
        Ok(())
    }

    /// Finds the forward chains of other programs that drop everything in the end.
    fn foreign_drops(&mut self, ruleset: &Ruleset) -> Result<Vec<String>, FirewallError> {
        let mut found = Vec::new();
        for chain in ruleset.foreign_forward() {
            let drops_all = |rule: &SeenRule| rule.drops && !rule.conditional;
            let rules = self.rules(chain.family, &chain.table, &chain.name)?;
            if chain.policy_drops || rules.iter().any(drops_all) {
                found.push(format!("{} {} {}", word(chain.family), chain.table, chain.name));
            }
        }
        Ok(found)
    }

    /// `nft list chain FAMILY TABLE CHAIN`. A rule that cannot be read counts as one that may drop.
    fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<SeenRule>, FirewallError> {
        let unreadable = SeenRule { drops: true, conditional: true, ..SeenRule::default() };
        let doing = format!("list chain {chain} of table {} {table}", word(family));
        let messages = self.dump(&doing, |sequence| encode::list_chain(family, table, chain, sequence))?;
        let rule = |message: &Dumped| message.rule().unwrap_or_else(|_| Some(unreadable.clone()));
        Ok(messages.iter().filter_map(rule).collect())
    }

    fn dump(&mut self, doing: &str, request: impl Fn(u32) -> Vec<u8>) -> Result<Vec<Dumped>, FirewallError> {
        match self.requests.dump(request) {
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
            encode::add_table(Family::IPV4, TABLE, TABLE_COMMENT),
            encode::delete_table(Family::IPV4, TABLE),
            encode::add_table(Family::IPV4, TABLE, TABLE_COMMENT),
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
        let table = ruleset.tables.iter().find(|table| table.family == Family::IPV4 && table.name == TABLE);
        match table {
            None => return Ok(Some("table ip flannel-ipv4 was missing".to_owned())),
            Some(table) if !table.plain => return Ok(Some("table ip flannel-ipv4 had flags".to_owned())),
            Some(_) => {}
        }
        let seen: Vec<_> = ruleset.chains_of(TABLE).collect();
        if let Some(foreign) = seen.iter().find(|seen| chains.iter().all(|chain| chain.name != seen.name)) {
            return Ok(Some(format!("table ip flannel-ipv4 had another chain, {}", foreign.name)));
        }
        for chain in chains {
            let base = Some((chain.kind.to_owned(), chain.hook, chain.priority));
            let same =
                |seen: &&&SeenChain| seen.name == chain.name && seen.base == base && !seen.policy_drops;
            if seen.iter().find(same).is_none() {
                return Ok(Some(format!(
                    "chain {} of table ip flannel-ipv4 was missing or different",
                    chain.name
                )));
            }
            let found = self.rules(Family::IPV4, TABLE, chain.name)?;
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
        let mut names = vec![(Family::IPV4, TABLE)];
        if ruleset.has_empty_v6() {
            names.push((Family::IPV6, TABLE_V6));
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
            Notification::Change(subject) => subject.table == TABLE && concerns(&self.watched, subject),
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
        match notification {
            Notification::Change(subject) => concerns(&self.watched, subject),
            Notification::Unknown => true,
        }
    }
}

/// The family in the words of `nft`.
fn word(family: Family) -> &'static str {
    if family == Family::INET { "inet" } else { "ip" }
}

/// Whether a change of `subject` can mean that something has to be repaired. A table of iptables-nft that goes takes
/// its chains with it, each with a notification of its own.
fn concerns(watched: &BTreeSet<(String, String)>, subject: &Subject) -> bool {
    let Subject { family: Family::IPV4, table, chain } = subject else { return false };
    let is_watched = |name: &String| watched.iter().any(|(of, chain)| (of, chain) == (table, name));
    table == TABLE || chain.as_ref().is_some_and(is_watched)
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
        libc::NF_INET_POST_ROUTING,
        100,
        "chain to manage traffic masquerading by flannel",
        &rules.masquerade,
    );
    let forward = chain(
        "forward",
        "filter",
        libc::NF_INET_FORWARD,
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
        Refusal::Errno(Errno::ENOENT) => (
            "a part of nf_tables is missing; are the kernel modules nft_masq and nft_chain_nat there?"
                .to_owned(),
            true,
        ),
        Refusal::Errno(errno) => (format!("{} ({errno:?})", errno.desc()), true),
        Refusal::Garbled => ("the kernel's answer is incomplete or cannot be read".to_owned(), true),
        Refusal::Restless => ("the rules kept changing while they were read".to_owned(), true),
    };
    FirewallError::Nftables { doing: doing.to_owned(), reason, retry }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::masquerade::{Overlay, RuleOptions};

    fn rules(subnet: &str) -> RuleSet {
        let overlay = Overlay { network: "10.200.0.0/16".parse().unwrap(), subnet: subnet.parse().unwrap() };
        let options =
            RuleOptions { ip_masq: true, forward_rules: true, fully_random: true, exclude: Vec::new() };
        RuleSet::new(overlay, None, &options)
    }

    fn comments(rules: &RuleSet) -> Vec<String> {
        chains(rules).into_iter().flat_map(|chain| chain.rules).map(|(_, comment)| comment).collect()
    }

    #[test]
    fn comments_tell_rules_values_and_places_apart() {
        let one = comments(&rules("10.200.43.0/24"));
        assert_eq!(one, comments(&rules("10.200.43.0/24")));
        assert_eq!(one.iter().collect::<BTreeSet<_>>().len(), 8);
        let differing = one.iter().zip(comments(&rules("10.200.7.0/24"))).filter(|(a, b)| *a != b).count();
        assert_eq!(differing, 3, "the rules that name the subnet");
        let mut swapped = rules("10.200.43.0/24");
        swapped.forward.swap(0, 1);
        assert_ne!(comments(&swapped)[6..], one[6..]);
    }

    #[test]
    fn a_chain_without_rules_is_left_out() {
        let mut rules = rules("10.200.43.0/24");
        rules.masquerade.clear();
        assert_eq!(chains(&rules).iter().map(|chain| chain.name).collect::<Vec<_>>(), ["forward"]);
        rules.forward.clear();
        assert_eq!(chains(&rules), []);
    }

    #[test]
    fn only_our_table_and_watched_chains_concern_us() {
        let watched = BTreeSet::from([("filter".to_owned(), "FORWARD".to_owned())]);
        for (family, table, chain, expected) in [
            (Family::IPV4, "flannel-ipv4", None, true),
            (Family::IPV4, "flannel-ipv4", Some("any"), true),
            (Family::IPV6, "flannel-ipv4", None, false),
            (Family::IPV4, "filter", Some("FORWARD"), true),
            (Family::IPV4, "filter", Some("INPUT"), false),
            (Family::IPV4, "filter", None, false),
            (Family::IPV4, "nat", Some("FORWARD"), false),
            (Family::INET, "filter", Some("FORWARD"), false),
        ] {
            let subject = Subject { family, table: table.to_owned(), chain: chain.map(str::to_owned) };
            assert_eq!(concerns(&watched, &subject), expected, "{subject:?}");
        }
    }

    #[test]
    fn errors_name_object_and_cure() {
        let error = refused("replace table ip flannel-ipv4", Refusal::Errno(Errno::EPERM));
        assert_eq!(
            error.to_string(),
            "cannot replace table ip flannel-ipv4: Operation not permitted; flanneld needs CAP_NET_ADMIN"
        );
        assert!(!error.retry());
        assert!(refused("x", Refusal::Errno(Errno::EBUSY)).retry());
    }
}
