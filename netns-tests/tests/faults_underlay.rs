//! The interface below the tunnel goes, comes back, changes or moves, under traffic: device, lease and subnet.env follow, and
//! so do the peers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use anyhow::{Result, ensure};
use netns_tests::fault::{Scene, Since};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::observe::{self, PeerState};
use netns_tests::ping::Ping;
use netns_tests::{Flanneld, Lab, Node, Options, Spec, Underlay, lease};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Two nodes on `underlay` with a ping from a pod of the first to one of the second, one from node to node below the overlay,
/// and made-up peers up to 255.
fn under_traffic(
    underlay: Underlay,
    options: impl Fn(Options) -> Options,
) -> Result<(Lab, Vec<Flanneld>, [Ping; 2])> {
    let lab = Lab::start(&Spec { nodes: 2, underlay, ..Spec::default() })?;
    let peers = (0..254_u8).map(|number| {
        let key = format!("{PREFIX}/subnets/10.200.{number}.128-25");
        (key, lease::value(&format!("10.8.1.{number}"), &format!("02:00:00:00:01:{number:02x}")))
    });
    lab.etcd().put_many(peers)?;
    let mut daemons = Vec::new();
    for number in 1..=2 {
        let mut daemon = Flanneld::start(lab.node(number)?, &options(lab.options(number)))?;
        daemon.wait_ready()?;
        daemons.push(daemon);
    }
    lab.wait_converged(&daemons)?;
    let above = lab.ping(1, 2)?;
    let below = Ping::start_below(lab.node(1)?, Lab::public_ip(2), "0.002")?;
    Ok((lab, daemons, [above, below]))
}

/// Device, entries and file are as the underlay asks for now, with the same MAC.
fn ensure_whole(node: &Node, mac: &str, parent: &str, local: &str, mtu: u32) -> Result<()> {
    let link = observe::link(node, DEVICE)?;
    let data = &link["linkinfo"]["info_data"];
    ensure!(link["address"] == mac && link["mtu"] == mtu, "{link}");
    ensure!(data["link"] == parent && data["local"] == local, "{link}");
    let state = PeerState::observe(node, DEVICE)?;
    let counts = (state.routes.len(), state.neighbours.len(), state.fdb.len());
    ensure!(counts == (255, 255, 255), "{counts:?}");
    let file = node.read(SUBNET_FILE)?;
    ensure!(file.contains(&format!("FLANNEL_MTU={mtu}\n")), "{file}");
    Ok(())
}

#[test]
fn a_restarted_vpn_brings_everything_back() -> Result<()> {
    let (lab, daemons, [above, below]) = under_traffic(Underlay::WireGuard, |options| options)?;
    let scene = Scene::new(&lab, &daemons[0]).with_traffic(&above).with_underlay(&below);
    let (node, before) = (lab.node(1)?, lab.lease(1)?);
    let whole = || ensure_whole(node, &before.vtep_mac, "wg0", "10.8.0.111", 1370);
    let restart = |node: &Node| {
        lab.mesh().kill(node)?;
        ensure!(
            observe::link(node, DEVICE).is_err(),
            "the kernel takes the device away with the interface below"
        );
        lab.mesh().restart(node)
    };
    scene.fault("wireguard-go killed and restarted", Since::CauseGone, restart, whole)?;
    scene.fault(
        "wg0 down and up",
        Since::CauseGone,
        |node| {
            node.run("ip link set wg0 down")?;
            node.run("ip link set wg0 up").map(drop)
        },
        whole,
    )?;
    scene.fault(
        "carrier of the link below lost for a moment",
        Since::CauseGone,
        |node| {
            lab.switch().unplug(node)?;
            lab.switch().plug(node)
        },
        whole,
    )?;
    assert_eq!(lab.lease(1)?, before, "nothing was republished");
    scene.fault(
        "MTU of wg0 lowered",
        Since::FirstChange,
        |node| node.run("ip link set wg0 mtu 1380").map(drop),
        || ensure_whole(node, &before.vtep_mac, "wg0", "10.8.0.111", 1330),
    )?;
    Ok(())
}

#[test]
fn a_vpn_that_comes_back_with_another_address_and_mtu_is_followed() -> Result<()> {
    let options =
        |options: Options| options.without("public-ip").without("iface").flag("iface-regex", "^10\\.8\\.");
    let (lab, daemons, [above, below]) = under_traffic(Underlay::WireGuard, options)?;
    let scene = Scene::new(&lab, &daemons[0]).with_traffic(&above).with_underlay(&below);
    let (node, peer, before) = (lab.node(1)?, lab.node(2)?, lab.lease(1)?);
    scene.fault(
        "wireguard-go killed and restarted with another address and MTU",
        Since::CauseGone,
        |node| {
            lab.mesh().kill(node)?;
            lab.mesh().restart_as(node, "10.8.0.211".parse()?)?;
            node.run("ip link set wg0 mtu 1400").map(drop)
        },
        || {
            ensure_whole(node, &before.vtep_mac, "wg0", "10.8.0.211", 1350)?;
            let own = lab.leases()?.into_iter().find(|lease| lease.subnet == before.subnet);
            ensure!(own.is_some_and(|own| own.public_ip.to_string() == "10.8.0.211"), "not published");
            let fdb = PeerState::observe(peer, DEVICE)?.fdb;
            let follows =
                |entry: &serde_json::Value| entry["mac"] == *before.vtep_mac && entry["dst"] == "10.8.0.211";
            ensure!(fdb.iter().any(follows), "{fdb:?}");
            Ok(())
        },
    )?;
    Ok(())
}

#[test]
fn an_address_that_changes_or_moves_is_followed_by_the_node_and_its_peers() -> Result<()> {
    let options =
        |options: Options| options.without("public-ip").without("iface").flag("iface-regex", "^10\\.8\\.");
    let (lab, daemons, [above, below]) = under_traffic(Underlay::veth(), options)?;
    let scene = Scene::new(&lab, &daemons[0]).with_traffic(&above).with_underlay(&below);
    let (node, peer, before) = (lab.node(1)?, lab.node(2)?, lab.lease(1)?);
    let file = node.read(SUBNET_FILE)?;
    let followed = |address: &str, parent: &str, mtu: u32| {
        ensure_whole(node, &before.vtep_mac, parent, address, mtu)?;
        let leases = lab.leases()?;
        let own = leases.iter().find(|lease| lease.subnet == before.subnet).unwrap();
        ensure!(own.public_ip.to_string() == address && own.vtep_mac == before.vtep_mac, "{own:?}");
        ensure!(leases.len() == 256, "{} leases", leases.len());
        let fdb = PeerState::observe(peer, DEVICE)?.fdb;
        ensure!(
            fdb.iter().any(|entry| entry["mac"] == *before.vtep_mac && entry["dst"] == address),
            "{fdb:?}"
        );
        Ok(())
    };
    scene.fault(
        "address of the external interface changed",
        Since::CauseGone,
        |node| {
            node.run("ip address del 10.8.0.111/24 dev eth0")?;
            node.run("ip address add 10.8.0.211/24 dev eth0").map(drop)
        },
        || followed("10.8.0.211", "eth0", 1450),
    )?;
    assert_eq!(node.read(SUBNET_FILE)?, file, "subnet and MTU are the same");
    let log = daemons[0].process().log();
    for untrue in ["looks replaced", "lease is skipped", "cannot be watched"] {
        ensure!(!log.contains(untrue), "{untrue}:\n{log}");
    }
    scene.fault(
        "address moved to another interface with another MTU",
        Since::CauseGone,
        |node| {
            lab.switch().connect_second(node, "eth1", 1400)?;
            node.run("ip address del 10.8.0.211/24 dev eth0")?;
            node.run("ip address add 10.8.0.211/24 dev eth1").map(drop)
        },
        || followed("10.8.0.211", "eth1", 1350),
    )?;
    Ok(())
}

#[test]
fn whoever_holds_our_vni_is_named_and_ours_comes_as_soon_as_it_is_gone() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let (node, ping) = (lab.node(1)?, lab.ping(1, 2)?);
    // Nothing arrives from the moment the device is down until ours is back.
    let scene = Scene::new(&lab, &daemons[0]).with_traffic(&ping);
    let state = PeerState::observe(node, DEVICE)?;
    node.run(&format!("ip link set {DEVICE} down"))?;
    node.run(&format!("ip link set {DEVICE} name stolen0"))?;
    lab.eventually(&daemons[0], "the holder of our VNI is named", || {
        let log = daemons[0].process().log();
        ensure!(log.contains("device stolen0 already uses VNI 1 and port 8472"), "not named");
        Ok(())
    })?;
    scene.fault(
        "a device of another name holds our VNI and port, then goes",
        Since::CauseGone,
        |node| node.run("ip link del stolen0").map(drop),
        || state.ensure_on(node, DEVICE),
    )?;
    Ok(())
}
