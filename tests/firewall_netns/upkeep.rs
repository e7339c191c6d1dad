//! What other programs do to our rules, and how it is repaired.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use flanneld::firewall::{Backend, Firewall, FirewallError, Obstacle, Preference, Variant};

use crate::lab::address::{HOST, OUTSIDE};
use crate::lab::{DEADLINE, Lab, Namespace, PLAIN, flow};
use crate::{BACKENDS, ensure, everything, firewall_for, options, rules};

/// Done to our table in nftables. `HANDLE` lists the handles of a chain.
const TO_NFTABLES: [&str; 10] = [
    "nft flush chain ip flannel-ipv4 postrtg",
    "nft delete rule ip flannel-ipv4 postrtg handle $(nft -a list chain ip flannel-ipv4 postrtg | awk '/masquerade/ {print $NF; exit}')",
    "nft insert rule ip flannel-ipv4 postrtg accept",
    "nft insert rule ip flannel-ipv4 forward drop",
    "nft add rule ip flannel-ipv4 forward drop",
    "nft flush chain ip flannel-ipv4 forward; nft delete chain ip flannel-ipv4 forward",
    "nft add chain ip flannel-ipv4 stray",
    "nft 'add table ip flannel-ipv4 { flags dormant; }'",
    "nft delete table ip flannel-ipv4",
    "nft flush ruleset",
];

/// Done to our chains in iptables. `IPT` is the variant.
const TO_IPTABLES: [&str; 9] = [
    "IPT -t nat -F FLANNEL-POSTRTG",
    "IPT -t nat -D FLANNEL-POSTRTG 5",
    "IPT -t nat -I FLANNEL-POSTRTG -j ACCEPT",
    "IPT -I FLANNEL-FWD -j DROP",
    "r=$(IPT -t nat -S FLANNEL-POSTRTG 2 | sed 's/^-A//'); IPT -t nat -D FLANNEL-POSTRTG 1; eval IPT -t nat -A $r",
    "IPT -t nat -F POSTROUTING",
    "IPT -F FORWARD; IPT -F FLANNEL-FWD; IPT -X FLANNEL-FWD",
    "IPT -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
    "printf '*nat\n-A POSTROUTING -s 192.168.9.0/24 -j MASQUERADE\nCOMMIT\n*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n' | IPT-restore",
];

fn scripts(backend: Backend) -> Vec<String> {
    match backend {
        Backend::Nftables => TO_NFTABLES.map(str::to_owned).to_vec(),
        Backend::Iptables(variant) => {
            TO_IPTABLES.map(|script| script.replace("IPT", &variant.to_string())).to_vec()
        }
    }
}

/// Waits for a notification where there are any; the caller looks every so often where there are none.
async fn noticed(firewall: &Firewall) {
    if firewall.choice().unwrap().backend != Backend::Iptables(Variant::Legacy) {
        tokio::time::timeout(DEADLINE, firewall.changed()).await.expect("the change was not noticed");
    }
}

/// Whether there is a reason to look, right now.
async fn is_pending(firewall: &Firewall) -> bool {
    tokio::time::timeout(Duration::ZERO, firewall.changed()).await.is_ok()
}

fn masqueraded(lab: &Lab) -> bool {
    let receiver = lab.outside.socket(Ipv4Addr::UNSPECIFIED, PLAIN);
    let sender = lab.pod.socket(Ipv4Addr::UNSPECIFIED, 0);
    flow(&sender, SocketAddr::from((OUTSIDE, PLAIN)), &receiver) == HOST
}

#[test]
fn interference_is_noticed_and_repaired() {
    for backend in BACKENDS {
        let lab = Lab::new();
        let mut firewall = firewall_for(&lab.node, backend);
        lab.node.block_on(async || {
            ensure(&mut firewall, &rules()).await;
            let good = everything(&lab.node);
            for script in scripts(backend) {
                assert!(!is_pending(&firewall).await, "what we do ourselves is no reason to look again");
                lab.node.sh(&script);
                let start = Instant::now();
                noticed(&firewall).await;
                let applied = ensure(&mut firewall, &rules()).await;
                println!("{backend}: {:?} after {script}", start.elapsed());
                assert_ne!(applied.changes, Vec::<String>::new(), "{script}");
                if !script.contains("restore") && !script.contains("flush ruleset") {
                    assert_eq!(everything(&lab.node), good, "{script}");
                }
                assert!(masqueraded(&lab), "{script}");
            }
        });
    }
}

#[test]
fn flushing_all_of_nftables_is_repaired_in_iptables_nft() {
    let lab = Lab::new();
    let mut firewall = firewall_for(&lab.node, Backend::Iptables(Variant::Nft));
    lab.node.block_on(async || {
        ensure(&mut firewall, &rules()).await;
        lab.node.sh("nft flush ruleset");
        noticed(&firewall).await;
        assert_ne!(ensure(&mut firewall, &rules()).await.changes, Vec::<String>::new());
        assert!(masqueraded(&lab));
    });
}

#[test]
fn what_does_not_concern_us_is_left_alone() {
    for backend in BACKENDS {
        let lab = Lab::new();
        let mut firewall = firewall_for(&lab.node, backend);
        lab.node.block_on(async || {
            ensure(&mut firewall, &rules()).await;
            // Other chains, other tables, and rules behind our jump in the same chain.
            lab.node.sh("for v in legacy nft; do
                    iptables-$v -t nat -N OTHER; iptables-$v -t nat -A OTHER -j RETURN; iptables-$v -A INPUT -i lo -j ACCEPT
                done; nft add table ip other; nft add chain ip other postrtg");
            assert!(!is_pending(&firewall).await);
            lab.node.sh("for v in legacy nft; do
                    iptables-$v -t nat -A POSTROUTING -s 1.2.3.4 -j RETURN; iptables-$v -I FORWARD -s 1.2.3.4 -j ACCEPT
                done");
            let before = everything(&lab.node);
            assert_eq!(ensure(&mut firewall, &rules()).await.changes, Vec::<String>::new());
            assert_eq!(everything(&lab.node), before);
        });
    }
}

#[test]
fn a_policy_of_drop_that_comes_later_is_noticed() {
    let lab = Lab::new();
    let mut firewall = firewall_for(&lab.node, Backend::Nftables);
    lab.node.block_on(async || {
        ensure(&mut firewall, &rules()).await;
        for (script, accepts) in [
            ("iptables-nft -P FORWARD DROP", true),
            ("iptables-nft -P FORWARD ACCEPT", false),
            ("iptables-nft -N GATE; iptables-nft -A FORWARD -j GATE", false),
            ("iptables-nft -A GATE -s 1.2.3.4 -j REJECT", true),
            ("iptables-nft -F GATE", false),
        ] {
            lab.node.sh(script);
            if accepts || script.contains("ACCEPT") || script.contains("-F") {
                noticed(&firewall).await;
            }
            ensure(&mut firewall, &rules()).await;
            let save = lab.node.sh("iptables-nft-save");
            assert_eq!(
                save.contains("-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD"),
                accepts
            );
            assert_eq!(save.contains("FLANNEL-FWD"), accepts, "{script}");
        }
    });
}

#[test]
fn a_policy_of_drop_in_a_legacy_table_that_comes_later_is_seen() {
    let lab = Lab::new();
    let mut firewall = firewall_for(&lab.node, Backend::Nftables);
    lab.node.block_on(async || {
        ensure(&mut firewall, &rules()).await;
        assert!(firewall.resync_every() > options(Preference::Auto).resync, "there is no table yet");
        lab.node.sh("iptables-legacy -P FORWARD DROP");
        ensure(&mut firewall, &rules()).await;
        assert!(masqueraded(&lab));
        assert_eq!(firewall.resync_every(), options(Preference::Auto).resync);
        lab.node.sh("iptables-legacy -P FORWARD ACCEPT");
        ensure(&mut firewall, &rules()).await;
        assert!(!lab.node.sh("iptables-legacy-save").contains("FLANNEL"));
    });
}

#[test]
fn what_other_programs_drop_is_reported_until_it_is_gone() {
    let reject = "-j REJECT --reject-with icmp-host-prohibited";
    for variant in [Variant::Legacy, Variant::Nft] {
        for backend in [Backend::Nftables, Backend::Iptables(variant)] {
            let lab = Lab::new();
            lab.node.feed(
                "nft -f -",
                "table inet guard { chain gate { type filter hook forward priority 5; policy drop; }; }
                 table inet firewalld { chain zones {}; chain out { type filter hook forward priority 10
                    ct state established accept; jump zones; reject with icmpx admin-prohibited; }; }
                 table ip fine { chain forward { type filter hook forward priority 11; ip saddr 1.2.3.4 drop; }; }",
            );
            lab.node.sh(&format!("{variant} -A FORWARD {reject}"));
            let mut firewall = firewall_for(&lab.node, backend);
            lab.node.block_on(async || {
                let chains =
                    ["inet guard gate", "inet firewalld out"].map(|chain| Obstacle::Chain(chain.to_owned()));
                let ahead = Obstacle::RuleAhead(variant, reject.to_owned());
                let expected = [&chains[..], std::slice::from_ref(&ahead)].concat();
                assert_eq!(ensure(&mut firewall, &rules()).await.obstacles, expected, "{backend}");
                assert_eq!(
                    ensure(&mut firewall, &rules()).await.obstacles,
                    expected,
                    "and again, though nothing changed"
                );
                lab.node.sh("nft delete table inet guard; nft delete table inet firewalld");
                let cure = ahead.cure(rules().overlay.network);
                lab.node.sh(cure.split_once(": ").unwrap().1);
                let applied = ensure(&mut firewall, &rules()).await;
                assert_eq!(
                    (applied.obstacles, applied.changes),
                    (vec![], vec![]),
                    "{backend}: the cure stays"
                );
                assert!(masqueraded(&lab), "{backend}");
            });
        }
    }
}

#[test]
fn nftables_needs_no_program() {
    let lab = Lab::new();
    let hide =
        "for f in xtables-nft-multi xtables-legacy-multi nft; do mount --bind /bin/false /usr/sbin/$f; done";
    let mut firewall = Firewall::new(options(Preference::Auto));
    lab.node.block_on(async || {
        lab.node.sh(hide);
        let applied = ensure(&mut firewall, &rules()).await;
        assert_eq!(applied.choice.to_string(), "nftables (no installed iptables has rules)");
        assert!(masqueraded(&lab));
        assert_eq!(ensure(&mut firewall, &rules()).await.changes, Vec::<String>::new());
        assert_eq!(firewall.cleanup().await.unwrap(), ["removed table ip flannel-ipv4"]);
        assert!(!masqueraded(&lab));
    });
}

#[test]
fn nft_lists_our_table_as_meant() {
    let lab = Lab::new();
    let mut firewall = firewall_for(&lab.node, Backend::Nftables);
    lab.node.block_on(async || ensure(&mut firewall, &rules()).await);
    let listed = lab.node.sh("nft list table ip flannel-ipv4 | sed 's/ comment \"flanneld [0-9a-f]*\"//'");
    let expected = "\
table ip flannel-ipv4 {
	comment \"rules for flannel-ipv4\"
	chain postrtg {
		comment \"chain to manage traffic masquerading by flannel\"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.200.43.0/24 ip daddr 10.200.0.0/16 return
		ip saddr 10.200.0.0/16 ip daddr 10.200.43.0/24 return
		ip saddr != 10.200.0.0/16 ip daddr 10.200.43.0/24 return
		ip saddr 10.200.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.200.0.0/16 ip daddr 10.200.0.0/16 masquerade fully-random
	}

	chain forward {
		comment \"chain to accept flannel traffic\"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.200.0.0/16 accept
		ip daddr 10.200.0.0/16 accept
	}
}
";
    assert_eq!(listed, expected);
}

/// Takes the lock of iptables, until the file is dropped.
fn take_lock(node: &Namespace) -> File {
    node.run(|| {
        let file = File::create("/run/xtables.lock").unwrap();
        file.lock().unwrap();
        file
    })
}

#[test]
fn a_held_lock_is_reported_and_delays_only_what_needs_it() {
    for backend in BACKENDS {
        let lab = Lab::new();
        let mut firewall = firewall_for(&lab.node, backend);
        lab.node.block_on(async || {
            let lock = take_lock(&lab.node);
            let mut others = 0;
            let result = {
                let rules = rules();
                let ensured = firewall.ensure(&rules);
                tokio::pin!(ensured);
                loop {
                    // What else the daemon does goes on.
                    tokio::select! {
                        result = &mut ensured => break result,
                        () = tokio::task::yield_now() => others += 1,
                    }
                }
            };
            if backend == Backend::Iptables(Variant::Legacy) {
                assert!(others > 1);
                let error = result.unwrap_err();
                assert!(error.retry());
                assert!(matches!(error, FirewallError::Locked { variant: Variant::Legacy, .. }), "{error}");
                assert!(!masqueraded(&lab));
                drop(lock);
                ensure(&mut firewall, &rules()).await;
            } else {
                assert_eq!(result.unwrap().problems, []);
            }
            assert!(masqueraded(&lab));
        });
    }
}
