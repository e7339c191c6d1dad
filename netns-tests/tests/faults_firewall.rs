//! What other programs do to our rules is repaired under traffic: a thousand new flows a second leave a pod meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use netns_tests::fault::Measured;
use netns_tests::flows::{Flows, with_flows};
use netns_tests::namespaces::Entry;
use netns_tests::nft_monitor::NftMonitor;
use netns_tests::{Flanneld, Lab, Node, Pod, Spec};

/// Done to our table. A fault in words and a shell script.
const TO_NFTABLES: [(&str, &str); 10] = [
    ("chain flushed", "nft flush chain ip flannel-ipv4 postrtg"),
    (
        "one rule deleted",
        "nft delete rule ip flannel-ipv4 postrtg handle $(nft -a list chain ip flannel-ipv4 postrtg | awk '/masquerade/ {print $NF; exit}')",
    ),
    (
        "one rule moved to the end",
        "h=$(nft -a list chain ip flannel-ipv4 postrtg | awk '/masquerade/ {print $NF; exit}')
         nft \"add rule ip flannel-ipv4 postrtg ip saddr 10.200.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
         delete rule ip flannel-ipv4 postrtg handle $h\"",
    ),
    ("foreign accept in front of ours", "nft insert rule ip flannel-ipv4 postrtg accept"),
    ("foreign drop in front of ours", "nft insert rule ip flannel-ipv4 forward drop"),
    ("foreign chain in our table", "nft add chain ip flannel-ipv4 stray"),
    ("chain deleted", "nft flush chain ip flannel-ipv4 postrtg; nft delete chain ip flannel-ipv4 postrtg"),
    ("table made dormant", "nft 'add table ip flannel-ipv4 { flags dormant; }'"),
    ("nft flush ruleset", "nft flush ruleset"),
    (
        "full reload by another tool",
        "printf 'flush ruleset\\ntable inet fw { chain in { type filter hook input priority 0; iif lo accept; }; }\\n' | nft -f -",
    ),
];

/// Done to our chains in iptables. `IPT` is the variant. Each in one transaction: we are faster than a second command.
const TO_IPTABLES: [(&str, &str); 9] = [
    ("chain flushed", "IPT -t nat -F FLANNEL-POSTRTG"),
    ("one rule deleted", "IPT -t nat -D FLANNEL-POSTRTG 5"),
    (
        "first rule moved to the end",
        "r=$(IPT -t nat -S FLANNEL-POSTRTG | sed -n '2s/^-A //p')
         printf '*nat\\n-D %s\\n-A %s\\nCOMMIT\\n' \"$r\" \"$r\" | IPT-restore --noflush",
    ),
    ("foreign accept in front of ours", "IPT -t nat -I FLANNEL-POSTRTG -j ACCEPT"),
    ("foreign drop in front of ours", "IPT -I FLANNEL-FWD -j DROP"),
    ("jump deleted", "IPT -t nat -F POSTROUTING"),
    ("second jump", "IPT -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG"),
    (
        "chain deleted",
        "printf '*nat\\n-F POSTROUTING\\n-F FLANNEL-POSTRTG\\n-X FLANNEL-POSTRTG\\nCOMMIT\\n' | IPT-restore --noflush",
    ),
    (
        "full reload by another tool",
        "printf '*nat\\n-A POSTROUTING -s 192.168.9.0/24 -j MASQUERADE\\nCOMMIT\\n*filter\\n-A INPUT -i lo -j ACCEPT\\nCOMMIT\\n' | IPT-restore",
    ),
];

fn sh(node: &Node, script: &str) -> Result<String> {
    let output = node.output(Command::new("sh").args(["-ec", script]), &Entry::Node)?;
    ensure!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Our rules as the firewall's own program shows them.
fn rules(node: &Node, firewall: &str) -> Result<String> {
    if firewall == "nftables" {
        return node.run("nft list table ip flannel-ipv4");
    }
    let save = node.run(&format!("{firewall}-save"))?;
    Ok(save
        .lines()
        .filter(|line| line.starts_with("-A") && line.contains("FLANNEL"))
        .collect::<Vec<_>>()
        .join("\n"))
}

struct Scene<'a> {
    lab: &'a Lab,
    daemon: &'a Flanneld,
    flows: &'a Flows,
    firewall: &'a str,
}

impl Scene<'_> {
    fn fault(&self, fault: &str, script: &str) -> Result<()> {
        let (node, firewall) = (self.daemon.node(), self.firewall);
        let before = rules(node, firewall)?;
        // Of iptables-legacy nobody is told: there the time counts from the end of the fault.
        let told = firewall != "iptables-legacy";
        let monitor = told.then(|| NftMonitor::start(node)).transpose()?;
        self.flows.forget();
        sh(node, script)?;
        let gone = Instant::now();
        self.lab.eventually(self.daemon, fault, || {
            let now = rules(node, firewall)?;
            ensure!(now == before, "{now}");
            Ok(())
        })?;
        let seen = gone.elapsed();
        self.flows.wait_right(50)?;
        let whole = match monitor {
            Some(monitor) => monitor.span(&["flannel", "FLANNEL", "POSTROUTING"])?.unwrap_or(seen),
            None => seen,
        };
        let silence = Some(self.flows.seen().longest_gap);
        Measured { fault: format!("{firewall}: {fault}"), whole, silence, below: None }.note()
    }
}

fn faults_are_repaired(firewall: &str, faults: &[(&str, &str)]) -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let (node, outside) = (lab.node(1)?, lab.node(2)?);
    if firewall != "nftables" {
        node.run(&format!("{firewall} -A INPUT -i lo -j ACCEPT"))?;
    }
    // What is not masqueraded is to be seen, not to be lost.
    outside.run("ip route add 10.200.0.0/16 via 10.8.0.111")?;
    let options = lab.options(1).flag("ip-masq", "true").flag("iptables-resync", "1");
    let mut daemon = Flanneld::start(node, &options)?;
    daemon.wait_ready()?;
    let pod = Pod::attach(node, "pod")?;
    node.run("sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=1")?;
    with_flows(&pod, (outside, Lab::public_ip(2)), Lab::public_ip(1), |flows| {
        let scene = Scene { lab: &lab, daemon: &daemon, flows, firewall };
        for (fault, script) in faults {
            scene.fault(fault, &script.replace("IPT", firewall))?;
        }
        if firewall == "iptables-nft" {
            scene.fault("nft flush ruleset", "nft flush ruleset")?;
        }
        Ok(())
    })?;
    ensure!(daemon.metric("flanneld_repairs_total{kind=\"firewall\"}")? > 0.0, "no repair is counted");
    Ok(())
}

#[test]
fn faults_in_nftables_are_repaired() -> Result<()> {
    faults_are_repaired("nftables", &TO_NFTABLES)
}

#[test]
fn faults_in_iptables_nft_are_repaired() -> Result<()> {
    faults_are_repaired("iptables-nft", &TO_IPTABLES)
}

#[test]
fn faults_in_iptables_legacy_are_repaired() -> Result<()> {
    faults_are_repaired("iptables-legacy", &TO_IPTABLES)
}
