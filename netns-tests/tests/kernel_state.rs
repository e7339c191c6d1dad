//! What the daemon puts into the kernel and into subnet.env equals the contract (section 11) and what the Go daemon put
//! there for the same leases.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Context, Result};
use netns_tests::lab::DEVICE;
use netns_tests::observe::{PeerState, addresses, link, sorted};
use netns_tests::recorded::{DeviceState, Recorded};
use netns_tests::{Lab, Spec, eventually, lab};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn device_equals_section_11_attribute_by_attribute() -> Result<()> {
    let lab = Lab::three_nodes()?;
    let daemons = lab.flanneld_everywhere()?;
    for (number, daemon) in (1_u8..).zip(&daemons) {
        let (node, lease) = (daemon.node(), lab.lease(number)?);
        let found = link(node, DEVICE)?;
        let flags: Vec<&str> = found["flags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(flags.contains(&"UP"), "{flags:?}");
        assert_eq!(found["mtu"], 1450);
        assert_eq!(found["qdisc"], "noqueue");
        assert_eq!(found.get("txqlen"), None, "queue length 0 is not shown");
        assert_eq!(found["address"], lease.vtep_mac.as_str());
        let first = u8::from_str_radix(lease.vtep_mac.split_once(':').unwrap().0, 16)?;
        assert_eq!(first & 0b11, 0b10, "locally administered, unicast: {}", lease.vtep_mac);
        assert_eq!(found["linkinfo"]["info_kind"], "vxlan");
        let vxlan = &found["linkinfo"]["info_data"];
        assert_eq!(vxlan["id"], 1);
        assert_eq!(vxlan["local"], Lab::public_ip(number).to_string());
        assert_eq!(vxlan["link"], "eth0");
        assert_eq!(vxlan["port"], 8472);
        assert_eq!(vxlan["port_range"], json!({ "low": 0, "high": 0 }));
        assert_eq!(vxlan["learning"], false);
        assert_eq!(vxlan["ttl"], 0);
        assert_eq!(vxlan["ageing"], 300);
        assert_eq!(vxlan["udp_csum"], true);
        for off in ["proxy", "rsc", "l2miss", "l3miss", "udp_zero_csum6_tx", "udp_zero_csum6_rx", "gbp"] {
            assert_ne!(vxlan[off], true, "{off}");
        }
        for absent in ["group", "limit", "external", "tos"] {
            assert_eq!(vxlan.get(absent), None, "{absent}");
        }
    }
    Ok(())
}

#[test]
fn address_sysctls_and_subnet_file_equal_the_contract() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let node = lab.node(1)?;
    let forwarding = node.run("cat /proc/sys/net/ipv4/ip_forward")?;
    let _daemon = lab.flanneld(1)?;
    let lease = lab.lease(1)?;
    let found = addresses(node, DEVICE)?;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["local"], lease.network().to_string());
    assert_eq!(found[0]["prefixlen"], 32);
    assert_eq!(found[0]["scope"], "global");
    assert_eq!(found[0].get("broadcast"), None);
    assert_eq!(node.run("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra")?.trim(), "0");
    assert_eq!(node.run("cat /proc/sys/net/ipv4/ip_forward")?, forwarding, "forwarding is the operator's");
    let [a, b, c, _] = lease.network().octets();
    let expected = format!(
        "FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET={a}.{b}.{c}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(node.read("/run/flannel/subnet.env")?, expected);
    let meta = fs::metadata(node.host_path("/run/flannel/subnet.env"))?;
    assert_eq!(meta.permissions().mode() & 0o7777, 0o644);
    let mut listed = Vec::new();
    for entry in fs::read_dir(node.host_path("/run/flannel"))? {
        listed.push(entry?.file_name());
    }
    listed.sort();
    assert_eq!(listed, ["flanneld.sock", "subnet.env"], "no temporary file is left");
    Ok(())
}

#[test]
fn subnet_file_is_replaced_and_not_written_over() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let node = lab.node(1)?;
    let old =
        "FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.7.1/24\nFLANNEL_MTU=9\nFLANNEL_IPMASQ=true\n";
    node.write("/run/flannel/subnet.env", old)?;
    let (path, kept) =
        (node.host_path("/run/flannel/subnet.env"), node.host_path("/run/flannel-second-name"));
    fs::hard_link(&path, &kept)?;
    let _daemon = lab.flanneld(1)?;
    assert_eq!(lab.lease(1)?.subnet, "10.200.7.0/24", "the previous subnet is taken again");
    assert!(node.read("/run/flannel/subnet.env")?.contains("FLANNEL_MTU=1450"));
    assert_ne!(fs::metadata(&path)?.ino(), fs::metadata(&kept)?.ino());
    assert_eq!(fs::read_to_string(&kept)?, old, "a reader of the old file never sees half of the new one");
    Ok(())
}

#[test]
fn peers_equal_section_11_attribute_by_attribute() -> Result<()> {
    let lab = Lab::three_nodes()?;
    let daemons = lab.flanneld_everywhere()?;
    // flanneld_everywhere has compared them; this says that the comparison sees what it should.
    let found = PeerState::observe(daemons[0].node(), DEVICE)?;
    assert_eq!((found.routes.len(), found.neighbours.len(), found.fdb.len()), (2, 2, 2));
    assert_eq!(found.routes[0]["scope"], "global");
    assert_eq!(found.routes[0]["flags"], json!(["onlink"]));
    assert_eq!(found.fdb[0]["flags"], json!(["self"]));
    assert_eq!(found.fdb[0]["state"], "permanent");
    Ok(())
}

/// Gives a node the recorded leases, its own among them, starts the daemon and returns what it made of them.
fn made_from_the_leases_of(recorded: &Recorded) -> Result<(Lab, netns_tests::Flanneld, DeviceState)> {
    let lab = Lab::start(&recorded.spec()?)?;
    recorded.put_leases(&lab)?;
    let daemon = lab.flanneld(1)?;
    let state = DeviceState::observe(lab.node(1)?, &recorded.device()?)?;
    Ok((lab, daemon, state))
}

#[test]
fn device_and_peers_equal_the_recorded_ones_of_go() -> Result<()> {
    for name in ["v0.28.9", "v0.28.9/vni42-port4789-mtu1400"] {
        let recorded = Recorded::open(name)?;
        let (lab, _daemon, state) = made_from_the_leases_of(&recorded)?;
        state.ensure_equals(&DeviceState::recorded(&recorded)?).context(name)?;
        let own = recorded.text("subnet.env")?.replace("FLANNEL_IPMASQ=true", "FLANNEL_IPMASQ=false");
        assert_eq!(lab.node(1)?.read("/run/flannel/subnet.env")?, own, "{name}");
    }
    Ok(())
}

#[test]
fn peers_equal_the_recorded_ones_of_go_v0_16() -> Result<()> {
    let recorded = Recorded::open("v0.16.1")?;
    let (_lab, _daemon, state) = made_from_the_leases_of(&recorded)?;
    let mut expected = DeviceState::recorded(&recorded)?;
    assert_eq!(
        (&state.routes, &state.neighbours, &state.fdb),
        (&expected.routes, &expected.neighbours, &expected.fdb)
    );
    assert_eq!(state.link, expected.link);
    // Its old netlink library added a broadcast address, which later versions do not (section 11.3).
    let address = expected.addresses.pointer_mut("/0/addr_info/0").and_then(Value::as_object_mut).unwrap();
    assert!(address.remove("broadcast").is_some());
    assert_eq!(state.addresses, expected.addresses);
    Ok(())
}

#[test]
fn direct_routes_equal_the_recorded_ones_of_go() -> Result<()> {
    let recorded = Recorded::open("v0.28.9/direct-routing")?;
    let (lab, daemon, state) = made_from_the_leases_of(&recorded)?;
    state.ensure_equals(&DeviceState::recorded(&recorded)?)?;
    // Outside of our own device a route is known as ours by its protocol number, where Go writes `boot`.
    let expected = recorded.text("routes.txt")?.replace("proto boot", "proto 149");
    let expected: Vec<&str> = expected.lines().map(str::trim).collect();
    lab.eventually(&daemon, "the direct routes", || {
        let found = daemon.node().run("ip -4 -d route")?;
        let found: Vec<&str> = found.lines().map(str::trim).collect();
        anyhow::ensure!(found == expected, "{found:#?} instead of {expected:#?}");
        Ok(())
    })
}

#[test]
fn direct_routing_falls_back_to_the_overlay_behind_a_router() -> Result<()> {
    let network_config = r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    let lab = Lab::start(&Spec { nodes: 1, network_config: network_config.to_owned(), ..Spec::default() })?;
    let daemon = lab.flanneld(1)?;
    let node = daemon.node();
    node.run("ip route add 198.51.100.0/24 via 10.8.0.112")?;
    let near = netns_tests::lease::value("10.8.0.112", "02:00:00:00:00:0a");
    let far = netns_tests::lease::value("198.51.100.7", "02:00:00:00:00:0b");
    lab.etcd().put("/kubernetes-cluster/network/subnets/10.200.201.0-24", &near)?;
    lab.etcd().put("/kubernetes-cluster/network/subnets/10.200.202.0-24", &far)?;
    eventually(lab::CONVERGENCE, "one direct route and one through the overlay", || {
        let routes = sorted(&node.json("ip -j -4 route show 10.200.201.0/24")?);
        anyhow::ensure!(routes.len() == 1 && routes[0]["gateway"] == "10.8.0.112", "{routes:?}");
        let state = PeerState::observe(node, DEVICE)?;
        anyhow::ensure!(state.routes.len() == 1 && state.routes[0]["dst"] == "10.200.202.0/24", "{state:?}");
        anyhow::ensure!(state.neighbours.len() == 1 && state.fdb.len() == 1, "{state:?}");
        Ok(())
    })
}

/// Go's daemon never looks at the MTU of a device that is there.
#[test]
fn a_configured_mtu_that_does_not_fit_below_keeps_no_peer_away() -> Result<()> {
    let network_config = r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","MTU":9000}}"#;
    let lab = Lab::start(&Spec { nodes: 2, network_config: network_config.to_owned(), ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    daemons.remove(0).stop(Signal::SIGKILL)?;
    let node = lab.node(1)?;
    node.run(&format!("ip route flush dev {DEVICE} proto 149"))?;
    node.run(&format!("ip route flush dev {DEVICE} proto boot"))?;
    // The first start made a device as large as fits; now there is one that is smaller than it is asked to be.
    let daemon = lab.flanneld(1)?;
    lab.wait_node_converged(&daemon)?;
    assert_eq!(link(node, DEVICE)?["mtu"], 1450);
    assert!(daemon.process().log().contains("more than the interface below can carry"));
    Ok(())
}
