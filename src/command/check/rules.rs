//! From facts to findings: what is wrong, why that hurts, and what to do. Pure; each rule looks at one thing.

use serde::Serialize;

use super::facts::{Daemon, Drift, Echo, Facts, Manager, Node};
use crate::command::words::{count, span};
use crate::firewall::checks::warnings;
use crate::model::{KernelVersion, Mtu, TxChecksum};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// A name that stays the same, for scripts.
    pub(super) name: &'static str,
    /// What is wrong and what comes of it.
    pub(super) problem: String,
    /// What to do.
    pub(super) cure: String,
}

impl Finding {
    fn new(name: &'static str, problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, problem: problem.into(), cure: cure.into() }
    }
}

/// How many things of one kind are listed before the rest is only counted.
const LISTED: usize = 5;
/// What VXLAN adds to a packet over IPv4.
const OVERHEAD: u32 = Mtu::VXLAN_OVERHEAD;
/// Certificates and log times bear this much.
const SKEW: u64 = 5;
/// Every finding, the likely causes before what follows from them.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let rules = [
        daemon, store, clocks, managers, device, entries, conflicts, subnet_env, mtu, bridges, firewall,
        settings, checksum, neighbours, echoes,
    ];
    rules.iter().flat_map(|rule| rule(facts)).collect()
}

fn daemon(facts: &Facts) -> Vec<Finding> {
    let log = "journalctl -u flanneld -n 50";
    let finding = match &facts.daemon {
        Daemon::Ready => return Vec::new(),
        Daemon::NotReady(state) => {
            Finding::new("daemon-not-ready", format!("flanneld is not ready: {state}"), log)
        }
        Daemon::Absent => Finding::new(
            "daemon-not-running",
            "no flanneld runs here: peers that come, go or move are not followed, nothing is repaired, the lease runs out",
            format!("systemctl start flanneld; if it ends again: {log}"),
        ),
        Daemon::Silent(why) => Finding::new(
            "daemon-silent",
            why.clone(),
            "systemctl status flanneld; if it hangs: systemctl restart flanneld (traffic goes on meanwhile)",
        ),
    };
    vec![finding]
}

fn store(facts: &Facts) -> Vec<Finding> {
    let unreachable = facts.store.iter().map(|why| {
        let cure = "the reason of each endpoint stands there; curl -v ENDPOINT/version with the same certificates shows more. \
                    Give check the daemon's own options if they differ";
        Finding::new("store", format!("the store cannot be read: {why}"), cure)
    });
    let unknown = facts.node.as_ref().err().filter(|_| facts.store.is_none()).map(|why| {
        Finding::new(
            "no-lease",
            format!("it is not known what this node should hold: {why}"),
            "systemctl start flanneld",
        )
    });
    unreachable.chain(unknown).collect()
}

fn clocks(facts: &Facts) -> Vec<Finding> {
    let wrong = facts.skews.iter().filter(|(_, ahead)| ahead.unsigned_abs() > SKEW);
    let texts: Vec<String> = wrong
        .map(|(endpoint, ahead)| {
            let way = if *ahead > 0 { "ahead of" } else { "behind" };
            format!("{endpoint} is {} {way} this host", span(ahead.unsigned_abs()))
        })
        .collect();
    let cure = "keep both clocks right: timedatectl, chronyc tracking";
    some(&texts, |list| {
        let problem = format!("clocks differ, which breaks certificates and misleads who reads logs: {list}");
        Finding::new("clock-skew", problem, cure)
    })
}

fn managers(facts: &Facts) -> Vec<Finding> {
    let Ok(node) = &facts.node else { return Vec::new() };
    let found = facts.managers.iter().map(|manager| {
        let (who, cure) = match manager {
            Manager::Networkd => (
                "systemd-networkd",
                "write [Match] Name=flannel.* and [Link] Unmanaged=yes to /etc/systemd/network/10-flannel.network, then \
                 networkctl reload",
            ),
            Manager::NetworkManager => (
                "NetworkManager",
                "write [keyfile] unmanaged-devices=interface-name:flannel.* to /etc/NetworkManager/conf.d/flannel.conf, then \
                 systemctl reload NetworkManager",
            ),
        };
        let problem = format!("{who} manages {} and may take away its address, routes or MAC", node.device);
        Finding::new("managed-device", problem, cure)
    });
    found.collect()
}

fn device(facts: &Facts) -> Vec<Finding> {
    let name = facts.node.as_ref().map_or("the device", |node| node.device.as_str());
    some(&facts.drift.device, |list| {
        let problem = format!("{name} is not as it should be; to be right it takes: {list}");
        Finding::new("device-drift", problem, repair(facts))
    })
}

fn entries(facts: &Facts) -> Vec<Finding> {
    let entries = &facts.drift.entries;
    some(entries, |list| {
        let problem = match entries.len() {
            1 => format!("an entry for a peer is not as it should be; to be right it takes: {list}"),
            number => {
                format!("{number} entries for peers are not as they should be; to be right it takes: {list}")
            }
        };
        Finding::new("entry-drift", problem, repair(facts))
    })
}

/// Who puts drift right.
fn repair(facts: &Facts) -> &'static str {
    match facts.daemon {
        Daemon::Absent => "start flanneld: it puts this right",
        _ => {
            "flanneld puts this right within a second unless somebody else keeps changing it: ip monitor all, \
             journalctl -u flanneld"
        }
    }
}

fn conflicts(facts: &Facts) -> Vec<Finding> {
    let one = |(subnet, theirs): &(_, String)| {
        Finding::new(
            "foreign-route",
            format!("a route that is not flanneld's leads to the peer's subnet {subnet}: {theirs}"),
            format!("find out who installs it, then: ip route del {theirs}"),
        )
    };
    facts.drift.conflicts.iter().map(one).collect()
}

fn subnet_env(facts: &Facts) -> Vec<Finding> {
    let Ok(node) = &facts.node else { return Vec::new() };
    let says = match facts.subnet_env {
        Some(subnet) if subnet == node.subnet => return Vec::new(),
        Some(subnet) => format!("subnet.env says {subnet}, but this node's subnet is {}", node.subnet),
        None => "subnet.env is missing or names no subnet: no pod can start".to_owned(),
    };
    vec![Finding::new("subnet-env", says, repair(facts))]
}

fn mtu(facts: &Facts) -> Vec<Finding> {
    let (Ok(node), Some(underlay)) = (&facts.node, facts.underlay_mtu) else { return Vec::new() };
    let Node { device, parent, mtu, .. } = node;
    if mtu + OVERHEAD <= underlay {
        return Vec::new();
    }
    let problem = format!(
        "{device} has MTU {mtu}, which with {OVERHEAD} bytes of VXLAN does not fit into the MTU of {parent}, {underlay}: \
         large packets are lost or sent in pieces"
    );
    let cure = format!(
        "let the network config name no MTU, or at most {underlay}; restart flanneld, then the pods. If {parent} should carry \
         more: ip link set {parent} mtu {}",
        mtu + OVERHEAD
    );
    vec![Finding::new("mtu", problem, cure)]
}

fn bridges(facts: &Facts) -> Vec<Finding> {
    let Ok(node) = &facts.node else { return Vec::new() };
    let mut found = Vec::new();
    for bridge in &facts.bridges {
        let name = &bridge.name;
        if !node.subnet.contains(bridge.address) {
            let problem = format!(
                "{name} has {}, but this node's subnet is {}: pods behind it are cut off from other nodes",
                bridge.address, node.subnet
            );
            let cure = format!("drain the node, ip link del {name}, and start the pods again");
            found.push(Finding::new("old-bridge-address", problem, cure));
        } else if bridge.mtu > node.mtu {
            let problem = format!(
                "{name} has MTU {}, {} only {}: pods send packets that do not fit into the tunnel",
                bridge.mtu, node.device, node.mtu
            );
            let cure = "start the pods again: the CNI plugin gives them the MTU of subnet.env";
            found.push(Finding::new("bridge-mtu", problem, cure));
        }
    }
    found
}

fn firewall(facts: &Facts) -> Vec<Finding> {
    let rules = facts.rules.iter().map(|problem| {
        let cure = "journalctl -u flanneld; try -firewall=nftables or -firewall=iptables";
        Finding::new("firewall", format!("the firewall rules: {problem}"), cure)
    });
    let Ok(node) = &facts.node else { return rules.collect() };
    let obstacles = facts.obstacles.iter();
    let obstacles = obstacles
        .map(|obstacle| Finding::new("forward-policy", obstacle.to_string(), obstacle.cure(node.network)));
    rules.chain(obstacles).collect()
}

fn settings(facts: &Facts) -> Vec<Finding> {
    let found = warnings(&facts.settings).into_iter();
    found.map(|warning| Finding::new("kernel-setting", warning.problem, warning.cure)).collect()
}

fn checksum(facts: &Facts) -> Vec<Finding> {
    let (Ok(node), Some(kernel), Some(true)) = (&facts.node, facts.kernel, facts.tx_checksum) else {
        return Vec::new();
    };
    if TxChecksum::Auto.wanted(Some(kernel)) != Some(false) {
        return Vec::new();
    }
    let (device, KernelVersion(major, minor)) = (&node.device, kernel);
    let problem = format!(
        "TX checksum offload of {device} is on, and kernels as old as {major}.{minor} spoil masqueraded packets with it: \
         connections to services hang for a minute"
    );
    let cure = "give flanneld -vxlan-tx-checksum=auto (or off), or run a kernel of at least 5.8";
    vec![Finding::new("checksum-offload", problem, cure)]
}

/// Nine tenths full is too full: new neighbours are refused in bursts before.
fn neighbours(facts: &Facts) -> Vec<Finding> {
    let Some(table) = facts.neighbours else { return Vec::new() };
    if u64::from(table.used) * 10 < u64::from(table.limit) * 9 {
        return Vec::new();
    }
    let problem = format!(
        "the kernel's neighbour table holds {} of at most {} entries: new pods and peers will not be reached",
        table.used, table.limit
    );
    let more = table.limit.saturating_mul(4);
    let cure = format!(
        "sysctl -w net.ipv4.neigh.default.gc_thresh3={more}, and put it into a file in /etc/sysctl.d"
    );
    vec![Finding::new("neighbour-table", problem, cure)]
}

fn echoes(facts: &Facts) -> Vec<Finding> {
    let Ok(node) = &facts.node else { return Vec::new() };
    let tunnelled: Vec<&Echo> = facts.echoes.iter().filter(|echo| !echo.direct).collect();
    let all = tunnelled.len();
    let of = |wanted: fn(&Echo) -> bool| -> Vec<String> {
        let found = tunnelled.iter().filter(|echo| wanted(echo));
        found.map(|echo| format!("{} ({})", echo.public_ip, echo.subnet)).collect()
    };
    // A tunnel that is not programmed as it should be carries nothing: that is told by `device` and `entries`.
    let programmed = facts.drift == Drift::default();
    let blocked = if programmed { of(|echo| !echo.inside && echo.outside) } else { Vec::new() };
    let place = if blocked.len() == all && all > 1 {
        "no peer is reached, so look at this node first"
    } else {
        "look at these peers first"
    };
    let port = node.port;
    let mut found = some(&blocked, |list| {
        let problem = format!(
            "{} of {} answer outside of the tunnel but not through it: {list}",
            blocked.len(),
            count(u64::try_from(all).unwrap_or(u64::MAX), "peer", "peers")
        );
        let cure = format!(
            "{place}: is UDP {port} between the public IPs let through (nft list ruleset, iptables-save, the cloud's rules), and \
             does flanneld run there? tcpdump -ni {} udp port {port} on both ends shows where packets end",
            node.parent
        );
        Finding::new("port-blocked", problem, cure)
    });
    let lost = of(|echo| !echo.inside && !echo.outside);
    found.extend(some(&lost, |list| {
        let cure = "are these nodes up? If they are gone for good, their leases go by themselves, at the latest after a day";
        Finding::new("peer-unreachable", format!("peers that answer neither through the tunnel nor outside of it: {list}"), cure)
    }));
    // What does not even fit into the interface below is told by `mtu`.
    let fits = facts.underlay_mtu.is_none_or(|underlay| node.mtu + OVERHEAD <= underlay);
    let narrow = if fits { of(|echo| echo.outside && !echo.full_size) } else { Vec::new() };
    found.extend(some(&narrow, |list| {
        let size = node.mtu + OVERHEAD;
        let problem =
            format!("packets of {size} bytes, as the tunnel makes them, are lost on the way to peers: {list}");
        let cure = format!(
            "something on the way carries less than {size} bytes: tracepath -n PUBLIC_IP shows where and how much. Set \
             \"MTU\" of the Backend in the network config to that, restart flanneld on every node, then the pods"
        );
        Finding::new("path-mtu", problem, cure)
    }));
    found
}

/// A finding about a list, shortened, unless it is empty.
fn some(items: &[String], finding: impl FnOnce(String) -> Finding) -> Vec<Finding> {
    let shown: Vec<&str> = items.iter().take(LISTED).map(String::as_str).collect();
    let rest = items.len().saturating_sub(LISTED);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    if items.is_empty() { Vec::new() } else { vec![finding(format!("{}{more}", shown.join("; ")))] }
}

#[cfg(test)]
mod tests;
