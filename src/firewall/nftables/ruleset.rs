//! What nftables holds on this host, ours and others', as far as decisions need it. No sockets.

use std::collections::BTreeSet;

use nix::libc;

use super::decode::{SeenChain, SeenTable};
use super::family::Family;

/// Our table, with the Go daemon's name for it.
pub(super) const TABLE: &str = "flannel-ipv4";
/// The Go daemon also makes an IPv6 table, which stays empty in an IPv4 network.
pub(super) const TABLE_V6: &str = "flannel-ipv6";
/// Tables that iptables-nft makes.
const IPTABLES_TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
/// Base chains that iptables-nft makes in them.
const IPTABLES_CHAINS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Chains in them that hold our rules, or those of the Go daemon.
pub(super) const OUR_CHAINS: [&str; 2] = ["FLANNEL-POSTRTG", OUR_FORWARD];
const OUR_FORWARD: &str = "FLANNEL-FWD";

/// What nftables holds on this host, read at one time.
#[derive(Debug, Default)]
pub(in crate::firewall) struct Ruleset {
    pub(super) tables: Vec<SeenTable>,
    pub(super) chains: Vec<SeenChain>,
    /// Chains of the filter table of iptables-nft that a forwarded packet can come through.
    pub(super) forward_chains: BTreeSet<String>,
    /// The FORWARD chain of iptables-nft can drop a packet, by its policy or by a rule.
    pub(in crate::firewall) iptables_forward_drops: bool,
    /// Forward chains of other programs that drop what they do not accept, as `FAMILY TABLE CHAIN`.
    pub(in crate::firewall) foreign_drops: Vec<String>,
}

impl Ruleset {
    /// The chains of an IPv4 table.
    pub(super) fn chains_of(&self, table: &'static str) -> impl Iterator<Item = &SeenChain> {
        self.chains.iter().filter(move |chain| chain.family == Family::IPV4 && chain.table == table)
    }

    /// The chains iptables-nft works with: in a table of its own all base chains have the built-in names.
    pub(super) fn of_iptables(&self) -> impl Iterator<Item = &SeenChain> {
        let known =
            |chain: &SeenChain| chain.base.is_none() || IPTABLES_CHAINS.contains(&chain.name.as_str());
        let tables = IPTABLES_TABLES.into_iter().filter(move |table| self.chains_of(table).all(known));
        tables.flat_map(|table| self.chains_of(table))
    }

    /// iptables-nft has a table on this host, be it empty.
    pub(in crate::firewall) fn iptables_present(&self) -> bool {
        self.of_iptables().next().is_some()
    }

    /// iptables-nft holds a rule, or a policy that is not accept.
    pub(in crate::firewall) fn iptables_in_use(&self) -> bool {
        self.of_iptables().any(|chain| chain.uses > 0 || chain.policy_drops)
    }

    /// iptables-nft holds a chain of ours.
    pub(in crate::firewall) fn iptables_has_ours(&self) -> bool {
        self.of_iptables().any(|chain| OUR_CHAINS.contains(&chain.name.as_str()))
    }

    /// The policy of the FORWARD chain of iptables-nft is drop and no chain of ours accepts before.
    pub(in crate::firewall) fn iptables_forward_policy_drops(&self) -> bool {
        let forward = |chain: &SeenChain| chain.table == "filter" && chain.name == "FORWARD";
        self.of_iptables().any(|chain| forward(chain) && chain.policy_drops)
            && !self.of_iptables().any(|chain| chain.name == OUR_FORWARD)
    }

    /// A table of ours, or of the Go daemon, is there.
    pub(in crate::firewall) fn has_table(&self) -> bool {
        self.tables.iter().any(|table| table.family == Family::IPV4 && table.name == TABLE)
            || self.has_empty_v6()
    }

    pub(super) fn has_empty_v6(&self) -> bool {
        let is_v6 = |family, name: &str| family == Family::IPV6 && name == TABLE_V6;
        self.tables.iter().any(|table| is_v6(table.family, &table.name))
            && !self.chains.iter().any(|chain| is_v6(chain.family, &chain.table))
    }

    /// Forward chains of other programs, not of iptables: what they drop no rule of ours can overrule.
    pub(super) fn foreign_forward(&self) -> impl Iterator<Item = &SeenChain> {
        self.chains.iter().filter(|chain| {
            let hooked = matches!(&chain.base, Some((kind, libc::NF_INET_FORWARD, _)) if kind == "filter");
            let concerns_us = matches!(chain.family, Family::IPV4 | Family::INET);
            let reachable =
                chain.family == Family::IPV4 && chain.table == "filter" && chain.name == "FORWARD";
            hooked && concerns_us && !reachable && chain.table != TABLE
        })
    }
}
