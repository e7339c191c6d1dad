//! What happens to the daemon itself: killed at any moment, stopped beyond its lease, out of files, swamped, rebooted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::fault::{Scene, Since};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::observe::{self, PeerState};
use netns_tests::random::Random;
use netns_tests::{Flanneld, Lab, Node, Pod, Spec, eventually, lease};
use nix::sys::signal::Signal;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Temporary files of a write that did not end.
fn leftovers(node: &Node) -> Result<Vec<String>> {
    let names = node.run("ls -A /run/flannel")?;
    Ok(names.lines().filter(|name| name.starts_with(".subnet.env.")).map(str::to_owned).collect())
}

#[test]
fn killed_at_random_moments_it_leaves_nothing_half_done() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    let ping = lab.ping(1, 2)?;
    let (node, before) = (lab.node(1)?, lab.lease(1)?);
    let file = node.read(SUBNET_FILE)?;
    daemons.remove(0).stop(Signal::SIGKILL)?;
    let mut random = Random::new(11);
    for round in 0..20 {
        let daemon = lab.launch(1)?;
        // A moment after the start, not a wait for something.
        std::thread::sleep(Duration::from_millis(random.below(150).into()));
        daemon.stop(Signal::SIGKILL)?;
        ensure!(node.read(SUBNET_FILE)? == file, "round {round}: subnet.env is damaged");
        ensure!(lab.lease(1)?.subnet == before.subnet, "round {round}: another lease");
    }
    let daemon = lab.flanneld(1)?;
    lab.wait_node_converged(&daemon)?;
    let left = leftovers(node)?;
    ensure!(left.is_empty(), "{left:?}");
    let (now, report) = (lab.lease(1)?, ping.finish()?);
    ensure!((now.subnet, now.vtep_mac) == (before.subnet, before.vtep_mac), "another lease");
    ensure!(report.lost() == 0, "{} packets were lost", report.lost());
    Ok(())
}

#[test]
fn a_reboot_finds_the_same_subnet_and_mac() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    let (node, before, ping) = (lab.node(1)?, lab.lease(1)?, lab.ping(1, 2)?);
    daemons.remove(0).stop(Signal::SIGKILL)?;
    // Nothing arrives from here on. The peer keeps what it holds, so that it is answered as soon as the device is back.
    node.run(&format!("ip link del {DEVICE}"))?;
    node.run("rm -r /run/flannel")?;
    let daemon = lab.flanneld(1)?;
    assert_eq!(observe::mac(node, DEVICE)?, before.vtep_mac);
    assert_eq!((lab.lease(1)?.subnet, lab.lease(1)?.vtep_mac), (before.subnet, before.vtep_mac));
    daemons.insert(0, daemon);
    ping.wait_answers(20)?;
    lab.wait_converged(&daemons)
}

/// Two daemons are stopped beyond their leases at once: waiting is what takes time here. Another node takes the subnet of the
/// first, nobody that of the second.
#[test]
fn stopped_beyond_its_lease_it_leaves_the_subnet_to_a_new_owner_and_else_leases_it_again() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 3, ..Spec::default() })?;
    let start = |number| -> Result<Flanneld> {
        let mut daemon =
            Flanneld::start(lab.node(number)?, &lab.options(number).flag("subnet-lease-ttl", "10"))?;
        daemon.wait_ready()?;
        Ok(daemon)
    };
    let (usurped, left, witness) = (start(1)?, start(2)?, start(3)?);
    for daemon in [&usurped, &left, &witness] {
        lab.wait_node_converged(daemon)?;
    }
    let pod = Pod::attach(lab.node(1)?, "pod")?;
    let ping = lab.ping(3, 2)?;
    let before = [lab.lease(1)?, lab.lease(2)?];
    let held = PeerState::observe(lab.node(2)?, DEVICE)?;
    for daemon in [&usurped, &left] {
        daemon.process().signal(Signal::SIGSTOP)?;
    }
    eventually(Duration::from_secs(40), "the leases run out", || {
        let leases = lab.leases()?;
        ensure!(leases.len() == 1, "still there: {leases:?}");
        Ok(())
    })?;
    held.ensure_on(lab.node(2)?, DEVICE)?;
    // The third node has to hear of it, or the ping would not have to be answered again.
    lab.wait_node_converged(&witness)?;
    // This one first: who loses its subnet may draw any free one.
    Scene::new(&lab, &left).with_traffic(&ping).fault(
        "lease expired during SIGSTOP and taken by nobody, SIGCONT",
        Since::Fault,
        |_| left.process().signal(Signal::SIGCONT),
        || {
            let own = lab.lease(2)?;
            ensure!(own.subnet == before[1].subnet && own.vtep_mac == before[1].vtep_mac, "{own:?}");
            [&left, &witness].into_iter().try_for_each(|daemon| lab.ensure_node_converged(daemon))
        },
    )?;
    ping.finish()?;
    leaves_the_subnet_to_the_new_owner(&lab, &usurped, &pod, &before[0])
}

fn leaves_the_subnet_to_the_new_owner(
    lab: &Lab,
    daemon: &Flanneld,
    pod: &Pod,
    before: &lease::Lease,
) -> Result<()> {
    let usurper = lease::value("10.8.0.150", "02:00:00:00:00:99");
    lab.etcd().put_leased(&before.stored.key, &usurper, 86_400)?;
    let usurped = lab.etcd().get(&before.stored.key)?;
    Scene::new(lab, daemon).fault(
        "lease expired during SIGSTOP and taken by another node, SIGCONT",
        Since::Fault,
        |_| daemon.process().signal(Signal::SIGCONT),
        || {
            let own = lab.lease(1)?;
            ensure!(own.subnet != before.subnet, "{own:?}");
            let [a, b, c, _] = own.network().octets();
            let file = lab.node(1)?.read(SUBNET_FILE)?;
            ensure!(file.contains(&format!("FLANNEL_SUBNET={a}.{b}.{c}.1/24\n")), "{file}");
            Ok(())
        },
    )?;
    ensure!(lab.etcd().get(&before.stored.key)? == usurped, "the other node's key was overwritten");
    let log = daemon.process().log();
    let line = log.lines().find(|line| line.contains("SUBNET HAS CHANGED")).context("not told")?;
    ensure!(line.contains(&pod.address().to_string()), "the pod is not named: {line}");
    ensure!(log.contains("with public IP 10.8.0.150"), "the new owner is not named:\n{log}");
    ensure!(!log.contains("the public IP is this node's own"), "it does not know its own new lease:\n{log}");
    // The bridge of the pods keeps the former subnet until somebody deletes it: the new owner is reached afterwards.
    lab.node(1)?.run("ip link del cni0")?;
    lab.wait_node_converged(daemon)
}

/// Fills the receive buffer for notifications of a stopped daemon, and takes entries away meanwhile.
fn storm(node: &Node) -> Result<()> {
    let mut lines = String::new();
    for number in 0..30_000_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        let verb = ["add", "del"][usize::from(d & 1 == 1)];
        lines.push_str(&format!("route {verb} blackhole 198.18.{b}.{}/32\n", c & 0xfe));
        if number == 15_000 {
            lines.push_str(&format!(
                "route flush dev {DEVICE} proto boot\nneigh flush dev {DEVICE} nud permanent\n"
            ));
        }
    }
    node.write("/run/storm", &lines)?;
    node.run("ip -batch /run/storm").map(drop)
}

#[test]
fn lost_notifications_end_in_a_whole_kernel_with_four_thousand_peers() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let peers = (0..4000_u16).map(|number| {
        let [high, low] = number.to_be_bytes();
        let (block, slot) = (number / 16, (number % 16) * 16);
        let key = format!("{PREFIX}/subnets/10.200.{block}.{slot}-28");
        (key, lease::value(&format!("10.9.{high}.{low}"), &format!("02:00:00:01:{high:02x}:{low:02x}")))
    });
    lab.etcd().put_many(peers)?;
    let (daemon, _other) = (lab.flanneld(1)?, lab.flanneld(2)?);
    let (node, ping) = (lab.node(1)?, lab.ping(1, 2)?);
    lab.wait_node_converged(&daemon)?;
    let before = PeerState::observe(node, DEVICE)?;
    ensure!(before.routes.len() > 3900, "{} peers", before.routes.len());
    daemon.process().signal(Signal::SIGSTOP)?;
    storm(node)?;
    ensure!(PeerState::observe(node, DEVICE)?.routes.is_empty(), "the storm took no route away");
    // Comparing 12 000 entries takes the lab longer than putting them back: it counts first.
    let count = |command: &str| -> Result<usize> { Ok(node.run(command)?.lines().count()) };
    let counts = || -> Result<[usize; 2]> {
        let neighbours = count(&format!("ip neigh show dev {DEVICE} nud permanent"))?;
        Ok([count(&format!("ip route show dev {DEVICE}"))?, neighbours])
    };
    // Without routes nothing arrives.
    Scene::new(&lab, &daemon).with_traffic(&ping).fault(
        "notifications lost in a storm, all routes and neighbours gone, 4000 peers",
        Since::Fault,
        |_| daemon.process().signal(Signal::SIGCONT),
        || {
            let now = counts()?;
            ensure!(now == [before.routes.len(), before.neighbours.len()], "{now:?}");
            Ok(())
        },
    )?;
    before.ensure_on(node, DEVICE)?;
    let log = daemon.process().log();
    ensure!(
        log.contains("kernel notifications were lost"),
        "nothing was lost:\n{}",
        daemon.process().log_tail(20)
    );
    Ok(())
}

#[test]
fn out_of_files_it_says_so_and_goes_on_afterwards() -> Result<()> {
    let mut lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let ping = lab.ping(1, 2)?;
    let pid = daemons[0].process().pid();
    let limit = |files: &str| -> Result<()> {
        let status = std::process::Command::new("prlimit")
            .args([&format!("--pid={pid}"), &format!("--nofile={files}:1024")])
            .status()?;
        ensure!(status.success(), "prlimit ended with {status}");
        Ok(())
    };
    // Fewer than it holds: what is open stays open, nothing can be opened.
    limit("3")?;
    lab.etcd_mut().kill(0)?;
    lab.etcd_mut().launch(0)?;
    lab.etcd().wait_healthy()?;
    lab.eventually(&daemons[0], "the cause is named", || {
        ensure!(daemons[0].process().log().contains("too many open files"), "not named");
        Ok(())
    })?;
    ping.ensure_none_lost()?;
    // What needs no new file goes on. Without the route packets are lost until it is back.
    let subnet = lab.lease(2)?.subnet;
    lab.node(1)?.run(&format!("ip route del {subnet}"))?;
    lab.wait_node_converged(&daemons[0])?;
    ping.wait_answers(20)?;
    let lost = ping.report().lost();
    limit("1024")?;
    let key = format!("{PREFIX}/subnets/10.200.201.0-24");
    lab.etcd().put(&key, &lease::value("10.8.0.201", "02:00:00:00:00:0a"))?;
    lab.wait_converged(&daemons)?;
    assert_eq!(ping.finish()?.lost(), lost, "lost when files can be opened again");
    Ok(())
}
