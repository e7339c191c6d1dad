//! One row per finding: a healthy host with one thing wrong gives exactly that finding.

use std::net::Ipv4Addr;

use super::*;
use crate::command::check::facts::{Bridge, Neighbours};
use crate::command::check::text::{Report, render};
use crate::firewall::Obstacle;
use crate::firewall::checks::KernelSettings;

fn echo(slot: u8) -> Echo {
    Echo {
        subnet: format!("10.200.{slot}.0/24").parse().unwrap(),
        public_ip: Ipv4Addr::new(10, 8, 0, slot),
        inside: true,
        outside: true,
        full_size: true,
        direct: false,
    }
}

fn healthy() -> Facts {
    Facts {
        daemon: Daemon::Ready,
        store: None,
        node: Ok(Node {
            subnet: "10.200.8.0/24".parse().unwrap(),
            network: "10.200.0.0/16".parse().unwrap(),
            device: "flannel.1".parse().unwrap(),
            parent: "wg0".parse().unwrap(),
            mtu: 1370,
            port: 8472,
        }),
        drift: Drift::default(),
        underlay_mtu: Some(1420),
        bridges: vec![Bridge {
            name: "cni0".parse().unwrap(),
            address: Ipv4Addr::new(10, 200, 8, 1),
            mtu: 1370,
        }],
        subnet_env: Some("10.200.8.0/24".parse().unwrap()),
        rules: None,
        obstacles: Vec::new(),
        settings: KernelSettings {
            ip_forward: Some(1),
            bridge_nf_call_iptables: Some(1),
            rp_filter_all: Some(0),
            rp_filter: Vec::new(),
        },
        kernel: Some(KernelVersion(6, 1)),
        tx_checksum: Some(true),
        managers: Vec::new(),
        neighbours: Some(Neighbours { used: 40, limit: 1024 }),
        skews: vec![("https://10.8.0.101:2379".to_owned(), -1)],
        echoes: vec![echo(53), echo(72)],
        unchecked: Vec::new(),
    }
}

/// A fault made on purpose, and the names of the findings it must give.
type Fault = (&'static [&'static str], fn(&mut Facts));

const FAULTS: [Fault; 31] = [
    (&[], |_| {}),
    (&["daemon-not-ready"], |facts| {
        facts.daemon = Daemon::NotReady(
            "10.200.8.0/24 over wg0 (10.8.0.111); peers: 2; the lease has expired".to_owned(),
        );
    }),
    (&["daemon-not-running"], |facts| facts.daemon = Daemon::Absent),
    (&["daemon-silent"], |facts| facts.daemon = Daemon::Silent("cannot ask flanneld at /run/x".to_owned())),
    (&["store"], |facts| facts.store = Some("no etcd endpoint answers: http://a:1 refused".to_owned())),
    (&["no-lease"], |facts| facts.node = Err("no lease has its public IP 10.8.0.111".to_owned())),
    (&["store"], |facts| {
        facts.store = Some("refused".to_owned());
        facts.node = Err("refused".to_owned());
    }),
    (&["clock-skew"], |facts| {
        facts.skews = vec![("http://a:1".to_owned(), 130), ("http://b:1".to_owned(), -6)];
    }),
    (&[], |facts| facts.skews = vec![("http://a:1".to_owned(), 5)]),
    (&["managed-device", "managed-device"], |facts| {
        facts.managers = vec![Manager::Networkd, Manager::NetworkManager];
    }),
    (&["device-drift"], |facts| facts.drift.device = vec!["ip link set flannel.1 mtu 1370".to_owned()]),
    (&["daemon-not-running", "entry-drift"], |facts| {
        facts.daemon = Daemon::Absent;
        facts.echoes[1].inside = false;
        facts.drift.entries = (0..7).map(|slot| format!("ip route replace 10.200.{slot}.0/24")).collect();
    }),
    (&["foreign-route"], |facts| {
        let theirs = "10.200.53.0/24 via 10.8.0.1 proto static metric 0".to_owned();
        facts.drift.conflicts = vec![("10.200.53.0/24".parse().unwrap(), theirs)];
    }),
    (&["subnet-env"], |facts| facts.subnet_env = None),
    (&["subnet-env"], |facts| facts.subnet_env = Some("10.200.9.0/24".parse().unwrap())),
    (&["mtu"], |facts| {
        facts.underlay_mtu = Some(1419);
        facts.echoes.iter_mut().for_each(|echo| echo.full_size = false);
    }),
    (&[], |facts| facts.underlay_mtu = None),
    (&["old-bridge-address"], |facts| facts.bridges[0].address = Ipv4Addr::new(10, 200, 9, 1)),
    (&["bridge-mtu"], |facts| facts.bridges[0].mtu = 1500),
    (&["firewall"], |facts| facts.rules = Some("iptables-legacy is not installed".to_owned())),
    (&["forward-policy"], |facts| facts.obstacles = vec![Obstacle::Chain("inet guard gate".to_owned())]),
    (&["kernel-setting"], |facts| facts.settings.ip_forward = Some(0)),
    (&["kernel-setting"], |facts| facts.settings.bridge_nf_call_iptables = None),
    (&["kernel-setting"], |facts| facts.settings.rp_filter = vec![("wg0".parse().unwrap(), 1)]),
    (&["checksum-offload"], |facts| facts.kernel = Some(KernelVersion(5, 4))),
    (&[], |facts| (facts.kernel, facts.tx_checksum) = (Some(KernelVersion(5, 4)), Some(false))),
    (&["neighbour-table"], |facts| facts.neighbours = Some(Neighbours { used: 922, limit: 1024 })),
    (&["port-blocked"], |facts| facts.echoes.iter_mut().for_each(|echo| echo.inside = false)),
    (&["port-blocked", "path-mtu"], |facts| {
        facts.echoes[0].inside = false;
        facts.echoes[1].full_size = false;
    }),
    (&["peer-unreachable"], |facts| {
        facts.echoes[1] = Echo { inside: false, outside: false, full_size: false, ..echo(72) };
    }),
    (&[], |facts| {
        // ICMP outside of the tunnel is filtered, or the peer needs no tunnel: neither says anything.
        facts.echoes[0] = Echo { outside: false, full_size: false, ..echo(53) };
        facts.echoes[1] = Echo { inside: false, direct: true, ..echo(72) };
    }),
];

#[test]
fn each_fault_gives_exactly_its_finding() {
    for (place, (expected, fault)) in FAULTS.iter().enumerate() {
        let mut facts = healthy();
        fault(&mut facts);
        let found: Vec<&str> = findings(&facts).iter().map(|finding| finding.name).collect();
        assert_eq!(found, *expected, "row {place}");
    }
}

#[test]
fn every_finding_in_words() {
    let mut text = String::new();
    for (names, fault) in FAULTS.iter().filter(|(names, _)| !names.is_empty()) {
        let mut facts = healthy();
        fault(&mut facts);
        text.push_str(&format!("--- {}\n", names.join(" ")));
        for finding in findings(&facts) {
            text.push_str(&format!("{}\n  cure: {}\n", finding.problem, finding.cure));
        }
    }
    assert_eq!(text, include_str!("golden.txt"));
}

#[test]
fn a_report_counts_and_names_what_was_not_looked_at() {
    let mut facts = healthy();
    let report = |facts: &Facts, unchecked: &[&str]| Report {
        findings: findings(facts),
        peers: facts.echoes.len(),
        unchecked: unchecked.iter().map(|text| (*text).to_owned()).collect(),
    };
    assert_eq!(render(&report(&facts, &[])), "nothing wrong was found on this host; 2 peers asked\n");
    facts.settings.ip_forward = Some(0);
    assert_eq!(
        render(&report(&facts, &["clocks: x"])),
        "1 finding; 2 peers asked\n\n\
         1. kernel-setting: net.ipv4.ip_forward is 0: nothing is forwarded between pods of different nodes\n   \
         cure: sysctl -w net.ipv4.ip_forward=1, and put it into a file in /etc/sysctl.d\n\n\
         not looked at: clocks: x\n"
    );
}
