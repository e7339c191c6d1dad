//! Somebody fights with the daemon over its device, or fills the store with junk: it stays calm, small and correct.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::fault::{Scene, Since};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::monitor::Recorder;
use netns_tests::observe::{self, PeerState};
use netns_tests::process::{Process, processor_time};
use netns_tests::{Flanneld, Lab, Spec, lease};

fn ensure_mtu(lab: &Lab, mtu: u32) -> Result<()> {
    let now = observe::link(lab.node(1)?, DEVICE)?["mtu"].clone();
    ensure!(now == mtu, "MTU {now}");
    Ok(())
}

#[test]
fn a_fight_over_the_device_is_given_pauses_and_named() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let (daemon, node, ping) = (&daemons[0], lab.node(1)?, lab.ping(1, 2)?);
    // As NetworkManager leaves it for a device that it manages.
    let index = observe::link(node, DEVICE)?["ifindex"].clone();
    node.write(&format!("/run/NetworkManager/devices/{index}"), "[device]\nmanaged=true\n")?;
    let fights = |daemon: &Flanneld| {
        let log = daemon.process().log();
        let line = log.lines().find(|line| line.contains("somebody keeps changing what belongs to us"));
        line.map(str::to_owned)
    };
    for round in 1..=10 {
        node.run(&format!("ip link set {DEVICE} mtu 1300"))?;
        lab.eventually(daemon, &format!("correction {round}"), || ensure_mtu(&lab, 1450))?;
        ensure!(fights(daemon).is_none(), "no fight yet in round {round}");
    }
    let scene = Scene::new(&lab, daemon).with_traffic(&ping);
    scene.fault(
        "flannel.1: MTU changed for the eleventh time within seconds (a fight, given a pause)",
        Since::FirstChange,
        |node| node.run(&format!("ip link set {DEVICE} mtu 1300")).map(drop),
        || ensure_mtu(&lab, 1450),
    )?;
    let line = fights(daemon).unwrap_or_default();
    ensure!(line.contains("MTU") && line.contains("NetworkManager manages flannel.1"), "{line}");
    ping.ensure_none_lost()
}

#[test]
fn a_lease_that_covers_etcd_or_the_way_to_it_cuts_nobody_off() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let node = lab.node(1)?;
    // Two more members, known by an address and by a name, within reach of whoever leases what is around them.
    let hosts = node.read("/etc/hosts").unwrap_or_default();
    node.write("/etc/hosts", &format!("{hosts}\n10.200.241.7 etcd-b.lab\n"))?;
    let endpoints = format!("{},http://10.200.240.7:2379,http://etcd-b.lab:2379", lab.etcd().endpoints());
    // The next hop on the way to the first one, too.
    lab.etcd().node(0)?.run("ip address add 10.200.243.1/32 dev eth0")?;
    node.run("ip route add 10.8.0.101 via 10.200.243.1 dev eth0 onlink")?;
    let mut daemon = Flanneld::start(node, &lab.options(1).flag("etcd-endpoints", endpoints))?;
    daemon.wait_ready()?;
    let peer = lab.flanneld(2)?;
    // Ready says that a node reaches the others, not that they have heard of it.
    [&daemon, &peer].into_iter().try_for_each(|daemon| lab.wait_node_converged(daemon))?;
    let (ping, other) = (lab.ping(1, 2)?, lab.lease(2)?.subnet);
    for third in [240, 241, 242, 243] {
        let value = lease::value(&format!("10.8.0.{third}"), &format!("02:00:00:00:00:{third:02x}"));
        lab.etcd().put(&format!("{PREFIX}/subnets/10.200.{third}.0-24"), &value)?;
    }
    lab.eventually(
        &daemon,
        "the leases on etcd and on the way to it are skipped, the other is a peer",
        || {
            let skipped = daemon.metric("flanneld_skipped_keys{reason=\"covers_underlay\"}")?;
            ensure!((skipped - 3.0).abs() < 0.5, "{skipped} skipped");
            let routes = PeerState::observe(node, DEVICE)?.routes;
            let mut peers: Vec<_> = routes.iter().filter_map(|route| route["dst"].as_str()).collect();
            peers.retain(|peer| *peer != other);
            ensure!(routes.len() == 2 && peers == ["10.200.242.0/24"], "{routes:?}");
            Ok(())
        },
    )?;
    let log = daemon.process().log();
    ensure!(log.contains("the subnet covers an address this node needs outside of the overlay"), "not said");
    ping.ensure_none_lost()
}

#[test]
fn junk_by_the_thousands_a_huge_value_and_restless_keys_cost_little_and_touch_nobody() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let (daemon, node, ping) = (&daemons[0], lab.node(1)?, lab.ping(1, 2)?);
    let before = PeerState::observe(node, DEVICE)?;
    let memory = daemon.footprint()?.anonymous_kib;
    let recorder = Recorder::start(node)?;
    let key = |name: &str| format!("{PREFIX}/subnets/{name}");
    lab.etcd().put_many((0..10_000).map(|number| (key(&format!("junk-{number}")), "{".to_owned())))?;
    lab.etcd().put_many([(key("10.200.250.0-24"), "x".repeat(1_000_000))])?;
    // A lease on the addresses of etcd and of the way to it would cut us off.
    lab.etcd().put_many([(key("10.8.0.0-24"), lease::value("10.8.0.9", "02:00:00:00:00:09"))])?;
    lab.etcd().put_many([(key("10.200.251.0-24"), lease::value("10.200.3.4", "02:00:00:00:00:0a"))])?;
    lab.eventually(daemon, "everything is counted", || {
        for (reason, count) in
            [("bad_key", 10_000.0), ("bad_value", 1.0), ("outside_network", 1.0), ("bad_public_ip", 1.0)]
        {
            let now = daemon.metric(&format!("flanneld_skipped_keys{{reason=\"{reason}\"}}"))?;
            ensure!((now - count).abs() < 0.5, "{now} {reason}");
        }
        Ok(())
    })?;
    // The bridge's port of the new pod may still be told.
    let mut changes = recorder.changes(DEVICE)?;
    changes.retain(|line| line.contains(DEVICE));
    ensure!(changes.is_empty(), "the kernel was changed: {changes:#?}");
    before.ensure_on(node, DEVICE)?;
    // A hundred peers whose MACs change with every write, ten times: a thousand changes as fast as etcd takes them.
    for round in 0..10_u8 {
        lab.etcd().put_many((0..100_u8).map(|number| {
            let value =
                lease::value(&format!("10.8.1.{number}"), &format!("02:00:00:01:{round:02x}:{number:02x}"));
            (key(&format!("10.200.{number}.0-28")), value)
        }))?;
    }
    lab.eventually(daemon, "the last change of each is in the kernel", || {
        let fdb = PeerState::observe(node, DEVICE)?.fdb;
        let last =
            fdb.iter().filter(|entry| entry["mac"].as_str().is_some_and(|mac| mac.contains(":01:09:")));
        // Our own subnet and the other node's may lie over some of them.
        let count = last.count();
        ensure!(count >= 98 && fdb.len() == count + 1, "{count} of {}", fdb.len());
        Ok(())
    })?;
    let (status, body) = daemon.http("/healthz")?;
    ensure!(status == 200, "{status} {body}");
    let grown = daemon.footprint()?.anonymous_kib.saturating_sub(memory);
    ensure!(grown < 64 << 10, "{grown} KiB more");
    let lines = daemon.process().log().lines().count();
    ensure!(lines < 200, "{lines} lines were logged");
    ping.ensure_none_lost()
}

#[test]
fn a_key_that_changes_a_hundred_times_a_second_costs_little_and_touches_nobody() -> Result<()> {
    const PERIOD: Duration = Duration::from_millis(10);
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let (daemon, ping) = (&daemons[0], lab.ping(1, 2)?);
    let time = || processor_time(daemon.process().pid());
    let (before, memory) = (time()?, daemon.footprint()?.anonymous_kib);
    let (begun, key) = (Instant::now(), format!("{PREFIX}/subnets/10.200.201.0-24"));
    for number in 0..300_u16 {
        let [high, low] = number.to_be_bytes();
        let value = lease::value("10.8.0.201", &format!("02:00:00:00:{high:02x}:{low:02x}"));
        lab.etcd().put_quickly(&key, &value)?;
        // A rhythm, not a wait for something.
        thread::sleep((begun + PERIOD * u32::from(number + 1)).saturating_duration_since(Instant::now()));
    }
    lab.wait_node_converged(daemon)?;
    let (worked, took) = (time()?.saturating_sub(before), begun.elapsed());
    println!("{worked:?} of processor time in {took:?}");
    ensure!(worked < Duration::from_secs(1), "{worked:?} of processor time in {took:?}");
    let grown = daemon.footprint()?.anonymous_kib.saturating_sub(memory);
    ensure!(grown < 16 << 10, "{grown} KiB more");
    ping.ensure_none_lost()
}

#[test]
fn a_real_networkd_that_configures_the_device_is_corrected_and_named() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let (daemon, node, ping) = (&daemons[0], lab.node(1)?, lab.ping(1, 2)?);
    node.write(
        "/etc/systemd/network/50-all.network",
        "[Match]\nName=flannel.*\n[Link]\nMTUBytes=1300\n[Network]\nAddress=192.168.9.1/32\n",
    )?;
    node.run("mkdir -p /run/systemd/netif")?;
    node.run("chown systemd-network: /run/systemd/netif")?;
    // With a read-only /sys it does not wait for udev, which a node of the lab does not have.
    node.run("mount -o remount,bind,ro /sys")?;
    let corrections = || daemon.metric("flanneld_repairs_total{kind=\"device\"}");
    let fight = || {
        let log = daemon.process().log();
        log.lines().find(|line| line.contains("somebody keeps changing")).map(str::to_owned)
    };
    // It configures a device once, when it starts. Ten times at once are free, then one every ten seconds: more is a fight.
    for round in (1..=40).take_while(|_| fight().is_none()) {
        let before = corrections()?;
        let mut command = Command::new("/usr/lib/systemd/systemd-networkd");
        let _networkd = Process::start(node, "networkd", &mut command)?;
        lab.eventually(daemon, &format!("round {round} of networkd is put right or told"), || {
            ensure!(corrections()? > before || fight().is_some(), "neither");
            Ok(())
        })?;
    }
    let line = fight().unwrap_or_default();
    ensure!(line.contains("MTU") && line.contains("systemd-networkd says that flannel.1 is"), "{line}");
    let addresses = format!("{:?}", observe::addresses(node, DEVICE)?);
    ensure!(addresses.contains("192.168.9.1"), "it did its work, and what is not ours stays: {addresses}");
    ping.ensure_none_lost()
}
