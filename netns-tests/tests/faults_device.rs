//! The overlay device and what stands on it are changed or removed under traffic, and put right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use anyhow::{Context, Result, ensure};
use netns_tests::fault::{Scene, Since};
use netns_tests::lab::{DEVICE, PREFIX};
use netns_tests::ping::Ping;
use netns_tests::recorded::DeviceState;
use netns_tests::{Flanneld, Lab, Node, Spec, eventually, lease};

/// Two nodes with a ping from a pod of the first to one of the second, and made-up peers up to 255.
fn under_traffic() -> Result<(Lab, Vec<Flanneld>, Ping)> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let peers = (0..254_u8).map(|number| {
        let key = format!("{PREFIX}/subnets/10.200.{number}.128-25");
        (key, lease::value(&format!("10.8.1.{number}"), &format!("02:00:00:00:01:{number:02x}")))
    });
    lab.etcd().put_many(peers)?;
    let daemons = lab.flanneld_everywhere()?;
    let ping = lab.ping(1, 2)?;
    Ok((lab, daemons, ping))
}

/// Runs commands of a node, one a line. `ip neigh flush` deletes, looks whether all are gone, and gives up after ten rounds of it
/// when each time they are back already.
fn run(lines: &str) -> impl FnOnce(&Node) -> Result<()> + '_ {
    let line = |node: &Node, line: &str| match node.run(line.trim()) {
        Err(error) if !error.to_string().contains("Flush not complete") => Err(error),
        _ => Ok(()),
    };
    move |node| lines.lines().try_for_each(|text| line(node, text))
}

#[test]
fn the_device_and_its_entries_are_put_right_under_traffic() -> Result<()> {
    let (lab, daemons, ping) = under_traffic()?;
    let scene = Scene::new(&lab, &daemons[0]).with_traffic(&ping);
    let node = scene.node();
    let before = DeviceState::observe(node, DEVICE)?;
    ensure!(before.routes.len() == 255, "{} peers", before.routes.len());
    let whole = || DeviceState::observe(node, DEVICE)?.ensure_equals(&before);
    let other = lab.lease(2)?;
    let (subnet, gateway, mac) = (&other.subnet, other.network(), &other.vtep_mac);
    let address = lab.lease(1)?.network();
    let faults = [
        ("flannel.1 deleted", format!("ip link delete {DEVICE}")),
        ("flannel.1 down", format!("ip link set {DEVICE} down")),
        ("flannel.1 down and up", format!("ip link set {DEVICE} down\nip link set {DEVICE} up")),
        ("flannel.1: MAC changed", format!("ip link set {DEVICE} address 02:00:00:00:00:77")),
        ("flannel.1: MTU changed", format!("ip link set {DEVICE} mtu 1300")),
        ("flannel.1: address deleted", format!("ip address del {address}/32 dev {DEVICE}")),
        ("flannel.1: second address of the overlay", format!("ip address add 10.200.3.3/24 dev {DEVICE}")),
        ("flannel.1: learning turned on", format!("ip link set {DEVICE} type vxlan learning")),
        ("one route deleted", format!("ip route del {subnet}")),
        (
            "one route pointed elsewhere",
            format!("ip route replace {subnet} via 10.200.9.9 dev {DEVICE} onlink"),
        ),
        ("one route made not onlink", format!("ip route replace {subnet} dev {DEVICE}")),
        ("all routes deleted", format!("ip route flush dev {DEVICE} proto boot")),
        ("one neighbour deleted", format!("ip neigh del {gateway} dev {DEVICE}")),
        (
            "one neighbour changed",
            format!("ip neigh replace {gateway} lladdr 02:00:00:00:00:78 dev {DEVICE} nud permanent"),
        ),
        (
            "one neighbour no longer permanent",
            format!("ip neigh replace {gateway} lladdr {mac} dev {DEVICE} nud reachable"),
        ),
        ("all neighbours deleted", format!("ip neigh flush dev {DEVICE} nud permanent")),
        ("one FDB entry deleted", format!("bridge fdb del {mac} dev {DEVICE} self")),
        (
            "one FDB entry pointed elsewhere",
            format!("bridge fdb replace {mac} dev {DEVICE} dst 10.8.9.9 self permanent"),
        ),
        ("all FDB entries deleted", format!("bridge fdb flush dev {DEVICE} self")),
        ("foreign route into the overlay", format!("ip route add 10.200.77.0/24 dev {DEVICE}")),
        (
            "foreign permanent neighbour",
            format!("ip neigh add 10.200.77.0 lladdr 02:00:00:00:00:79 dev {DEVICE} nud permanent"),
        ),
        (
            "foreign FDB entry",
            format!("bridge fdb add 02:00:00:00:00:79 dev {DEVICE} dst 10.8.9.9 self permanent"),
        ),
    ];
    for (name, commands) in &faults {
        scene.fault(name, Since::FirstChange, run(commands), whole)?;
    }
    Ok(())
}

#[test]
fn what_is_not_ours_on_our_device_stays() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let ping = lab.ping(1, 2)?;
    let node = lab.node(1)?;
    for line in [
        "ip address add 192.168.9.1/24 dev flannel.1",
        "ip route add 172.20.0.0/16 dev flannel.1",
        "ip route add 10.200.0.0/16 dev eth0 metric 900",
        "ip neigh add 192.168.9.2 lladdr 02:00:00:00:00:55 dev eth0 nud permanent",
        "ip route add 10.200.99.0/24 dev eth0 table 100",
    ] {
        node.run(line)?;
    }
    ping.ensure_none_lost()?;
    // A repair of ours passes over them. Without our route packets are lost until it is back.
    let subnet = lab.lease(2)?.subnet;
    node.run(&format!("ip route del {subnet}"))?;
    eventually(netns_tests::lab::CONVERGENCE, "our route is back", || {
        let routes = node.run(&format!("ip route show {subnet}"))?;
        ensure!(!routes.is_empty(), "no route");
        Ok(())
    })?;
    ping.wait_answers(20)?;
    let lost = ping.report().lost();
    drop(daemons);
    let daemon = lab.flanneld(1)?;
    assert_eq!(ping.finish()?.lost(), lost, "lost by the restart");
    let held = node.dump();
    for part in [
        "192.168.9.1/24",
        "172.20.0.0/16 dev flannel.1",
        "10.200.0.0/16 dev eth0",
        "192.168.9.2 dev eth0",
        "10.200.99.0/24 dev eth0 table 100",
    ] {
        held.contains(part).then_some(()).with_context(|| format!("{part} is gone:\n{held}"))?;
    }
    drop(daemon);
    Ok(())
}
