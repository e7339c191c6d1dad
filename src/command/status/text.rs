//! What `flanneld status` prints: a pure function of the daemon's answer.

use std::fmt::Write;

use crate::command::words::{count, span, table};
use crate::status::answer::{Answer, Lease, Peer, Repair, Rules, Store};
use crate::status_socket::AskError;

/// Everything, for people. `differences`: what would make the device right, if the kernel could be read.
pub(super) fn render(answer: &Answer, differences: Option<&[String]>) -> String {
    let state = if answer.ready { "ready" } else { "NOT READY" };
    let mut text = format!("flanneld {} (process {}): {state}\n", answer.version, answer.pid);
    let _ = writeln!(text, "{}\n", answer.summary);
    let mut line = |name: &str, says: &str| {
        let _ = writeln!(text, "{name:<9} {says}");
    };
    line("lease", &answer.lease.as_ref().map_or_else(|| "none".to_owned(), lease));
    if let Some(external) = &answer.external {
        line("over", &format!("{}, {}, MTU {}", external.name, external.address, external.mtu));
    }
    for says in device(answer, differences) {
        line("device", &says);
    }
    line("file", file(answer));
    line("rules", &answer.rules.as_ref().map_or_else(|| "not looked at yet".to_owned(), rules));
    line("store", &store(&answer.store));
    line("skipped", &skipped(answer));
    line("repairs", &repairs(&answer.repairs));
    text.push_str(&peers(answer.peers.as_deref()));
    text
}

/// What to tell when there is no answer, and where to look.
pub(super) fn no_answer(error: &AskError) -> String {
    match error {
        AskError::NobodyThere(_) => format!(
            "{error}: the daemon is not running, or it writes another subnet.env (-subnet-file), or it is an older version.\n\
             Pods keep their traffic; peers that come or go are not followed. Look at: systemctl status flanneld; \
             journalctl -u flanneld -n 50"
        ),
        AskError::Failed { .. } => error.to_string(),
    }
}

/// How many things in the answer are not as they should be.
pub(super) fn troubles(answer: &Answer) -> usize {
    let rules = answer.rules.as_ref();
    let troubles = [
        answer.store.state != "up",
        rules.is_none_or(|rules| !rules.in_force || rules.problem.is_some() || !rules.obstacles.is_empty()),
        answer.peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| peer.problem.is_some())),
    ];
    troubles.into_iter().filter(|trouble| *trouble).count()
}

fn lease(lease: &Lease) -> String {
    let end = match lease.expires_in_seconds {
        None => "a reservation, which never expires".to_owned(),
        Some(left) if left >= 0 => format!("expires in {}", span(left.unsigned_abs())),
        Some(over) => format!("EXPIRED {} ago", span(over.unsigned_abs())),
    };
    let Lease { subnet, public_ip, vtep_mac, renewed_seconds_ago, .. } = lease;
    format!(
        "{subnet}, public IP {public_ip}, VTEP MAC {vtep_mac}; confirmed {} ago, {end}",
        span(*renewed_seconds_ago)
    )
}

fn device(answer: &Answer, differences: Option<&[String]>) -> Vec<String> {
    let Some(device) = &answer.device else { return vec!["not decided yet".to_owned()] };
    let name = &device.name;
    match differences {
        None => vec![format!("{name}: THE KERNEL CANNOT BE READ")],
        Some([]) => vec![format!("{name}, {}/32, MTU {}: as it should be", device.address, device.mtu)],
        Some(steps) => steps.iter().map(|step| format!("{name} DIFFERS, it takes: {step}")).collect(),
    }
}

fn file(answer: &Answer) -> &'static str {
    match (answer.subnet_env_written, &answer.lease) {
        (true, _) => "subnet.env is written",
        (false, Some(_)) => "subnet.env CANNOT BE WRITTEN: see the log",
        (false, None) => "subnet.env is not written yet",
    }
}

fn rules(rules: &Rules) -> String {
    let place = rules.firewall.as_deref().unwrap_or("no firewall chosen");
    let mut text = format!("{place}: {}", if rules.in_force { "in force" } else { "NOT IN FORCE" });
    if let Some(problem) = &rules.problem {
        let _ = write!(text, "; {problem}");
    }
    for obstacle in &rules.obstacles {
        let _ = write!(text, "; OVERRULED: {}", obstacle.problem);
    }
    text
}

fn store(store: &Store) -> String {
    if store.describe.is_empty() {
        return "not chosen yet".to_owned();
    }
    let since = store.since_seconds_ago.map(|since| format!(" for {}", span(since))).unwrap_or_default();
    let state = match (store.state.as_str(), &store.error) {
        ("down", Some(error)) => format!("DOWN{since}: {error}"),
        (state, _) => format!("{state}{since}"),
    };
    format!(
        "{}; {state}; revision {}, watch reopened {}",
        store.describe,
        store.revision,
        count(store.watch_restarts, "time", "times")
    )
}

fn skipped(answer: &Answer) -> String {
    let total: u64 = answer.skipped.values().sum();
    if total == 0 {
        return "no key".to_owned();
    }
    let reasons: Vec<String> =
        answer.skipped.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!("{} ({})", count(total, "key", "keys"), reasons.join(", "))
}

fn repairs(repairs: &[Repair]) -> String {
    if repairs.is_empty() {
        return "nothing had to be put right".to_owned();
    }
    let one = |repair: &Repair| {
        let Repair { kind, count, seconds_ago } = repair;
        let times = if *count > 1 { format!(" ({count})") } else { String::new() };
        format!("{kind}{times} {} ago", span(*seconds_ago))
    };
    repairs.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Those with a problem first.
fn peers(peers: Option<&[Peer]>) -> String {
    let Some(peers) = peers else {
        return "peers     THE DAEMON'S LOOP DOES NOT ANSWER: it is stuck (journalctl -u flanneld -n 50)\n"
            .to_owned();
    };
    if peers.is_empty() {
        return "peers     none\n".to_owned();
    }
    let (bad, good): (Vec<&Peer>, Vec<&Peer>) = peers.iter().partition(|peer| peer.problem.is_some());
    let row = |peer: &&Peer| {
        let way = if peer.direct { "direct" } else { "tunnel" };
        let state = peer
            .problem
            .as_ref()
            .map_or_else(|| "programmed".to_owned(), |problem| format!("FAILED: {problem}"));
        [
            peer.subnet.to_string(),
            peer.public_ip.to_string(),
            peer.vtep_mac.to_string(),
            way.to_owned(),
            state,
        ]
    };
    let rows: Vec<[String; 5]> = bad.iter().chain(&good).map(row).collect();
    format!("\n{}", table(["PEER", "PUBLIC IP", "VTEP MAC", "WAY", "STATE"], &rows))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::model::state::Vtep;
    use crate::model::{IfName, MacAddr, Mtu, Vni};
    use crate::status::{self, Device, External, Link, OwnLease, PeerState, Peers, Phase, Status};

    const NOW: Duration = Duration::from_secs(90_000);

    fn before(seconds: u64) -> Duration {
        NOW.saturating_sub(Duration::from_secs(seconds))
    }

    fn healthy() -> Status {
        let (address, mac) = (Ipv4Addr::new(10, 8, 0, 111), MacAddr::new([6, 0x1c, 0x36, 0x2e, 0xf7, 0xf2]));
        let name: IfName = "wg0".parse().unwrap();
        let vtep = Vtep {
            name: IfName::of_vtep(Vni::DEFAULT),
            mac,
            vni: Vni::DEFAULT,
            parent: name.clone(),
            local: address,
            port: None,
            mtu: Mtu::try_from(1370).unwrap(),
            learning: false,
            gbp: false,
            tx_checksum: None,
        };
        let network = "10.200.0.0/16".parse().unwrap();
        Status {
            phase: Phase::Running,
            lease: Some(OwnLease {
                subnet: "10.200.8.0/24".parse().unwrap(),
                public_ip: address,
                mac,
                renewed: before(250),
                expires: Some(NOW + Duration::from_secs(86_150)),
            }),
            external: Some(External { name, address, mtu: 1420 }),
            mtu: Some(vtep.mtu),
            device: Some(Device { vtep, address: Ipv4Addr::new(10, 200, 8, 0), network }),
            peers: Peers { programmed: 2, failed: 0 },
            skipped: BTreeMap::new(),
            store: status::Store {
                describe: "etcd v3 at http://10.8.0.101:2379".to_owned(),
                link: Link::Up { since: before(250) },
                revision: 17,
                watch_restarts: 0,
            },
            subnet_env_written: true,
            first_list_tried: true,
            rules: Some(status::Rules {
                firewall: Some("nftables (no installed iptables has rules)".to_owned()),
                in_force: true,
                problem: None,
                obstacles: Vec::new(),
            }),
            ..Status::default()
        }
    }

    fn peer(slot: u8, problem: Option<&str>) -> PeerState {
        PeerState {
            subnet: format!("10.200.{slot}.0/24").parse().unwrap(),
            public_ip: Ipv4Addr::new(10, 8, 0, slot),
            mac: MacAddr::new([2, 0, 0, 0, 0, slot]),
            direct: slot == 53,
            problem: problem.map(str::to_owned),
        }
    }

    fn answer(status: &Status, peers: Option<Vec<PeerState>>) -> Answer {
        Answer::new(status, peers, 812, NOW)
    }

    #[test]
    fn a_node_that_is_well() {
        let answer = answer(&healthy(), Some(vec![peer(53, None), peer(172, None)]));
        assert_eq!(render(&answer, Some(&[])), include_str!("healthy.txt"));
        assert_eq!(troubles(&answer), 0);
    }

    #[test]
    fn a_node_that_is_not() {
        let mut status = healthy();
        let link = Link::Down { since: before(75), error: "no etcd endpoint answers".to_owned() };
        status.store = status::Store { link, watch_restarts: 1, ..status.store };
        status.lease.as_mut().unwrap().expires = Some(before(3));
        status.subnet_env_written = false;
        status.skipped = BTreeMap::from([("bad_value", 2), ("own_subnet", 1)]);
        status.peers = Peers { programmed: 1, failed: 1 };
        let rules = status.rules.as_mut().unwrap();
        rules.problem = Some("iptables-legacy is not installed".to_owned());
        let problem =
            "chain inet guard gate drops forwarded packets that no rule of its own accepts".to_owned();
        rules.obstacles = vec![status::Obstacle { problem, cure: String::new() }];
        status.repaired("device", 1, before(7300));
        status.repaired("route", 2, before(12));
        let conflict = "a route that is not ours stands in its place: 10.200.172.0/24 proto static metric 0";
        let answer = answer(&status, Some(vec![peer(53, None), peer(172, Some(conflict))]));
        let steps = ["ip link set flannel.1 mtu 1370", "ip link set flannel.1 up"].map(str::to_owned);
        assert_eq!(render(&answer, Some(&steps)), include_str!("troubled.txt"));
        assert_eq!(troubles(&answer), 3);
    }

    #[test]
    fn a_node_that_starts_or_is_stuck() {
        let starting = answer(&Status::default(), None);
        assert_eq!(render(&starting, None), include_str!("starting.txt"));
    }

    #[test]
    fn what_goes_over_the_socket_comes_out_the_same() {
        let answer = answer(&healthy(), Some(vec![peer(53, Some("x"))]));
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
        assert_eq!(answer.device.unwrap().wanted(), healthy().device);
        assert!(!text.contains("password"));
    }
}
