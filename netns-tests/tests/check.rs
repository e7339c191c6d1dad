//! `flanneld check`: a healthy node has no finding, and each fault made on purpose gives exactly its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::process::Command;

use anyhow::{Result, ensure};
use netns_tests::flanneld::{Told, told, told_under};
use netns_tests::lab::PREFIX;
use netns_tests::{Flanneld, Lab, Node, Pod, binaries};
use nix::sys::signal::Signal;

/// The names of the findings; the exit code must fit them.
fn findings(node: &Node, options: &[String]) -> Result<Vec<String>> {
    let words: Vec<String> =
        ["check".to_owned(), "--json".to_owned()].into_iter().chain(options.iter().cloned()).collect();
    names(&told(node, &words)?)
}

fn names(told: &Told) -> Result<Vec<String>> {
    let report = told.json()?;
    ensure!(report["unchecked"] == serde_json::json!([]), "{report:#}");
    let list = report["findings"].as_array().cloned().unwrap_or_default();
    let names: Vec<String> =
        list.iter().map(|finding| finding["name"].as_str().unwrap().to_owned()).collect();
    ensure!(told.code == Some(i32::from(!names.is_empty())), "{told:?}");
    Ok(names)
}

/// Makes a fault with commands, looks, and takes it back.
fn fault(node: &Node, watcher: &Node, made_by: &[&str], expected: &str, undone_by: &[&str]) -> Result<()> {
    for line in made_by {
        node.run(line)?;
    }
    assert_eq!(findings(watcher, &[])?, [expected], "{made_by:?}");
    for line in undone_by {
        node.run(line)?;
    }
    Ok(())
}

#[test]
fn each_fault_made_on_purpose_gives_exactly_its_finding() -> Result<()> {
    let mut lab = Lab::three_nodes()?;
    let mut daemons = lab.flanneld_everywhere()?;
    let (node, other, third) = (lab.node(1)?.clone(), lab.node(2)?.clone(), lab.node(3)?.clone());
    let pod = Pod::attach(&node, "pod1")?;
    node.run("sysctl -qw net.ipv4.ip_forward=1")?;
    let none: [&str; 0] = [];
    assert_eq!(findings(&node, &[])?, none, "a healthy node with a pod at {}", pod.address());
    // A peer without a pod bridge answers for its device all the same.
    assert_eq!(findings(&third, &[])?, ["kernel-setting"], "nothing has switched ip_forward on there");

    let block = [
        "nft add table inet wall",
        "nft add chain inet wall in { type filter hook input priority 0 ; }",
        "nft add rule inet wall in udp dport 8472 drop",
    ];
    let unblock = ["nft delete table inet wall"];
    fault(&node, &node, &block, "port-blocked", &unblock)?;
    fault(&other, &node, &block, "port-blocked", &unblock)?;
    let off = ["sysctl -qw net.ipv4.ip_forward=0"];
    fault(&node, &node, &off, "kernel-setting", &["sysctl -qw net.ipv4.ip_forward=1"])?;
    let strict = ["sysctl -qw net.ipv4.conf.flannel/1.rp_filter=1"];
    fault(&node, &node, &strict, "kernel-setting", &["sysctl -qw net.ipv4.conf.flannel/1.rp_filter=0"])?;
    let policy = [
        "nft add table inet wall",
        "nft add chain inet wall gate { type filter hook forward priority 0 ; policy drop ; }",
    ];
    fault(&node, &node, &policy, "forward-policy", &unblock)?;
    let bridge = ["ip link add br9 type bridge", "ip address add 10.200.0.1/24 dev br9"];
    fault(&node, &node, &bridge, "old-bridge-address", &["ip link del br9"])?;
    fault(&node, &node, &["ip link set cni0 mtu 1500"], "bridge-mtu", &["ip link set cni0 mtu 1450"])?;
    // The far end takes less than the tunnel makes.
    fault(&other, &node, &["ip link set eth0 mtu 1400"], "path-mtu", &["ip link set eth0 mtu 1500"])?;
    let index = node.run("cat /sys/class/net/flannel.1/ifindex")?;
    let link = format!("/run/systemd/netif/links/{}", index.trim());
    node.write(&link, "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/80-all.network\n")?;
    fault(&node, &node, &[], "managed-device", &[&format!("rm {link}")])?;
    let link = format!("/run/NetworkManager/devices/{}", index.trim());
    node.write(&link, "[device]\nmanaged=true\n")?;
    fault(&node, &node, &[], "managed-device", &[&format!("rm {link}")])?;
    let bridged = "sysctl -qw net.bridge.bridge-nf-call-iptables";
    fault(&node, &node, &[&format!("{bridged}=0")], "kernel-setting", &[&format!("{bridged}=1")])?;
    // The limit is shown to nobody but the host itself: a file in its place, as small as the table is here.
    let table = "/proc/sys/net/ipv4/neigh";
    let full = [
        &format!("mount -t tmpfs tmpfs {table}"),
        &format!("mkdir {table}/default"),
        &format!("cp /sys/class/net/lo/ifindex {table}/default/gc_thresh3"),
    ];
    let full = full.map(String::as_str);
    fault(&node, &node, &full, "neighbour-table", &[&format!("umount {table}")])?;
    // An old kernel, as far as a program can see.
    let mut old = Command::new("setarch");
    old.arg("--uname-2.6").arg(binaries::flanneld()?);
    assert_eq!(names(&told_under(&node, old, &["check", "--json"])?)?, ["checksum-offload"]);
    daemons[0].process().signal(Signal::SIGSTOP)?;
    assert_eq!(findings(&node, &[])?, ["daemon-silent"]);
    daemons[0].process().signal(Signal::SIGCONT)?;
    lab.switch().cut(&third)?;
    assert_eq!(findings(&node, &[])?, ["peer-unreachable"]);
    lab.switch().mend(&third)?;

    // Nobody repairs: what differs from the leases in etcd is found without a daemon.
    let options = lab.options(1).words();
    daemons.remove(0).stop(Signal::SIGTERM)?;
    let peer = lab.lease(2)?.subnet;
    let route = format!("ip route del {peer}");
    for (made_by, expected) in [
        ("true", &[][..]),
        (route.as_str(), &["entry-drift"]),
        ("ip link set flannel.1 mtu 1300", &["device-drift"]),
        ("rm /run/flannel/subnet.env", &["subnet-env"]),
    ] {
        node.run(made_by)?;
        let mut names = findings(&node, &options)?;
        assert_eq!(names.remove(0), "daemon-not-running");
        assert_eq!(names, expected, "{made_by}");
        let daemon = lab.flanneld(1)?;
        assert_eq!(findings(&node, &[])?, none, "{made_by}: the daemon puts it right");
        daemon.stop(Signal::SIGTERM)?;
    }
    let foreign = format!("ip route replace {peer} via 10.8.0.101 proto static");
    let by_ours = format!("ip route del {peer}");
    node.run(&foreign)?;
    assert_eq!(findings(&node, &options)?, ["daemon-not-running", "foreign-route"]);
    node.run(&by_ours)?;
    lab.etcd().delete(&lab.lease(1)?.stored.key)?;
    assert_eq!(findings(&node, &options)?, ["daemon-not-running", "no-lease"]);

    let nowhere = Flanneld::start(&node, &lab.options(1).flag("etcd-prefix", "/nowhere"))?;
    lab.eventually(&nowhere, "the daemon waits", || {
        let names = findings(&node, &[])?;
        ensure!(names == ["daemon-not-ready", "store"], "{names:?}");
        Ok(())
    })?;
    nowhere.stop(Signal::SIGTERM)?;
    let config = r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","MTU":1500}}"#;
    lab.etcd().put(&format!("{PREFIX}/config"), config)?;
    let daemon = lab.flanneld(1)?;
    // What is told cannot follow.
    fault(&node, &node, &["ip link set eth0 mtu 1400"], "mtu", &["ip link set eth0 mtu 1500"])?;

    lab.etcd_mut().stop(0)?;
    lab.eventually(&daemon, "the daemon notices", || {
        let names = findings(&node, &[])?;
        ensure!(names == ["store"], "{names:?}");
        Ok(())
    })
}
