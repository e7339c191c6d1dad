//! A cluster moves from etcd v2 to v3 and back (`etcd-api=both`), and nobody notices, although on the way different nodes hold one
//! subnet in the two stores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::lease::{self, Lease};
use netns_tests::monitor::Recorder;
use netns_tests::namespaces::Entry;
use netns_tests::observe::PeerState;
use netns_tests::ping::Ping;
use netns_tests::scenario::Traffic;
use netns_tests::{Flanneld, Lab, Pod, Spec, eventually, lab, throughout};
use nix::sys::signal::Signal;

/// How long a lease lives here; it is renewed at half of it. The kernel may need seconds to end a process of a loaded machine, as the
/// end of its inotify instance waits for everybody else's (`fsnotify_destroy_group`), and a lease must outlive a restart.
const TTL: Duration = Duration::from_secs(15);
/// A lease that nobody renews is gone after this.
const RUN_OUT: Duration = Duration::from_secs(40);

/// A lab whose etcd serves both stores, of which v2 holds the network config. The fourth node is nobody's until it comes.
fn lab_of_both() -> Result<Lab> {
    let spec = Spec { nodes: 4, etcd_arguments: vec!["--enable-v2".to_owned()], ..Spec::default() };
    let mut lab = Lab::without_etcd(&spec)?;
    lab.etcd_mut().start()?;
    lab.etcd().v2().put(&format!("{PREFIX}/config"), &spec.network_config, None)?;
    Ok(lab)
}

fn start(lab: &Lab, number: u8, api: &str) -> Result<Flanneld> {
    let options =
        lab.options(number).flag("etcd-api", api).flag("subnet-lease-ttl", TTL.as_secs().to_string());
    let mut daemon = Flanneld::start(lab.node(number)?, &options)?;
    daemon.wait_ready().with_context(|| format!("node{number} with etcd-api={api}"))?;
    Ok(daemon)
}

fn key(host: u8) -> String {
    format!("{PREFIX}/subnets/10.200.{host}.0-24")
}

fn in_v2(lab: &Lab) -> Result<Vec<Lease>> {
    lab.etcd().v2().list(&format!("{PREFIX}/subnets/"))?.into_iter().map(Lease::parse).collect()
}

/// What has to be the same in both stores: key, value, and whether it is a reservation.
fn content(leases: Vec<Lease>) -> Vec<(String, String, bool)> {
    leases.into_iter().map(|lease| (lease.subnet, lease.stored.value, lease.stored.lease == 0)).collect()
}

/// What the README tells the operator to run between two steps of the move.
fn check_of_the_readme(lab: &Lab) -> Result<String> {
    const README: &str = include_str!("../../systemd/README.md");
    let section = README.split("\n## ").find(|section| section.starts_with("Moving from etcd v2 to v3"));
    let blocks: Vec<&str> = section.context("the section")?.split("```bash\n").skip(1).collect();
    let script: Option<Vec<&str>> = blocks.iter().map(|block| Some(block.split_once("```")?.0)).collect();
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script.context("closed blocks")?.concat()).env("ENDPOINTS", lab.etcd().endpoints());
    let output = lab.etcd().node(0)?.output(&mut shell, &Entry::Node)?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// The lease of a node among those of one store.
fn of_node(leases: Vec<Lease>, number: u8) -> Result<Lease> {
    let mut own = leases.into_iter().filter(|lease| lease.public_ip == Lab::public_ip(number));
    let lease = own.next().with_context(|| format!("node{number} has no lease"))?;
    ensure!(own.next().is_none(), "node{number} has several leases");
    Ok(lease)
}

/// Whether the two stores hold the same.
fn agree(lab: &Lab) -> Result<Vec<(String, String, bool)>> {
    let (v2, v3) = (content(in_v2(lab)?), content(lab.leases()?));
    ensure!(v2 == v3, "the stores differ:\nv2: {v2:#?}\nv3: {v3:#?}");
    Ok(v2)
}

/// A cluster of three on its way.
struct Cluster<'a> {
    lab: &'a Lab,
    daemons: Vec<Option<Flanneld>>,
    /// The leases at the start. They must never change.
    leases: Vec<Lease>,
}

impl<'a> Cluster<'a> {
    /// Node 1 follows v2, node 2 as well and holds a reservation, node 3 was forgotten and decides by itself.
    fn start(lab: &'a Lab) -> Result<Self> {
        let reservation = lease::value(&Lab::public_ip(2).to_string(), "02:00:00:00:00:42");
        lab.etcd().v2().put(&key(42), &reservation, None)?;
        let daemons = [(1, "v2"), (2, "v2"), (3, "auto")];
        let daemons = daemons.iter().map(|(number, api)| start(lab, *number, api).map(Some));
        let daemons = daemons.collect::<Result<_>>()?;
        let cluster = Self { lab, daemons, leases: in_v2(lab)? };
        assert_eq!((cluster.leases.len(), lab.leases()?.len()), (3, 0), "nothing in v3 yet");
        cluster.check()?;
        Ok(cluster)
    }

    fn daemon(&self, number: u8) -> Result<&Flanneld> {
        let daemon = self.daemons.get(usize::from(number) - 1);
        daemon.and_then(Option::as_ref).with_context(|| format!("node{number} has no daemon"))
    }

    /// Every kernel holds what the leases of the start ask for.
    fn check(&self) -> Result<()> {
        self.check_with(&[])
    }

    /// The same with further peers.
    fn check_with(&self, guests: &[&Lease]) -> Result<()> {
        for number in (1..).take(self.daemons.len()) {
            let daemon = self.daemon(number)?;
            let peers = self.leases.iter().filter(|lease| lease.public_ip != Lab::public_ip(number));
            let expected = PeerState::expected(peers.chain(guests.iter().copied()));
            self.lab.eventually(daemon, "the peers of the start and the guests", || {
                expected.ensure_on(daemon.node(), DEVICE)
            })?;
        }
        Ok(())
    }

    fn restart(&mut self, number: u8, api: &str, signal: Signal) -> Result<()> {
        let daemon = &mut self.daemons[usize::from(number) - 1];
        daemon.take().context("a daemon")?.stop(signal)?;
        *daemon = Some(start(self.lab, number, api)?);
        self.check().with_context(|| format!("after node{number} was set to {api}"))
    }

    /// One step of the move: node 1, then node 2 whose daemon is killed. The forgotten one is restarted in between and
    /// afterwards.
    fn step(&mut self, api: &str) -> Result<()> {
        self.restart(1, api, Signal::SIGTERM)?;
        self.restart(3, "auto", Signal::SIGTERM)?;
        self.restart(2, api, Signal::SIGKILL)?;
        self.restart(3, "auto", Signal::SIGKILL)
    }

    fn wait_agreement(&self, because: &str) -> Result<()> {
        let expected: Vec<(String, String)> =
            self.leases.iter().map(|lease| (lease.subnet.clone(), lease.stored.value.clone())).collect();
        eventually(lab::CONVERGENCE, because, || {
            let agreed = agree(self.lab)?;
            let reserved: Vec<&str> = agreed.iter().filter(|key| key.2).map(|key| key.0.as_str()).collect();
            ensure!(reserved == ["10.200.42.0/24"], "reservations: {reserved:?}");
            let found: Vec<_> = agreed.into_iter().map(|(subnet, value, _)| (subnet, value)).collect();
            ensure!(found == expected, "{found:#?}\ninstead of\n{expected:#?}");
            Ok(())
        })
    }
}

/// A Go daemon that sees only v3 takes the subnet of node 1 there: node 1 keeps it, and the Go daemon is named.
fn go_daemon_in_a_subnet_of_ours(cluster: &Cluster) -> Result<()> {
    let (lab, keeper) = (cluster.lab, cluster.daemon(1)?);
    let kept = of_node(lab.leases()?, 1)?.stored;
    let go = lease::value("10.8.0.150", "02:00:00:00:00:99");
    lab.etcd().put_leased(&kept.key, &go, 86_400)?;
    lab.eventually(keeper, "the Go daemon is named", || {
        let log = keeper.process().log();
        let named = log.lines().any(|line| {
            line.contains("ERROR") && line.contains("a Go daemon") && line.contains("public IP 10.8.0.150")
        });
        ensure!(named, "not named");
        Ok(())
    })?;
    assert_eq!(lab.etcd().get(&kept.key)?.value, go, "not overwritten");
    assert_eq!(of_node(in_v2(lab)?, 1)?.stored.value, kept.value);
    cluster.check()?;
    lab.etcd().delete(&kept.key)?;
    cluster.wait_agreement("our copy in v3 comes back when the Go daemon is gone")
}

/// A fourth node comes up in v3 alone, in a subnet that another node then takes in v2: that one counts for everybody who follows both,
/// and the fourth node moves as soon as it does. Returns what tells the lines of the two guests in a kernel's monitor.
fn node_of_v3_in_a_subnet_of_v2s(cluster: &Cluster) -> Result<Vec<String>> {
    let lab = cluster.lab;
    let mover = start(lab, 4, "v3")?;
    let former = of_node(lab.leases()?, 4)?;
    cluster.check_with(&[&former])?;
    let name = former.stored.key.clone();
    lab.etcd().v2().put(&name, &lease::value("10.8.0.151", "02:00:00:00:00:98"), None)?;
    let winner = Lease::parse(lab.etcd().v2().get(&name)?)?;
    cluster.check_with(&[&winner])?;

    mover.stop(Signal::SIGTERM)?;
    let mover = start(lab, 4, "both")?;
    let moved = lab.eventually(&mover, "another subnet in both stores", || {
        let (v2, v3) = (of_node(in_v2(lab)?, 4)?, of_node(lab.leases()?, 4)?);
        ensure!(content(vec![v2.clone()]) == content(vec![v3.clone()]), "{v2:#?}\n{v3:#?}");
        ensure!(v2.subnet != former.subnet, "{v2:#?}");
        Ok(v2)
    })?;
    assert_eq!(lab.etcd().v2().get(&name)?, winner.stored, "the winner's key was not touched");
    cluster.check_with(&[&winner, &moved])?;
    let peers = PeerState::expected(cluster.leases.iter().chain([&winner]));
    lab.eventually(&mover, "v2's holder here, too", || peers.ensure_on(mover.node(), DEVICE))?;

    mover.stop(Signal::SIGKILL)?;
    for key in [&name, &moved.stored.key] {
        lab.etcd().v2().delete(key, "")?;
    }
    lab.etcd().delete(&moved.stored.key)?;
    cluster.check()?;
    Ok([&former, &winner, &moved]
        .iter()
        .flat_map(|lease| [lease.network(), lease.public_ip])
        .map(|ip| ip.to_string())
        .collect())
}

#[test]
fn a_cluster_moves_from_v2_to_v3_and_back_without_a_lost_packet() -> Result<()> {
    let lab = lab_of_both()?;
    let mut cluster = Cluster::start(&lab)?;
    let pods = [1, 2, 3].map(|number| Pod::attach(lab.node(number)?, "pod"));
    let [one, two, forgotten] = pods;
    let (one, two, forgotten) = (one?, two?, forgotten?);
    let traffic = Traffic::start(&one, &two)?;
    let pings = [&one, &two].map(|pod| Ping::start(&forgotten, pod.address(), "0.01"));
    let recorders = lab.nodes().iter().take(3).map(Recorder::start).collect::<Result<Vec<_>>>()?;

    let missing = check_of_the_readme(&lab)?;
    assert!(missing.contains(&format!("< {}", key(42))) && !missing.contains("same"), "{missing}");
    cluster.step("both")?;
    cluster.wait_agreement("both stores hold the same")?;
    assert_eq!(check_of_the_readme(&lab)?, "config: same\nleases: same\n");
    let config = format!("{PREFIX}/config");
    assert_eq!(lab.etcd().get(&config)?.value, lab.etcd().v2().get(&config)?.value, "the config was copied");
    throughout(TTL + Duration::from_secs(2), "renewed in both", || agree(&lab).map(drop))?;

    go_daemon_in_a_subnet_of_ours(&cluster)?;
    let guests = node_of_v3_in_a_subnet_of_v2s(&cluster)?;
    cluster.wait_agreement("both stores hold the same again")?;

    cluster.step("v3")?;
    // Who is in v3 alone does not renew in v2. Once nobody else is left there the forgotten node leaves it, too.
    let left_in_v2 = |expected: usize| {
        eventually(RUN_OUT, "leases run out in v2", || {
            let left = content(in_v2(&lab)?);
            ensure!(left.len() == expected, "{left:#?}");
            Ok(())
        })
    };
    left_in_v2(2)?;
    cluster.restart(3, "auto", Signal::SIGTERM)?;
    left_in_v2(1)?;

    cluster.step("both")?;
    cluster.wait_agreement("everything was carried back into v2")?;
    cluster.step("v2")?;
    // The forgotten node follows both as long as both hold the config: the operator removes v3's at the end.
    lab.etcd().delete(&config)?;
    cluster.restart(3, "auto", Signal::SIGTERM)?;
    eventually(RUN_OUT, "leases run out in v3", || {
        let left = content(lab.leases()?);
        ensure!(
            left.iter().all(|(subnet, _, reserved)| *reserved && subnet == "10.200.42.0/24"),
            "{left:#?}"
        );
        Ok(())
    })?;
    cluster.check()?;

    for recorder in recorders {
        // A pod's own link may still report that it is up.
        let mut ours = recorder.changes(DEVICE)?;
        ours.retain(|change| change.contains(DEVICE) && !guests.iter().any(|guest| change.contains(guest)));
        assert!(ours.is_empty(), "no kernel had anything to do but for the guests: {ours:#?}");
    }
    for ping in pings {
        let report = ping?.finish()?;
        assert_eq!(report.lost(), 0, "of the forgotten node's {} pings", report.last);
    }
    traffic.finish_without_loss()?;
    Ok(())
}
