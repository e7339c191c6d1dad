//! A node that ran the Go daemon is taken over as it stands: nothing in the kernel is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use netns_tests::lab::DEVICE;
use netns_tests::monitor::Recorder;
use netns_tests::recorded::{DeviceState, Recorded};
use netns_tests::{Flanneld, Lab, Spec, lease, observe};

#[test]
fn a_go_node_is_adopted_without_a_change() -> Result<()> {
    for version in ["v0.16.1", "v0.28.9"] {
        let recorded = Recorded::open(version)?;
        let lab = Lab::start(&recorded.spec()?)?;
        let node = lab.node(1)?;
        recorded.put_leases(&lab)?;
        recorded.install(node)?;
        let installed = DeviceState::observe(node, DEVICE)?;
        installed.ensure_equals(&DeviceState::recorded(&recorded)?).context("installed as recorded")?;
        let before = std::fs::metadata(node.host_path("/run/flannel/subnet.env"))?.ino();
        let recorder = Recorder::start(node)?;
        let daemon = lab.flanneld(1)?;
        lab.wait_node_converged(&daemon)?;
        assert_eq!(recorder.changes(DEVICE)?, Vec::<String>::new(), "{version}");
        DeviceState::observe(node, DEVICE)?.ensure_equals(&installed).context(version)?;
        // The recorded node masqueraded; without -ip-masq the file must differ in that line.
        let expected = recorded.text("subnet.env")?.replace("=true", "=false");
        assert_eq!(node.read("/run/flannel/subnet.env")?, expected, "{version}");
        assert_ne!(std::fs::metadata(node.host_path("/run/flannel/subnet.env"))?.ino(), before);
    }
    Ok(())
}

/// A node as Go left it with direct routing, and our daemon started on it.
fn with_direct_routes_of_go() -> Result<(Lab, Flanneld)> {
    let recorded = Recorded::open("v0.28.9/direct-routing")?;
    let lab = Lab::start(&recorded.spec()?)?;
    let node = lab.node(1)?;
    recorded.put_leases(&lab)?;
    recorded.install(node)?;
    let routes = node.run("ip -4 -d route")?;
    assert_eq!(routes.matches("via 10.8.0.11").count(), 2, "{routes}");
    let recorder = Recorder::start(node)?;
    let daemon = lab.flanneld(1)?;
    assert_eq!(recorder.changes(DEVICE)?, Vec::<String>::new());
    assert_eq!(node.run("ip -4 -d route")?, routes);
    Ok((lab, daemon))
}

#[test]
fn direct_routes_of_a_go_node_are_adopted_without_a_change() -> Result<()> {
    with_direct_routes_of_go().map(drop)
}

#[test]
fn an_adopted_direct_route_goes_when_its_peer_goes() -> Result<()> {
    let (lab, daemon) = with_direct_routes_of_go()?;
    let departed = lab.leases()?.into_iter().find(|lease| lease.public_ip == Lab::public_ip(3)).unwrap();
    lab.etcd().delete(&departed.stored.key)?;
    lab.eventually(&daemon, "the departed peer's route is gone", || {
        let routes = daemon.node().run("ip -4 -d route")?;
        ensure!(!routes.contains(&departed.subnet), "{routes}");
        Ok(())
    })
}

#[test]
fn entries_go_left_behind_for_departed_and_changed_peers_are_removed() -> Result<()> {
    let recorded = Recorded::open("v0.28.9")?;
    let lab = Lab::start(&recorded.spec()?)?;
    let node = lab.node(1)?;
    recorded.put_leases(&lab)?;
    recorded.install(node)?;
    // ⚠19: a peer that left while the daemon was down. ⚠20: the former MAC of a peer that is still there.
    node.run("ip neigh add 10.200.250.0 lladdr 02:00:00:00:00:0a dev flannel.1 nud permanent")?;
    node.run("bridge fdb add 02:00:00:00:00:0a dev flannel.1 dst 10.8.0.114 self permanent")?;
    node.run("ip route add 10.200.250.0/24 via 10.200.250.0 dev flannel.1 onlink")?;
    node.run("bridge fdb add 02:00:00:00:00:0b dev flannel.1 dst 10.8.0.112 self permanent")?;
    let daemon = lab.flanneld(1)?;
    lab.wait_node_converged(&daemon)?;
    DeviceState::observe(node, DEVICE)?.ensure_equals(&DeviceState::recorded(&recorded)?)
}

#[test]
fn an_incompatible_device_is_replaced_and_keeps_its_published_mac() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let node = lab.node(1)?;
    let mac = "02:00:00:00:00:77";
    let key = "/kubernetes-cluster/network/subnets/10.200.9.0-24";
    lab.etcd().put_leased(key, &lease::value("10.8.0.111", mac), 86_400)?;
    node.run("ip link add flannel.1 type vxlan id 7 dev eth0 dstport 8472 nolearning")?;
    let _daemon = lab.flanneld(1)?;
    let link = observe::link(node, DEVICE)?;
    assert_eq!(link["linkinfo"]["info_data"]["id"], 1);
    assert_eq!(link["address"], mac);
    assert_eq!(lab.lease(1)?.subnet, "10.200.9.0/24");
    Ok(())
}

#[test]
fn what_differs_on_a_compatible_device_is_corrected_in_place() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    let node = lab.node(1)?;
    let (index, mac) = (observe::link(node, DEVICE)?["ifindex"].clone(), observe::mac(node, DEVICE)?);
    daemons.remove(0).stop(nix::sys::signal::Signal::SIGTERM)?;
    node.run("ip link set flannel.1 mtu 1400")?;
    node.run("ip address add 10.200.250.0/32 dev flannel.1")?;
    node.run("ip address add 192.0.2.9/32 dev flannel.1")?;
    let _daemon = lab.flanneld(1)?;
    lab.wait_converged(&daemons)?;
    let link = observe::link(node, DEVICE)?;
    assert_eq!((&link["ifindex"], &link["mtu"]), (&index, &1450.into()));
    assert_eq!(observe::mac(node, DEVICE)?, mac);
    let own = lab.lease(1)?.network().to_string();
    let addresses = observe::addresses(node, DEVICE)?;
    let mut locals: Vec<&str> = addresses.iter().map(|address| address["local"].as_str().unwrap()).collect();
    locals.sort_unstable();
    assert_eq!(
        locals,
        [own.as_str(), "192.0.2.9"],
        "inside the network only ours; an operator's outside stays"
    );
    Ok(())
}
