//! Taking over from the Go daemon, from another choice of firewall and from other values, under traffic.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use flanneld::firewall::{Backend, Firewall, FirewallOptions, Preference, Variant};
use flanneld::model::masquerade::RuleSet;

use crate::lab::address::{HOST, OUTSIDE};
use crate::lab::{Lab, Namespace, PLAIN};
use crate::{BACKENDS, ensure, everything, firewall_for, options, overlay, packets, rule_options, rules};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/firewall");
const GO_VERSIONS: [&str; 3] = ["v0.16.1", "v0.20.2", "v0.28.9"];
/// New flows before and after a change, besides those during it.
const FLOWS_BEFORE: u16 = 100;
const FLOWS_AFTER: u16 = 500;
/// Source port of the first flow; each further one has the next.
const FIRST_PORT: u16 = 5_000;
/// Number of the datagram that ends a series of flows.
const END: u16 = u16::MAX;

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

/// Opens 1 000 new flows a second from a pod to the outside, from before `work` begins until some time after it. Each must
/// arrive, and masqueraded. Answers with how many flows there were.
fn under_traffic(lab: &Lab, work: impl FnOnce() + Send) -> u16 {
    let done = AtomicBool::new(false);
    let receiver = lab.outside.socket(Ipv4Addr::UNSPECIFIED, PLAIN);
    socket2::SockRef::from(&receiver).set_recv_buffer_size(1 << 22).unwrap();
    let (started, wait) = mpsc::channel();
    thread::scope(|scope| {
        let sender = scope.spawn(|| lab.pod.run(|| send_flows(&done, started)));
        let arrived = scope.spawn(|| receive_flows(&receiver));
        wait.recv().unwrap();
        let worked = catch_unwind(AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap_or_else(|panic| resume_unwind(panic));
        let arrived = arrived.join().unwrap_or_else(|panic| resume_unwind(panic));
        worked.unwrap_or_else(|panic| resume_unwind(panic));
        let elsewhere: Vec<_> = arrived.iter().filter(|(_, source)| **source != HOST).collect();
        assert_eq!(elsewhere, [], "not masqueraded");
        assert_eq!(arrived.len(), usize::from(sent) + 1, "some flows did not arrive");
        sent
    })
}

/// Each flow is one datagram with its number, from a port no other flow had. What the scheduler delays is made up for.
fn send_flows(done: &AtomicBool, started: mpsc::Sender<()>) -> u16 {
    let (start, mut next, mut last) = (Instant::now(), 0_u16, None);
    let mut started = Some(started);
    while last.is_none_or(|last| next < last) {
        let due = u16::try_from(start.elapsed().as_millis()).expect("a minute of flows is enough");
        for number in next..due {
            let socket = UdpSocket::bind(("0.0.0.0", FIRST_PORT + number)).unwrap();
            socket.send_to(&number.to_be_bytes(), (OUTSIDE, PLAIN)).unwrap();
        }
        next = next.max(due);
        if next > FLOWS_BEFORE
            && let Some(started) = started.take()
        {
            started.send(()).unwrap();
        }
        if last.is_none() && done.load(Ordering::Relaxed) {
            last = Some(next + FLOWS_AFTER);
        }
        thread::sleep(Duration::from_millis(1));
    }
    let end = UdpSocket::bind("0.0.0.0:0").unwrap();
    end.send_to(&END.to_be_bytes(), (OUTSIDE, PLAIN)).unwrap();
    next
}

/// The flows until the last, with the source address each was seen with.
fn receive_flows(receiver: &UdpSocket) -> BTreeMap<u16, IpAddr> {
    let mut flows = BTreeMap::new();
    while !flows.contains_key(&END) {
        let mut number = [0; 2];
        let (_, from) = receiver.recv_from(&mut number).expect("the flows have stopped");
        flows.insert(u16::from_be_bytes(number), from.ip());
    }
    flows
}

fn take_over(lab: &Lab, preference: Preference) -> (Backend, Vec<String>) {
    let mut result = (Backend::Nftables, Vec::new());
    let mut took = Duration::ZERO;
    let flows = under_traffic(lab, || {
        let start = Instant::now();
        result = lab.node.block_on(async || {
            let mut firewall = Firewall::new(options(preference));
            let applied = ensure(&mut firewall, &rules()).await;
            let again = ensure(&mut firewall, &rules()).await;
            assert_eq!(again.changes, Vec::<String>::new(), "a second look finds nothing to do");
            (applied.choice.backend, applied.changes)
        });
        took = start.elapsed();
    });
    println!("{flows} flows, all masqueraded; the change took {took:?}");
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
        assert_eq!(second.to_lowercase().matches("random").count(), 2, "{second}");
        let mut plain = rule_options();
        plain.fully_random = false;
        let in_order = put(&mut firewall, overlay("10.200.0.0/16", "10.200.7.0/24"), &plain);
        assert_eq!(
            in_order.to_lowercase().replace("random", "").matches("masquerade").count(),
            2,
            "{in_order}"
        );
        assert!(!in_order.to_lowercase().contains("random"), "{in_order}");
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

/// What decides, on real hosts; the whole table is in `src/firewall/choice.rs`.
#[test]
fn the_choice_follows_config_and_host_and_says_why() {
    let legacy = "iptables-legacy -A INPUT -i lo -j ACCEPT";
    let nft = "iptables-nft -A INPUT -i lo -j ACCEPT";
    for (host, enable_nftables, expected) in [
        ("true", false, "nftables (no installed iptables has rules)"),
        (legacy, false, "iptables-legacy (the host has rules in iptables-legacy)"),
        (nft, false, "iptables-nft (the host has rules in iptables-nft)"),
        (&*format!("{legacy}; {nft}"), false, "iptables-legacy (the host has rules in iptables-legacy)"),
        (&*format!("{legacy}; {nft}"), true, "nftables (EnableNFTables in the network config)"),
    ] {
        let lab = Lab::new();
        lab.node.sh(host);
        let mut firewall = Firewall::new(FirewallOptions { enable_nftables, ..options(Preference::Auto) });
        lab.node.block_on(async || {
            assert_eq!(ensure(&mut firewall, &rules()).await.choice.to_string(), expected, "{host}");
        });
    }
}
