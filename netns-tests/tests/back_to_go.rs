//! After our daemon has stopped, the node is as the Go daemon has to find it to go on without a cut (contract sections 9, 11.2 and 12):
//! it takes the device that is there, replaces entries in place, takes its lease again, and finds its firewall rules.
//!
//! What it compares is known from its source and from recordings of it; the comparisons are written out below.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use anyhow::{Context, Result, ensure};
use netns_tests::recorded::{DeviceState, Recorded};
use netns_tests::{Flanneld, Lab, Node};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Runs our daemon on a fresh node with the recorded leases and stops it again.
fn after_our_daemon(name: &str, firewall: &str) -> Result<(Recorded, Lab)> {
    let recorded = Recorded::open(name)?;
    let lab = Lab::start(&recorded.spec()?)?;
    recorded.put_leases(&lab)?;
    let options = lab.options(1).flag("ip-masq", "true").flag("firewall", firewall);
    let mut daemon = Flanneld::start(lab.node(1)?, &options)?;
    daemon.wait_ready()?;
    daemon.wait_rules()?;
    assert!(daemon.stop(Signal::SIGTERM)?.success());
    Ok((recorded, lab))
}

/// Section 11.2, "incompatible" row by row: what Go compares between the device it found and the one it would make.
fn incompatible(found: &Value, wanted: &Value) -> Vec<&'static str> {
    let (kind, data) = ("/0/linkinfo/info_kind", "/0/linkinfo/info_data");
    let differs =
        |name: &str| found.pointer(&format!("{data}/{name}")) != wanted.pointer(&format!("{data}/{name}"));
    let both_differ = |name: &str| {
        let [found, wanted] = [found, wanted].map(|link| link.pointer(&format!("{data}/{name}")));
        found.is_some() && wanted.is_some() && found != wanted
    };
    [
        ("kind", found.pointer(kind) != wanted.pointer(kind)),
        ("VNI", differs("id")),
        ("parent interface", both_differ("link")),
        ("local address", both_differ("local")),
        ("multicast group", both_differ("group")),
        ("l2miss", differs("l2miss")),
        ("port", both_differ("port")),
        ("GBP", differs("gbp")),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what))
    .collect()
}

#[test]
fn the_comparison_sees_every_row_of_section_11_2() {
    let link = json!([{ "linkinfo": { "info_kind": "vxlan", "info_data": {
        "id": 1, "link": "wg0", "local": "10.8.0.111", "group": "239.0.0.1", "port": 8472 } } }]);
    assert_eq!(incompatible(&link, &link), Vec::<&str>::new());
    for (pointer, value, what) in [
        ("/0/linkinfo/info_kind", json!("bridge"), "kind"),
        ("/0/linkinfo/info_data/id", json!(2), "VNI"),
        ("/0/linkinfo/info_data/link", json!("eth0"), "parent interface"),
        ("/0/linkinfo/info_data/local", json!("10.8.0.9"), "local address"),
        ("/0/linkinfo/info_data/group", json!("239.0.0.2"), "multicast group"),
        ("/0/linkinfo/info_data/port", json!(4789), "port"),
    ] {
        let mut other = link.clone();
        *other.pointer_mut(pointer).unwrap() = value;
        assert_eq!(incompatible(&other, &link), [what]);
    }
    for (flag, what) in [("l2miss", "l2miss"), ("gbp", "GBP")] {
        let mut other = link.clone();
        other.pointer_mut("/0/linkinfo/info_data").unwrap()[flag] = json!(true);
        assert_eq!(incompatible(&other, &link), [what]);
    }
}

#[test]
fn go_takes_device_entries_lease_and_file_as_they_are() -> Result<()> {
    for name in ["v0.16.1", "v0.28.9", "v0.28.9/vni42-port4789-mtu1400"] {
        let (recorded, lab) = after_our_daemon(name, "nftables")?;
        let (node, device) = (lab.node(1)?, recorded.device()?);
        let link = node.json(&format!("ip -d -j link show {device}"))?;
        assert_eq!(incompatible(&link, &recorded.json("link.json")?), Vec::<&str>::new(), "{name}");
        // It goes on with the MAC of the device it found: the one that the peers know from the lease.
        let own = lab.lease(1)?;
        assert_eq!(link[0]["address"], own.vtep_mac.as_str(), "{name}");
        // Section 9: found by the public IP; any subnet within the bounds is renewed in place.
        assert_eq!(own.public_ip, Lab::public_ip(1));
        let value: Value = serde_json::from_str(&own.stored.value)?;
        assert_eq!(value["BackendType"], "vxlan");
        assert!(value["BackendData"]["VNI"].is_number() && value["PublicIPv6"].is_null(), "{value}");
        // Address, routes, neighbours, FDB: what it would write is what stands there.
        let mut expected = DeviceState::recorded(&recorded)?;
        if name == "v0.16.1" {
            // Its library adds a broadcast, but what it asks for is only whether the address is there (section 11.3).
            expected
                .addresses
                .pointer_mut("/0/addr_info/0")
                .and_then(Value::as_object_mut)
                .unwrap()
                .remove("broadcast");
        }
        DeviceState::observe(node, &device)?.ensure_equals(&expected).context(name.to_owned())?;
        assert_eq!(node.read("/run/flannel/subnet.env")?, recorded.text("subnet.env")?, "{name}");
    }
    Ok(())
}

/// Ours carry protocol 149, Go's `boot`. Its `replace` finds them all the same, as the kernel compares destination and metric.
#[test]
fn direct_routes_of_ours_are_replaced_in_place() -> Result<()> {
    let (recorded, lab) = after_our_daemon("v0.28.9/direct-routing", "nftables")?;
    let node = lab.node(1)?;
    let of_go = recorded.text("routes.txt")?;
    let mut replaced = 0;
    for line in of_go.lines().filter(|line| line.contains(" via ")) {
        let words = line.split(" proto ").next().unwrap().trim().trim_start_matches("unicast ");
        let subnet = words.split(' ').next().unwrap();
        let before = node.run(&format!("ip -d route show {subnet}"))?;
        assert!(before.contains("proto 149") && before.lines().count() == 1, "{before}");
        node.run(&format!("ip route replace {words} proto boot"))?;
        let after = node.run(&format!("ip -d route show {subnet}"))?;
        assert!(after.contains("proto boot") && after.lines().count() == 1, "{after}");
        replaced += 1;
    }
    assert_eq!(replaced, 2);
    Ok(())
}

fn rules(node: &Node) -> Result<Vec<String>> {
    let saved = node.run("iptables-save")?;
    Ok(saved.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

/// Section 12.2: it empties its chains, then for every rule deletes the one that is there and appends its own. The jumps are
/// what could be left twice: they must be, word for word, the ones it looks for.
#[test]
fn v0_28_finds_our_iptables_rules_and_replaces_them() -> Result<()> {
    let (recorded, lab) = after_our_daemon("v0.28.9", "iptables")?;
    let node = lab.node(1)?;
    let of_go = recorded.text("iptables-nft.save")?;
    let of_go: Vec<&str> = of_go.lines().filter(|line| line.starts_with("-A ")).collect();
    let jumps: Vec<&str> = of_go.iter().copied().filter(|rule| rule.contains("-j FLANNEL-")).collect();
    assert_eq!(jumps.len(), 2);
    let ours = rules(node)?;
    for jump in &jumps {
        assert_eq!(ours.iter().filter(|rule| rule == jump).count(), 1, "{jump} in {ours:#?}");
    }
    // What it does at start, on top of what we left.
    let mut restore = String::new();
    for (table, chain) in [("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD")] {
        restore.push_str(&format!("*{table}\n-F {chain}\n"));
        for rule in of_go.iter().filter(|rule| rule.contains(chain)) {
            if jumps.contains(rule) {
                restore.push_str(&rule.replacen("-A", "-D", 1));
                restore.push('\n');
            }
            restore.push_str(&format!("{rule}\n"));
        }
        restore.push_str("COMMIT\n");
    }
    node.write("/run/go.rules", &restore)?;
    node.run("iptables-restore --noflush --wait /run/go.rules")?;
    let mut left = rules(node)?;
    left.retain(|rule| !of_go.contains(&rule.as_str()));
    assert_eq!(left, Vec::<String>::new(), "nothing of ours is left beside");
    Ok(())
}

/// Section 12.4 and 12.5: in nftables mode it adds its chains to the same table and fills them; in iptables mode it deletes the table.
#[test]
fn v0_28_takes_over_our_nftables_table_in_either_mode() -> Result<()> {
    let (_recorded, lab) = after_our_daemon("v0.28.9", "nftables")?;
    let node = lab.node(1)?;
    let table = node.run("nft list table ip flannel-ipv4")?;
    assert!(table.contains("masquerade "), "{table}");
    let script = "add table ip flannel-ipv4 { comment \"rules for flannel-ipv4\" ; }\n\
        add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority 100 ; policy accept ; }\n\
        flush chain ip flannel-ipv4 postrtg\n\
        add chain ip flannel-ipv4 forward { type filter hook forward priority 0 ; policy accept ; }\n\
        flush chain ip flannel-ipv4 forward\n";
    node.write("/run/go.nft", script)?;
    node.run("nft -f /run/go.nft")?;
    let table = node.run("nft list table ip flannel-ipv4")?;
    let chains = table.lines().filter(|line| line.trim_start().starts_with("chain ")).count();
    ensure!(!table.contains("masquerade ") && chains == 2, "something of ours is left: {table}");
    node.run("nft delete table ip flannel-ipv4")?;
    Ok(())
}
