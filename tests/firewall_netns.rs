//! The firewall in network namespaces: real kernel, real iptables of both variants, real packets.
//!
//! Needs root, iproute2, iptables (both variants) and, for what other programs would do, nft.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

#[path = "firewall_netns/lab.rs"]
mod lab;
#[path = "firewall_netns/packets.rs"]
mod packets;
#[path = "firewall_netns/take_over.rs"]
mod take_over;
#[path = "firewall_netns/upkeep.rs"]
mod upkeep;

use std::time::Duration;

use flanneld::firewall::{Applied, Backend, Firewall, FirewallOptions, Preference, Variant};
use flanneld::model::masquerade::{Overlay, RuleOptions, RuleSet};

use lab::Namespace;

const BACKENDS: [Backend; 3] =
    [Backend::Nftables, Backend::Iptables(Variant::Nft), Backend::Iptables(Variant::Legacy)];

fn options(preference: Preference) -> FirewallOptions {
    FirewallOptions {
        preference,
        enable_nftables: false,
        resync: Duration::from_secs(5),
        lock_wait: Duration::from_secs(1),
    }
}

fn overlay(network: &str, subnet: &str) -> Overlay {
    Overlay { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() }
}

fn rule_options() -> RuleOptions {
    RuleOptions { ip_masq: true, forward_rules: true, fully_random: true, exclude: Vec::new() }
}

fn rules() -> RuleSet {
    RuleSet::new(overlay("10.200.0.0/16", "10.200.43.0/24"), None, &rule_options())
}

/// Makes `auto` or `iptables` choose this backend on a host that has no rules.
fn firewall_for(node: &Namespace, backend: Backend) -> Firewall {
    let preference = match backend {
        Backend::Nftables => Preference::Nftables,
        Backend::Iptables(variant) => {
            node.sh(&format!("{variant} -t mangle -A POSTROUTING -j RETURN"));
            Preference::Iptables
        }
    };
    Firewall::new(options(preference))
}

/// One call of the firewall, which must not leave problems.
async fn ensure(firewall: &mut Firewall, rules: &RuleSet) -> Applied {
    let applied = firewall.ensure(rules).await.unwrap();
    assert_eq!(applied.problems, []);
    applied
}

/// Everything all three firewalls hold, without counters, handles and dates.
fn everything(node: &Namespace) -> String {
    let text = node.sh("for v in legacy nft; do echo $v; iptables-$v-save; done
        for t in 'ip flannel-ipv4' 'ip6 flannel-ipv6'; do nft -s list table $t 2>/dev/null || true; done");
    let without_counter = |line: &str| line.split(" [").next().unwrap_or_default().to_owned() + "\n";
    text.lines().filter(|line| !line.starts_with('#')).map(without_counter).collect()
}
