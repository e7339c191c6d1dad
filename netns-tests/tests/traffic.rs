//! Pods on three nodes reach each other over both underlays, and every byte arrives as it was sent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::Result;
use netns_tests::cni::port_mapping;
use netns_tests::ping::ping_once;
use netns_tests::{Lab, Pod, Spec, Underlay, eventually, observe, tcp};

const MIB: u64 = 1024 * 1024;

fn pod_on_each_node(lab: &Lab) -> Result<Vec<Pod>> {
    lab.nodes().iter().map(|node| Pod::attach(node, "pod")).collect()
}

fn all_ping_all(pods: &[Pod]) -> Result<()> {
    for from in pods {
        for to in pods {
            eventually(Duration::from_secs(10), "a ping between pods", || ping_once(from, to.address()))?;
        }
    }
    Ok(())
}

#[test]
fn pods_on_three_nodes_exchange_100_mib_over_veth() -> Result<()> {
    let lab = Lab::three_nodes()?;
    let _daemons = lab.flanneld_everywhere()?;
    let pods = pod_on_each_node(&lab)?;
    all_ping_all(&pods)?;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let transfer = tcp::exchange(&pods[from], &pods[to], 100 * MIB)?;
        assert_eq!(transfer.bytes, 200 * MIB);
    }
    Ok(())
}

#[test]
fn pods_on_three_nodes_exchange_100_mib_over_wireguard() -> Result<()> {
    let lab = Lab::start(&Spec { underlay: Underlay::WireGuard, ..Spec::default() })?;
    let _daemons = lab.flanneld_everywhere()?;
    for node in lab.nodes() {
        assert_eq!(observe::link(node, "flannel.1")?["mtu"], 1370);
        assert!(node.read("/run/flannel/subnet.env")?.contains("FLANNEL_MTU=1370\n"));
    }
    let pods = pod_on_each_node(&lab)?;
    all_ping_all(&pods)?;
    // wireguard-go carries about a quarter of a gigabit a second here: the full length on one pair only.
    for (from, to, bytes) in [(0, 1, 100 * MIB), (1, 2, 4 * MIB), (2, 0, 4 * MIB)] {
        let transfer = tcp::exchange(&pods[from], &pods[to], bytes)?;
        assert_eq!(transfer.bytes, 2 * bytes);
    }
    Ok(())
}

#[test]
fn pods_get_addresses_from_the_lease_and_reach_the_hosts() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let _daemons = lab.flanneld_everywhere()?;
    let first = Pod::attach(lab.node(1)?, "one")?;
    let second = Pod::attach(lab.node(2)?, "two")?;
    for (pod, number) in [(&first, 1), (&second, 2)] {
        let lease = lab.lease(number)?;
        assert_eq!(pod.address().octets()[..3], lease.network().octets()[..3], "{}", lease.subnet);
    }
    // A pod reaches the other node's bridge, and its own node reaches the other node's pod.
    let gateway = second.run("ip -4 route show default")?;
    let gateway = gateway.split_whitespace().nth(2).unwrap().parse()?;
    eventually(Duration::from_secs(10), "pod to the other node's bridge", || ping_once(&first, gateway))?;
    lab.node(1)?.run(&format!("ping -n -c 1 -W 2 {}", second.address()))?;
    Ok(())
}

#[test]
fn the_whole_mtu_fits_through_the_overlay_and_one_byte_more_does_not() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let _daemons = lab.flanneld_everywhere()?;
    let first = Pod::attach(lab.node(1)?, "pod")?;
    let second = Pod::attach(lab.node(2)?, "pod")?;
    eventually(Duration::from_secs(10), "a ping between pods", || ping_once(&first, second.address()))?;
    // 1450 = 20 IP + 8 ICMP + 1422
    first.run(&format!("ping -n -c 1 -W 2 -M do -s 1422 {}", second.address()))?;
    assert!(first.run(&format!("ping -n -c 1 -W 2 -M do -s 1423 {}", second.address())).is_err());
    Ok(())
}

#[test]
fn a_mapped_port_is_reached_from_another_node_and_freed_with_the_pod() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let _daemons = lab.flanneld_everywhere()?;
    let pod = Pod::attach_with(lab.node(1)?, "web", port_mapping(18080, 80))?;
    let listener = pod.in_network(|| Ok(std::net::TcpListener::bind((pod.address(), 80))?))?;
    let reach = || {
        lab.node(2)?.in_network(|| {
            let address = (Lab::public_ip(1), 18080).into();
            Ok(std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?)
        })
    };
    reach()?;
    drop(listener);
    pod.remove()?;
    assert!(reach().is_err());
    let rules = lab.node(1)?.run("iptables-save -t nat")?;
    assert!(!rules.contains("18080"), "{rules}");
    Ok(())
}
