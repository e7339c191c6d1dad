//! Taking over from the Go daemon, from another choice of firewall and from other values, under traffic.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use flanneld::firewall::{Backend, Firewall, Preference, Variant};
use flanneld::model::masquerade::RuleSet;

use crate::lab::address::{HOST, OUTSIDE};
use crate::lab::{DEADLINE, Lab, Namespace, PLAIN, flow};
use crate::{BACKENDS, ensure, everything, firewall_for, options, overlay, packets, rule_options, rules};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/firewall");
const GO_VERSIONS: [&str; 3] = ["v0.16.1", "v0.20.2", "v0.28.9"];
/// New flows that have to be masqueraded after a change, besides those during it.
const FLOWS: usize = 500;

/// Rules that look like flanneld's but are not: an operator's.
const FOREIGN: &str = "iptables-VARIANT -t nat -I POSTROUTING -s 10.200.0.0/16 -d 10.9.0.0/16 -j RETURN
    iptables-VARIANT -t nat -A POSTROUTING ! -s 10.200.0.0/16 -d 10.77.0.0/16 -j MASQUERADE
    iptables-VARIANT -A FORWARD -s 10.77.0.0/16 -j ACCEPT
    iptables-VARIANT -A FORWARD -d 10.77.0.0/16 -j ACCEPT
    iptables-VARIANT -A FORWARD -s 10.200.0.0/16 -p icmp -j ACCEPT";

/// What a version of the Go daemon left in a variant of iptables, for this lab's node.
pub(crate) fn go_rules(version: &str, variant: &str) -> String {
    // v0.20.2 was recorded with one variant only; the texts of both are the same.
    let variant = if version == "v0.20.2" { "nft" } else { variant };
    let text = fs::read_to_string(format!("{FIXTURES}/{version}-{variant}.save")).unwrap();
    for_this_node(&text)
}

/// Recorded rules with the recorded node's subnet replaced by that of the lab's node.
fn for_this_node(text: &str) -> String {
    let addresses = text.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '/'));
    let subnet = addresses.into_iter().find(|address| address.ends_with(".0/24")).unwrap();
    text.replace(subnet, "10.200.43.0/24")
}

/// Opens new flows from a pod to the outside while `work` runs and for some time after. Each must arrive masqueraded.
fn under_traffic(lab: &Lab, work: impl FnOnce() + Send) -> usize {
    let done = AtomicBool::new(false);
    let receiver = lab.outside.socket(Ipv4Addr::UNSPECIFIED, PLAIN);
    let new_flow = || {
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        sender.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(flow(&sender, SocketAddr::from((OUTSIDE, PLAIN)), &receiver), HOST, "not masqueraded");
    };
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            lab.pod.run(|| {
                let mut during = 0;
                while !done.load(Ordering::Relaxed) {
                    new_flow();
                    during += 1;
                }
                (0..FLOWS).for_each(|_| new_flow());
                during
            })
        });
        let worked = catch_unwind(AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let during = traffic.join();
        worked.and(during).unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn take_over(lab: &Lab, preference: Preference) -> (Backend, Vec<String>) {
    let mut result = (Backend::Nftables, Vec::new());
    let start = Instant::now();
    let during = under_traffic(lab, || {
        result = lab.node.block_on(async || {
            let mut firewall = Firewall::new(options(preference));
            let applied = ensure(&mut firewall, &rules()).await;
            let again = ensure(&mut firewall, &rules()).await;
            assert_eq!(again.changes, Vec::<String>::new(), "a second look finds nothing to do");
            (applied.choice.backend, applied.changes)
        });
    });
    println!("{during} flows during the change, {FLOWS} after it, in {:?}", start.elapsed());
    result
}

/// The rules of a variant, without tables and chains that hold none.
fn rule_lines(node: &Namespace, variant: &str) -> Vec<String> {
    let save = node.sh(&format!("iptables-{variant}-save"));
    save.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
}

fn check_take_over(variant: &str, preference: Preference) {
    for version in GO_VERSIONS {
        let lab = Lab::new();
        lab.node.sh(&FOREIGN.replace("VARIANT", variant));
        let foreign = rule_lines(&lab.node, variant);
        lab.node.feed(&format!("iptables-{variant}-restore --noflush"), &go_rules(version, variant));
        println!("{version} in iptables-{variant} to {preference:?}");
        let (backend, changes) = take_over(&lab, preference);
        let same = version == "v0.28.9" && backend != Backend::Nftables;
        assert_eq!(changes.is_empty(), same, "what is right already is not touched: {changes:?}");
        let mut left = rule_lines(&lab.node, variant);
        if backend != Backend::Nftables {
            assert_eq!(backend.to_string(), format!("iptables-{variant}"));
            let ours = go_rules("v0.28.9", variant);
            for line in ours.lines().filter(|line| line.starts_with("-A")) {
                let at = left.iter().position(|left| left == line).unwrap_or_else(|| panic!("{line}"));
                left.remove(at);
            }
        }
        assert_eq!(left, foreign, "{version}");
        lab.add_services();
        packets::check(&lab);
    }
}

#[test]
fn from_go_in_iptables_nft() {
    check_take_over("nft", Preference::Auto);
}

#[test]
fn from_go_in_iptables_legacy() {
    check_take_over("legacy", Preference::Auto);
}

#[test]
fn from_go_in_iptables_nft_to_nftables() {
    check_take_over("nft", Preference::Nftables);
}

#[test]
fn from_go_in_iptables_legacy_to_nftables() {
    check_take_over("legacy", Preference::Nftables);
}

#[test]
fn from_go_in_both_variants_at_once() {
    let lab = Lab::new();
    lab.node.feed("iptables-nft-restore", &go_rules("v0.16.1", "nft"));
    lab.node.feed("iptables-legacy-restore", &go_rules("v0.28.9", "legacy"));
    let (backend, _) = take_over(&lab, Preference::Auto);
    assert_eq!(backend, Backend::Iptables(Variant::Legacy));
    assert_eq!(rule_lines(&lab.node, "nft"), Vec::<String>::new());
}

#[test]
fn from_go_in_nftables() {
    for preference in [Preference::Nftables, Preference::Iptables] {
        let lab = Lab::new();
        let text = fs::read_to_string(format!("{FIXTURES}/v0.28.9-nftables.nft")).unwrap();
        lab.node.feed("nft -f -", &for_this_node(&text));
        take_over(&lab, preference);
        let tables = lab.node.sh("nft list tables");
        assert_eq!(tables.contains("flannel-ipv4"), preference == Preference::Nftables, "{tables}");
        assert_eq!(tables.contains("flannel-ipv6"), preference == Preference::Nftables, "{tables}");
    }
}

/// A host where all tables exist, so that only what is left behind makes a difference.
fn host_with_tables() -> Lab {
    let lab = Lab::new();
    lab.node.sh("for v in legacy nft; do for t in nat filter mangle; do
            iptables-$v -t $t -A OUTPUT -j RETURN; iptables-$v -t $t -F; done; done");
    lab
}

/// Puts the rules into a firewall and takes away what made it the choice.
fn put_into(node: &Namespace, backend: Backend, rules: &RuleSet) {
    let mut firewall = firewall_for(node, backend);
    node.block_on(async || assert_eq!(ensure(&mut firewall, rules).await.choice.backend, backend));
    node.sh("for v in legacy nft; do iptables-$v -t mangle -F; done");
}

fn cleanup(node: &Namespace) {
    let mut firewall = Firewall::new(options(Preference::Auto));
    node.block_on(async || firewall.cleanup().await.unwrap());
}

#[test]
fn another_choice_leaves_nothing_behind() {
    const LEGACY: Backend = Backend::Iptables(Variant::Legacy);
    const NFT: Backend = Backend::Iptables(Variant::Nft);
    for (former, backend) in [
        (Backend::Nftables, LEGACY),
        (Backend::Nftables, NFT),
        (LEGACY, Backend::Nftables),
        (NFT, Backend::Nftables),
        (NFT, LEGACY),
    ] {
        println!("{former} to {backend}");
        let lab = host_with_tables();
        let before = everything(&lab.node);
        put_into(&lab.node, backend, &rules());
        let expected = everything(&lab.node);
        cleanup(&lab.node);
        assert_eq!(everything(&lab.node), before);

        put_into(&lab.node, former, &rules());
        under_traffic(&lab, || put_into(&lab.node, backend, &rules()));
        assert_eq!(everything(&lab.node), expected);
        cleanup(&lab.node);
        assert_eq!(everything(&lab.node), before);
    }
}

#[test]
fn other_values_leave_nothing_behind() {
    for backend in BACKENDS {
        let lab = host_with_tables();
        let mut firewall = firewall_for(&lab.node, backend);
        let put = |firewall: &mut Firewall, overlay, options: &_| {
            let rules = RuleSet::new(overlay, None, options);
            lab.node.block_on(async || ensure(firewall, &rules).await);
            everything(&lab.node)
        };
        let first = put(&mut firewall, overlay("10.200.0.0/16", "10.200.43.0/24"), &rule_options());
        assert_eq!(first.matches("10.200.43.0/24").count() % 3, 0);
        let second = put(&mut firewall, overlay("10.200.0.0/16", "10.200.7.0/24"), &rule_options());
        assert!(!second.contains("10.200.43.0"), "{second}");
        let third = put(&mut firewall, overlay("10.100.0.0/16", "10.100.7.0/24"), &rule_options());
        assert!(!third.contains("10.200."), "{third}");
        let mut none = rule_options();
        none.ip_masq = false;
        let without = put(&mut firewall, overlay("10.200.0.0/16", "10.200.43.0/24"), &none);
        assert!(!without.contains("masquerade") && !without.contains("MASQUERADE"), "{without}");
        none.forward_rules = false;
        let nothing = put(&mut firewall, overlay("10.200.0.0/16", "10.200.43.0/24"), &none);
        assert!(!nothing.contains("10.200.") && !nothing.to_lowercase().contains("flannel"), "{nothing}");
        let again = put(&mut firewall, overlay("10.200.0.0/16", "10.200.43.0/24"), &rule_options());
        assert_eq!(again, first);
    }
}
