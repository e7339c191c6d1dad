//! `flanneld status` and `flanneld cleanup` beside real daemons.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Result, ensure};
use netns_tests::flanneld::{Told, told, told_under};
use netns_tests::lab::PREFIX;
use netns_tests::{Api, Flanneld, Lab, Node, Spec, binaries, eventually, lab};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn status(node: &Node) -> Result<(Told, Value)> {
    let told = told(node, &["status", "--json"])?;
    let value = told.json()?;
    Ok((told, value))
}

#[test]
fn status_tells_what_daemon_and_kernel_hold_and_what_was_put_right() -> Result<()> {
    let mut lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    daemons[0].wait_rules()?;
    let node = lab.node(1)?.clone();
    let (own, peer) = (lab.lease(1)?, lab.lease(2)?);
    let (told_now, value) = status(&node)?;
    assert_eq!(told_now.code, Some(0), "{told_now:?}");
    assert_eq!((&value["ready"], &value["lease"]["subnet"]), (&json!(true), &json!(own.subnet)));
    let expected = json!([{
        "subnet": peer.subnet, "public_ip": peer.public_ip, "vtep_mac": peer.vtep_mac, "direct": false, "problem": null,
    }]);
    assert_eq!((&value["peers"], &value["device_differences"]), (&expected, &json!([])));
    assert!(value["store"]["revision"].as_u64() > Some(1), "{value:#}");
    assert_eq!(value["rules"]["in_force"], true);
    let mode = std::fs::metadata(node.host_path("/run/flannel/flanneld.sock"))?.mode();
    assert_eq!(mode & 0o777, 0o600);

    node.run(&format!("ip route del {}", peer.subnet))?;
    lab.eventually(&daemons[0], "the repair is told", || {
        let (_, value) = status(&node)?;
        let repair = &value["repairs"][0];
        ensure!((&repair["kind"], &repair["count"]) == (&json!("route"), &json!(1)), "{value:#}");
        Ok(())
    })?;

    // The kernel is looked at when somebody asks: a daemon that stands still tells what it wants all the same.
    daemons[0].process().signal(Signal::SIGSTOP)?;
    let stuck = told(&node, &["status"])?;
    assert!(stuck.code == Some(1) && stuck.err.contains("stopped or stuck"), "{stuck:?}");
    daemons[0].process().signal(Signal::SIGCONT)?;

    lab.etcd_mut().stop(0)?;
    lab.eventually(&daemons[0], "the store is down", || {
        let told = told(&node, &["status"])?;
        ensure!(told.code == Some(1) && told.out.contains("DOWN"), "{told:?}");
        Ok(())
    })?;

    daemons.remove(0).stop(Signal::SIGTERM)?;
    assert!(!node.exists("/run/flannel/flanneld.sock"), "a clean stop takes the socket along");
    let nobody = told(&node, &["status"])?;
    assert!(nobody.code == Some(3) && nobody.err.contains("journalctl -u flanneld"), "{nobody:?}");
    Ok(())
}

#[test]
fn a_password_is_seen_nowhere() -> Result<()> {
    const PASSWORD: &str = "correct-horse-7f3a";
    let mut lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    lab.etcd_mut().enable_login("root", PASSWORD)?;
    let node = lab.node(1)?;
    let options = lab.options(1).flag("etcd-username", "root").flag("v", "4");
    let login = |password: &str| options.clone().env("FLANNELD_ETCD_PASSWORD", password);
    // A refused one first: what failed is logged, too, and the next daemon's log goes on behind it.
    let refused = Flanneld::start(node, &login("correct-horse-7f3b"))?;
    lab.eventually(&refused, "the login is refused", || {
        ensure!(refused.process().log().contains("authentication failed"), "not said");
        Ok(())
    })?;
    refused.stop(Signal::SIGKILL)?;
    let mut daemon = Flanneld::start(node, &login(PASSWORD))?;
    daemon.wait_ready()?;
    let mut check = Command::new(binaries::flanneld()?);
    check.env("FLANNELD_ETCD_PASSWORD", PASSWORD);
    let words: Vec<String> =
        ["check", "--json"].map(str::to_owned).into_iter().chain(options.words()).collect();
    let checks = [told_under(node, check, &words)?, told(node, &["check", "--json"])?];
    for check in &checks {
        assert_eq!(check.json()?["unchecked"], json!([]), "it could not log in: {check:?}");
    }
    let command_line = std::fs::read(format!("/proc/{}/cmdline", daemon.process().pid()))?;
    let shown = [
        ("log", daemon.process().log()),
        ("status", format!("{:?}", told(node, &["status", "--json"])?)),
        ("check, with its own and with the daemon's options", format!("{checks:?}")),
        ("metrics", daemon.http("/metrics")?.1),
        ("command line", String::from_utf8_lossy(&command_line).into_owned()),
    ];
    for (what, text) in shown {
        ensure!(text.len() > 100 && !text.contains("horse"), "{what}: {text}");
    }
    Ok(())
}

/// Everything that `flanneld` could leave behind, as a person would dump it.
fn dumps(node: &Node) -> Result<String> {
    let lines = [
        "ip -d link show",
        "ip -d address show",
        "ip -d route show table all",
        "ip -6 route show table all",
        "ip rule show",
        "ip neigh show nud permanent",
        "bridge fdb show",
        "nft list ruleset",
        "iptables-legacy-save",
        "iptables-nft-save",
        "ls -A /run/flannel",
    ];
    let mut text = String::new();
    for line in lines {
        text.push_str(&format!("--- {line}\n"));
        // Dates in comments and the counters of policies say when, not what.
        let kept = node.run(line)?;
        let kept = kept.lines().filter(|line| !line.starts_with('#'));
        kept.for_each(|line| text.push_str(&format!("{}\n", line.split(" [").next().unwrap_or_default())));
    }
    Ok(text)
}

/// Fails with the lines that differ.
fn ensure_same(now: &str, before: &str, what: &str) -> Result<()> {
    let more = now.lines().filter(|line| !before.lines().any(|other| other == *line));
    let less = before.lines().filter(|line| !now.lines().any(|other| other == *line));
    let lines = more.map(|line| format!("+ {line}")).chain(less.map(|line| format!("- {line}")));
    let lines: Vec<String> = lines.collect();
    ensure!(now == before, "{what}:\n{}", lines.join("\n"));
    Ok(())
}

/// What an operator had before: things that look like ours, and rules where ours will stand.
fn furnish(node: &Node, iptables: &str) -> Result<()> {
    let commands = [
        "mkdir -p /run/flannel",
        "ip link add flannel.7 type veth peer name veth7",
        "ip link set flannel.7 up",
        "ip link add flannel.9 type vxlan id 99 dev eth0 dstport 4789",
        "ip route add 10.200.0.0/24 via 10.8.0.101 proto static",
        "ip route add blackhole 10.201.0.0/16 proto boot",
        "nft add table ip mine",
        "nft add chain ip mine post { type nat hook postrouting priority 90 ; }",
        "nft add rule ip mine post ip saddr 192.0.2.0/24 masquerade",
    ];
    for line in commands {
        node.run(line)?;
    }
    for rule in
        ["-t nat -A POSTROUTING -s 198.51.100.0/24 -j MASQUERADE", "-A FORWARD -s 198.51.100.0/24 -j ACCEPT"]
    {
        node.run(&format!("{iptables} {rule}"))?;
    }
    // The kernel tells of a missing carrier in its own time.
    eventually(lab::CONVERGENCE, "flannel.7 has no carrier", || {
        let shown = node.run("ip link show flannel.7")?;
        ensure!(shown.contains("LOWERLAYERDOWN"), "{shown}");
        Ok(())
    })
}

fn masquerading(lab: &Lab, number: u8, firewall: &str) -> Result<Flanneld> {
    let options = lab.options(number).flag("ip-masq", "true").flag("firewall", firewall);
    let mut daemon = Flanneld::start(lab.node(number)?, &options.flag("ip-blackhole-route", "true"))?;
    daemon.wait_ready()?;
    daemon.wait_rules()?;
    Ok(daemon)
}

#[test]
fn cleanup_leaves_what_was_there_before_the_first_start() -> Result<()> {
    let network_config = r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    let lab = Lab::start(&Spec { nodes: 2, network_config: network_config.to_owned(), ..Spec::default() })?;
    // A peer for whose subnet there is a route on the underlay.
    let key = "/kubernetes-cluster/network/subnets/10.200.201.0-24";
    lab.etcd().put(key, &netns_tests::lease::value("10.8.0.101", "02:00:00:00:00:0a"))?;
    for (number, iptables, firewalls) in
        [(1, "iptables-legacy", &["nftables", "iptables"][..]), (2, "iptables-nft", &["iptables"])]
    {
        let node = lab.node(number)?;
        furnish(node, iptables)?;
        let before = dumps(node)?;
        for firewall in firewalls {
            let daemon = masquerading(&lab, number, firewall)?;
            let during = dumps(node)?;
            for part in ["flannel.1:", "proto 149", "blackhole 10.200.", "subnet.env"] {
                assert!(during.contains(part), "{part} is missing:\n{during}");
            }
            let early = told(node, &["cleanup"])?;
            assert!(early.code == Some(1) && early.err.contains("stop it first"), "{early:?}");
            ensure_same(&dumps(node)?, &during, "something was touched although the daemon runs")?;
            daemon.stop(Signal::SIGKILL)?;
            // The socket of a killed daemon stays, and goes with the rest.
            let cleaned = told(node, &["cleanup"])?;
            assert_eq!(cleaned.code, Some(0), "{cleaned:?}");
            ensure_same(&dumps(node)?, &before, &format!("{firewall}, after {cleaned:?}"))?;
            let again = told(node, &["cleanup"])?;
            assert_eq!(again.code, Some(0), "{again:?}");
            assert_eq!(
                again.out,
                "left device flannel.7: it is no VXLAN device\nleft device flannel.9: its VNI is 99\n"
            );
        }
    }
    Ok(())
}

#[test]
fn cleanup_removes_only_the_part_that_was_chosen() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let node = lab.node(1)?;
    let options = lab.options(1).flag("ip-masq", "true").flag("firewall", "nftables");
    let options = options.without("healthz-port").without("healthz-ip");
    let mut daemon = Flanneld::start(node, &options)?;
    daemon.wait_ready()?;
    daemon.wait_rules()?;
    assert_eq!(node.run("ss -Hltn")?, "", "nothing listens that nobody asked for");
    let other = lab.flanneld(2)?;
    daemon.stop(Signal::SIGTERM)?;

    let cleaned = told(node, &["cleanup", "--firewall"])?;
    assert_eq!(
        (cleaned.code, cleaned.out.as_str()),
        (Some(0), "removed table ip flannel-ipv4\n"),
        "{cleaned:?}"
    );
    assert!(node.run("ip link show flannel.1").is_ok() && node.exists("/run/flannel/subnet.env"));
    let subnet = lab.lease(1)?.subnet;

    let lease: Vec<String> =
        ["cleanup".to_owned(), "--lease".to_owned()].into_iter().chain(options.words()).collect();
    let cleaned = told(node, &lease)?;
    assert!(
        cleaned.code == Some(0) && cleaned.out.starts_with(&format!("removed the lease of {subnet} from ")),
        "{cleaned:?}"
    );
    assert!(lab.lease(1).is_err() && lab.lease(2).is_ok(), "only ours goes");
    lab.wait_node_converged(&other)?;
    let again = told(node, &lease)?;
    assert_eq!((again.code, again.out.as_str()), (Some(0), "nothing of flanneld's is here\n"), "{again:?}");

    // A reservation is somebody's will, and another machine's lease is not ours.
    let key = format!("/kubernetes-cluster/network/subnets/{}", subnet.replace('/', "-"));
    lab.etcd().put(&key, &netns_tests::lease::value("10.8.0.111", "02:00:00:00:00:0a"))?;
    let reserved = told(node, &lease)?;
    assert!(reserved.code == Some(0) && reserved.out.contains("it is a reservation"), "{reserved:?}");
    let foreign = netns_tests::lease::value("10.8.0.111", "02:00:00:00:00:0a");
    let foreign = foreign.replacen('{', r#"{"NodeID":"0123456789abcdef","#, 1);
    lab.etcd().put_leased(&key, &foreign, 600)?;
    let refused = told(node, &lease)?;
    assert!(refused.code == Some(1) && refused.out.contains("belongs to another machine"), "{refused:?}");
    assert!(lab.lease(1).is_ok());
    Ok(())
}

#[test]
fn cleanup_is_forced_beside_a_running_daemon_and_a_lease_of_v2_is_given_back() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, etcd_api: Api::V2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    let (node, own) = (lab.node(1)?, lab.lease(1)?);
    let lease: Vec<String> =
        ["cleanup".to_owned(), "--lease".to_owned()].into_iter().chain(lab.options(1).words()).collect();
    let refused = told(node, &lease)?;
    assert!(refused.code == Some(1) && refused.err.contains("or say --force"), "{refused:?}");

    // Something was really removed: the daemon has something to put back.
    let forced = told(node, &["cleanup", "--force"])?;
    assert_eq!(forced.code, Some(0), "{forced:?}");
    assert!(forced.out.contains("removed device flannel.1\n"), "{forced:?}");
    assert!(forced.out.contains("removed /run/flannel/subnet.env\n"), "{forced:?}");
    lab.wait_converged(&daemons)?;
    lab.eventually(&daemons[0], "subnet.env is back", || {
        ensure!(node.exists("/run/flannel/subnet.env"), "missing");
        Ok(())
    })?;
    assert_eq!(lab.lease(1)?.subnet, own.subnet, "a lease goes only when it is chosen");

    daemons.remove(0).stop(Signal::SIGTERM)?;
    let cleaned = told(node, &lease)?;
    let expected = format!("removed the lease of {} from etcd v2 at ", own.subnet);
    assert!(cleaned.code == Some(0) && cleaned.out.starts_with(&expected), "{cleaned:?}");
    assert!(lab.lease(1).is_err() && lab.lease(2).is_ok(), "only ours goes");
    // A Go node that watches sees it go, too: it does not understand a conditional deletion.
    let mut after = own.stored.create_revision;
    loop {
        let target = format!("{PREFIX}/subnets?recursive=true&wait=true&waitIndex={after}");
        let (_, event) = lab.etcd().v2().request("GET", &target, "")?;
        if event["action"] == "expire" {
            assert_eq!(event["node"]["key"], json!(own.stored.key));
            break;
        }
        after = event["node"]["modifiedIndex"].as_i64().unwrap() + 1;
    }
    lab.wait_converged(&daemons)?;
    let again = told(node, &lease)?;
    assert_eq!((again.code, again.out.as_str()), (Some(0), "nothing of flanneld's is here\n"), "{again:?}");
    Ok(())
}
