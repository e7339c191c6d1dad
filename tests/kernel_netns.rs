//! `LinuxKernel` against the real kernel, each test in a network namespace of its own.
//!
//! The namespace belongs to the test's thread and goes with it: nothing is left behind and tests run side by side.
//! They need root and fail without it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use flanneld::kernel::{Change, Kernel, LinuxKernel, ReceiveBuffers, Scope};
use flanneld::model::device::DeviceStep;
use flanneld::model::state::{Entries, FdbTarget, Operation, Route, RouteDevice, Vtep};
use flanneld::model::{MacAddr, Mtu, Vni};
use ipnetwork::Ipv4Network;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 111);

/// A host in a namespace: `wg0` (MTU 1420, one end of a veth pair) with 10.8.0.111/24.
struct Node {
    kernel: LinuxKernel,
    scope: Scope,
}

/// Runs `test` in a fresh namespace, with a runtime built inside.
fn in_namespace(test: impl AsyncFnOnce(Node) + Send + 'static) {
    in_namespace_with(ReceiveBuffers::default(), test);
}

fn in_namespace_with(buffers: ReceiveBuffers, test: impl AsyncFnOnce(Node) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own (needs root)");
        run("ip link set lo up");
        run("ip link add wg0 mtu 1420 type veth peer name far0");
        run("ip addr add 10.8.0.111/24 dev wg0");
        run("ip link set wg0 up");
        run("ip link set far0 up");
        // The kernel tells of carriers later, and the tests shall not hear of these.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let links = run("ip -j link");
            if links.matches(r#""operstate":"UP""#).count() == 2 {
                break;
            }
            assert!(Instant::now() < deadline, "no carrier: {links}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let kernel = LinuxKernel::open(buffers).unwrap();
            test(Node { kernel, scope: scope() }).await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn scope() -> Scope {
    Scope {
        vtep: "flannel.1".parse().unwrap(),
        parent: "wg0".parse().unwrap(),
        network: "10.128.0.0/9".parse().unwrap(),
    }
}

fn vtep() -> Vtep {
    Vtep {
        name: "flannel.1".parse().unwrap(),
        mac: MacAddr::new([0x22, 0x84, 0x96, 0x4b, 0x66, 0xc2]),
        vni: Vni::DEFAULT,
        parent: "wg0".parse().unwrap(),
        local: LOCAL,
        port: None,
        mtu: Mtu::try_from(1370).unwrap(),
        learning: false,
        gbp: false,
        tx_checksum: None,
    }
}

/// Runs a command in the namespace of this thread; the output if it succeeded.
fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: &str) -> Vec<Value> {
    serde_json::from_str(&run(command)).unwrap()
}

fn subnet(number: u32) -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::from(u32::from(OWN) + ((number + 1) << 8)), 24).unwrap()
}

fn station(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 16, 0, 0)) + number)
}

fn mac(number: u32) -> MacAddr {
    let [_, b, c, d] = number.to_be_bytes();
    MacAddr::new([2, 0, 1, b, c, d])
}

/// What a peer takes, from the far end to the near one.
fn put_peer(number: u32) -> [Operation; 3] {
    [
        Operation::PutFdb(mac(number), station(number)),
        Operation::PutNeighbor(subnet(number).network(), mac(number)),
        Operation::PutRoute(Route::overlay(subnet(number))),
    ]
}

fn delete_peer(number: u32) -> [Operation; 3] {
    [
        Operation::DeleteRoute(Route::overlay(subnet(number))),
        Operation::DeleteNeighbor(subnet(number).network(), mac(number)),
        Operation::DeleteFdb(mac(number), station(number)),
    ]
}

fn entries(operations: &[Operation]) -> Entries {
    let mut entries = Entries::default();
    operations.iter().for_each(|operation| entries.apply(operation));
    entries
}

impl Node {
    fn step(&mut self, step: &DeviceStep) {
        self.kernel.step(&self.scope, step).unwrap();
    }

    /// The device, addressed and up.
    fn bring_up(&mut self) {
        self.step(&DeviceStep::Create(vtep()));
        self.step(&DeviceStep::AddAddress(OWN));
        self.step(&DeviceStep::SetUp);
    }

    fn apply(&mut self, operations: &[Operation]) {
        for (result, operation) in self.kernel.apply(&self.scope, operations).into_iter().zip(operations) {
            assert_eq!(result, Ok(()), "{operation:?}");
        }
    }

    fn entries(&mut self) -> Entries {
        self.kernel.observe(&self.scope).unwrap().entries
    }

    /// Waits for a change that `wanted` accepts; the ones before it are dropped.
    async fn notice(&mut self, wanted: impl Fn(&Change) -> bool) -> Change {
        let changes = async {
            loop {
                if let Some(change) = self.kernel.changed().await.into_iter().find(&wanted) {
                    return change;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), changes).await.expect("the change is noticed")
    }
}

#[test]
fn a_device_is_created_as_the_go_daemon_creates_it() {
    in_namespace(async |mut node| {
        assert_eq!(node.kernel.observe(&node.scope).unwrap().vtep, None);
        node.bring_up();
        let link = &json("ip -d -j link show flannel.1")[0];
        assert_eq!(link["mtu"], 1370);
        assert_eq!(link["address"], "22:84:96:4b:66:c2");
        assert_eq!(link["qdisc"], "noqueue");
        let data = &link["linkinfo"]["info_data"];
        assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
        assert_eq!(
            (&data["id"], &data["link"], &data["local"]),
            (&1.into(), &"wg0".into(), &"10.8.0.111".into())
        );
        assert_eq!((&data["port"], &data["learning"]), (&8472.into(), &false.into()));
        assert_eq!((&data["ageing"], &data["udp_csum"]), (&300.into(), &true.into()));
        let address = &json("ip -j -4 addr show dev flannel.1")[0]["addr_info"][0];
        assert_eq!((&address["local"], &address["prefixlen"]), (&"10.128.0.0".into(), &32.into()));
        assert_eq!((&address["scope"], &address["broadcast"]), (&"global".into(), &Value::Null));
        assert_eq!(run("sysctl -n net.ipv6.conf.flannel/1.accept_ra").trim(), "0");

        let found = node.kernel.observe(&node.scope).unwrap().vtep.unwrap();
        assert_eq!(flanneld::model::device::incompatibility(&vtep(), &found), None);
        assert_eq!((found.mac, found.mtu, found.up), (vtep().mac, 1370, true));
        assert_eq!(found.addresses, [Ipv4Network::from(OWN)]);
    });
}

#[test]
fn every_attribute_of_a_device_is_read_back() {
    in_namespace(async |mut node| {
        let vtep =
            Vtep { port: Some(4789), learning: true, gbp: true, vni: Vni::try_from(42).unwrap(), ..vtep() };
        node.step(&DeviceStep::Create(vtep.clone()));
        let vxlan = node.kernel.observe(&node.scope).unwrap().vtep.unwrap().vxlan.unwrap();
        assert_eq!((vxlan.vni, vxlan.port, vxlan.learning, vxlan.gbp), (42, 4789, true, true));
        assert_eq!((vxlan.parent, vxlan.local), (Some("wg0".parse().unwrap()), Some(LOCAL)));
        assert_eq!((vxlan.group, vxlan.l2miss), (false, false));
    });
}

#[test]
fn a_device_of_another_kind_under_our_name_is_seen() {
    in_namespace(async |mut node| {
        run("ip link add flannel.1 type bridge");
        assert_eq!(node.kernel.observe(&node.scope).unwrap().vtep.unwrap().vxlan, None);
        run("ip link del flannel.1");
        run("ip link add flannel.1 type vxlan id 1 group 239.1.1.1 dev wg0 dstport 8472 l2miss");
        let vxlan = node.kernel.observe(&node.scope).unwrap().vtep.unwrap().vxlan.unwrap();
        assert_eq!((vxlan.group, vxlan.l2miss, vxlan.local), (true, true, None));
    });
}

#[test]
fn a_device_is_corrected_in_place() {
    in_namespace(async |mut node| {
        node.bring_up();
        let before = json("ip -j link show flannel.1")[0]["ifindex"].clone();
        node.step(&DeviceStep::SetMac(mac(7)));
        node.step(&DeviceStep::SetMtu(Mtu::try_from(1300).unwrap()));
        node.step(&DeviceStep::SetLearning(true));
        node.step(&DeviceStep::AddAddress(subnet(3).network()));
        node.step(&DeviceStep::DeleteAddress(Ipv4Network::from(OWN)));
        let found = node.kernel.observe(&node.scope).unwrap().vtep.unwrap();
        assert_eq!((found.mac, found.mtu, found.up), (mac(7), 1300, true));
        assert!(found.vxlan.unwrap().learning);
        assert_eq!(found.addresses, [Ipv4Network::from(subnet(3).network())]);
        assert_eq!(json("ip -j link show flannel.1")[0]["ifindex"], before);
    });
}

/// `ethtool -k` and we say the same, whoever switched, and every switch by somebody else is noticed.
#[test]
fn the_tx_checksum_offload_is_read_switched_and_watched() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        for switch in [None, Some(false), Some(true), Some(false)] {
            if let Some(on) = switch {
                node.step(&DeviceStep::SetTxChecksum(on));
            }
            let shown = run("ethtool -k flannel.1");
            let state = if switch == Some(false) { "off" } else { "on" };
            assert!(shown.contains(&format!("\ntx-checksumming: {state}\n")), "{shown}");
            let read = node.kernel.observe(&node.scope).unwrap().vtep.unwrap().tx_checksum;
            assert_eq!(read, Some(state == "on"));
        }
        for state in ["on", "off"] {
            node.kernel.queued();
            run(&format!("ethtool -K flannel.1 tx {state}"));
            node.notice(|change| *change == Change::Device).await;
            let read = node.kernel.observe(&node.scope).unwrap().vtep.unwrap().tx_checksum;
            assert_eq!(read, Some(state == "on"));
        }
        run("ip link del flannel.1");
        let error = node.kernel.step(&node.scope, &DeviceStep::SetTxChecksum(true)).unwrap_err();
        assert_eq!(error.to_string(), "ethtool -K flannel.1 tx on: No such device");
    });
}

#[test]
fn present_on_add_and_absent_on_delete_are_success() {
    in_namespace(async |mut node| {
        node.step(&DeviceStep::Delete);
        node.step(&DeviceStep::DeleteAddress(Ipv4Network::from(OWN)));
        node.apply(&delete_peer(1));
        node.bring_up();
        node.step(&DeviceStep::Create(vtep()));
        node.step(&DeviceStep::AddAddress(OWN));
        node.step(&DeviceStep::SetUp);
        node.apply(&delete_peer(1));
        node.step(&DeviceStep::DeleteAddress(Ipv4Network::from(subnet(9).network())));
        node.apply(&[put_peer(1), put_peer(1)].concat());
        node.apply(&[delete_peer(1), delete_peer(1)].concat());
        assert_eq!(node.entries(), Entries::default());
        node.step(&DeviceStep::Delete);
        assert_eq!(node.kernel.observe(&node.scope).unwrap().vtep, None);
    });
}

#[test]
fn whoever_holds_our_vni_and_port_is_named() {
    in_namespace(async |mut node| {
        run("ip link add other0 type vxlan id 1 local 10.8.0.111 dev wg0 dstport 8472 nolearning");
        let error = node.kernel.step(&node.scope, &DeviceStep::Create(vtep())).unwrap_err();
        assert_eq!(error.errno, nix::libc::EEXIST);
        let text = error.to_string();
        assert!(text.contains("device other0 already uses VNI 1 and port 8472"), "{text}");
        assert!(text.contains("ip link del other0"), "{text}");
        run("ip link del other0");
        node.step(&DeviceStep::Create(vtep()));
    });
}

#[test]
fn a_missing_parent_is_named() {
    in_namespace(async |mut node| {
        let vtep = Vtep { parent: "wg9".parse().unwrap(), ..vtep() };
        let error = node.kernel.step(&node.scope, &DeviceStep::Create(vtep)).unwrap_err();
        assert!(error.to_string().ends_with("there is no interface wg9"), "{error}");
    });
}

#[test]
fn an_onlink_route_before_the_device_is_up_fails_with_the_kernels_words() {
    in_namespace(async |mut node| {
        node.step(&DeviceStep::Create(vtep()));
        let results = node.kernel.apply(&node.scope, &put_peer(1));
        assert_eq!((&results[0], &results[1]), (&Ok(()), &Ok(())));
        let error = results[2].clone().unwrap_err();
        assert_eq!(
            error.to_string(),
            "ip route replace 10.128.2.0/24 via 10.128.2.0 dev flannel.1 onlink: Network is down \
             (Nexthop device is not up)"
        );
    });
}

#[test]
fn a_gateway_that_is_no_next_hop_fails_with_advice() {
    in_namespace(async |mut node| {
        node.bring_up();
        let to_itself = Route { gateway: Some(OWN), ..Route::overlay(subnet(1)) };
        let unreachable = Route::direct(subnet(1), Ipv4Addr::new(192, 0, 2, 1));
        for route in [to_itself, unreachable] {
            let result = node.kernel.apply(&node.scope, &[Operation::PutRoute(route)]).remove(0);
            let error = result.unwrap_err().to_string();
            assert!(error.contains("(Nexthop has invalid gateway); no address of a device"), "{error}");
        }
    });
}

#[test]
fn without_the_device_puts_fail_and_direct_routes_still_work() {
    in_namespace(async |mut node| {
        let direct = Operation::PutRoute(Route::direct(subnet(2), Ipv4Addr::new(10, 8, 0, 112)));
        let results = node.kernel.apply(&node.scope, &[put_peer(1)[0], direct, delete_peer(1)[0]]);
        assert_eq!(results[0].clone().unwrap_err().errno, nix::libc::ENODEV);
        assert_eq!((&results[1], &results[2]), (&Ok(()), &Ok(())));
    });
}

#[test]
fn one_failing_operation_does_not_stop_the_others() {
    in_namespace(async |mut node| {
        node.bring_up();
        let unreachable = Operation::PutRoute(Route::direct(subnet(2), Ipv4Addr::new(192, 0, 2, 1)));
        let operations: Vec<Operation> =
            (0..1000).flat_map(put_peer).flat_map(|operation| [operation, unreachable]).collect();
        let results = node.kernel.apply(&node.scope, &operations);
        for (position, result) in results.iter().enumerate() {
            assert_eq!(result.is_err(), position % 2 == 1, "{position}: {result:?}");
        }
        let error = results[1].clone().unwrap_err();
        assert_eq!(error.doing, "ip route replace 10.128.3.0/24 via 192.0.2.1");
        let expected: Vec<Operation> = (0..1000).flat_map(put_peer).collect();
        assert_eq!(node.entries(), entries(&expected));
    });
}

#[test]
fn entries_look_as_those_of_the_go_daemon() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.apply(&put_peer(1));
        let neighbor = json("ip -4 -j neigh show dev flannel.1 nud all");
        assert_eq!(neighbor.len(), 1);
        assert_eq!(
            (&neighbor[0]["dst"], &neighbor[0]["state"]),
            (&"10.128.2.0".into(), &serde_json::json!(["PERMANENT"]))
        );
        assert_eq!(neighbor[0]["lladdr"], "02:00:01:00:00:01");
        let fdb = json("bridge -j fdb show dev flannel.1");
        assert_eq!(fdb.len(), 1);
        assert_eq!((&fdb[0]["mac"], &fdb[0]["dst"]), (&"02:00:01:00:00:01".into(), &"10.16.0.1".into()));
        assert_eq!((&fdb[0]["flags"], &fdb[0]["state"]), (&serde_json::json!(["self"]), &"permanent".into()));
        let routes = json("ip -4 -d -j route show dev flannel.1");
        let expected = serde_json::json!([{
            "type": "unicast", "dst": "10.128.2.0/24", "gateway": "10.128.2.0", "protocol": "boot",
            "scope": "global", "flags": ["onlink"],
        }]);
        assert_eq!(Value::from(routes), expected);
    });
}

#[test]
fn direct_routes_are_put_and_deleted_also_those_of_the_go_daemon() {
    in_namespace(async |mut node| {
        node.bring_up();
        let gateway = Ipv4Addr::new(10, 8, 0, 112);
        let direct = Route::direct(subnet(1), gateway);
        run("ip route add 10.128.2.0/24 via 10.8.0.112 metric 10 proto static");
        node.apply(&[Operation::PutRoute(direct)]);
        let foreign = Route { metric: 10, protocol: 4, ..direct };
        assert_eq!(node.entries().routes, [direct, foreign].into());
        node.apply(&[Operation::DeleteRoute(direct)]);
        assert_eq!(node.entries().routes, [foreign].into());
        run("ip route add 10.128.4.0/24 via 10.8.0.112");
        node.apply(&[Operation::DeleteRoute(Route::direct(subnet(3), gateway))]);
        assert_eq!(node.entries().routes, [foreign].into());
    });
}

#[test]
fn foreign_entries_of_our_kind_are_seen_and_can_be_removed_or_corrected() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.apply(&put_peer(1));
        run("bridge fdb add 02:00:00:00:00:aa dev flannel.1 dst 10.8.0.9 self permanent vni 5 port 9999");
        run("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.8.0.8 self permanent");
        run("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.8.0.9 self permanent");
        run("bridge fdb replace 02:00:01:00:00:01 dev flannel.1 dst 10.8.0.9 self permanent port 9999");
        run("ip neigh add 10.128.77.0 lladdr 02:00:00:00:00:aa dev flannel.1 nud permanent");
        run("ip neigh add 10.128.78.0 lladdr 02:00:00:00:00:aa dev flannel.1 nud reachable");
        run("ip route add 10.128.77.0/24 dev flannel.1 scope link metric 3");
        run("ip route add 10.8.9.0/24 dev flannel.1");
        let found = node.entries();
        assert_eq!(found.fdb.len(), 3);
        assert!(found.fdb.values().all(|target| !target.plain), "{found:?}");
        assert_eq!(found.neighbors.len(), 2);
        assert_eq!(found.routes.len(), 2);
        let foreign = found.routes.iter().find(|route| !route.plain).copied().unwrap();
        assert_eq!((foreign.device, foreign.metric, foreign.gateway), (RouteDevice::Vtep, 3, None));

        let desired = entries(&put_peer(1));
        let plan = flanneld::model::diff::diff(&desired, &found);
        node.apply(&plan.operations);
        assert_eq!(node.entries(), desired);
    });
}

#[test]
fn a_blackhole_lives_beside_a_pod_bridge_and_only_ours_is_touched() {
    in_namespace(async |mut node| {
        let own = subnet(0);
        let ours = Route::blackhole(own);
        let go = Route { metric: 0, protocol: 3, ..ours };
        run(&format!("ip route add blackhole {own}"));
        run("ip route add blackhole 10.128.9.0/24 metric 3");
        run("ip route add blackhole 172.30.0.0/24 proto 149 metric 4294967295"); // of a former network
        run("ip route add blackhole 172.30.1.0/24");
        run("ip addr add 10.128.1.1/24 dev far0"); // what the CNI plugin bridge does
        let found = node.entries();
        let former = Route::blackhole("172.30.0.0/24".parse().unwrap());
        assert!(found.routes.contains(&go) && found.routes.contains(&former), "{found:?}");

        let desired = Entries { routes: [ours].into(), ..Entries::default() };
        let plan = flanneld::model::diff::diff(&desired, &found);
        node.kernel.watch(&node.scope).unwrap();
        node.apply(&plan.operations);
        assert_eq!(
            run("ip -d route show type blackhole"),
            "blackhole 10.128.1.0/24 proto 149 scope global metric 4294967295 \n\
             blackhole 10.128.9.0/24 proto boot scope global metric 3 \n\
             blackhole 172.30.1.0/24 proto boot scope global \n"
        );
        assert!(run("ip route get 10.128.1.2").contains("dev far0"), "the bridge wins");
        node.kernel.queued();
        run(&format!("ip route del blackhole {own} metric 4294967295"));
        node.notice(|change| *change == Change::RouteRemoved(ours)).await;
    });
}

#[test]
fn the_host_is_read_in_index_order() {
    in_namespace(async |mut node| {
        run("ip addr add 10.8.0.7/24 dev wg0");
        run("ip addr add 10.9.0.7/24 dev wg0 valid_lft 1000 preferred_lft 0");
        run("ip route add default via 10.8.0.1 metric 50");
        run("ip route add default metric 40 nexthop via 10.8.0.2 dev wg0 nexthop via 10.8.0.3 dev wg0");
        // The kernel dumps these in front of the default routes: half of the world through a VPN, and "this network" to nowhere.
        run("ip route add 0.0.0.0/1 via 10.8.0.4");
        run("ip route add blackhole 0.0.0.0/8");
        let host = node.kernel.host().unwrap();
        let names: Vec<&str> = host.links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names.iter().filter(|name| ["lo", "wg0", "far0"].contains(name)).count(), 3);
        let wg0 = host.links.iter().find(|link| link.name.as_str() == "wg0").unwrap();
        assert_eq!(wg0.mtu, 1420);
        let flags: Vec<_> = wg0
            .addresses
            .iter()
            .map(|a| (a.ip.to_string(), a.permanent, a.secondary, a.deprecated))
            .collect();
        assert_eq!(
            flags,
            [
                ("10.8.0.111".to_owned(), true, false, false),
                ("10.9.0.7".to_owned(), false, false, true),
                ("10.8.0.7".to_owned(), true, true, false),
            ]
        );
        let devices: Vec<_> = host.default_routes.iter().map(|route| route.device.clone()).collect();
        assert_eq!(devices, [None, Some("wg0".parse().unwrap())]);
    });
}

#[test]
fn a_host_without_any_route_is_read() {
    in_namespace(async |mut node| {
        run("ip link del wg0");
        assert_eq!(node.kernel.host().unwrap().default_routes, []);
        assert_eq!(node.entries(), Entries::default());
    });
}

#[test]
fn a_route_lookup_tells_device_source_and_gateway() {
    in_namespace(async |mut node| {
        let near = node.kernel.route_to(Ipv4Addr::new(10, 8, 0, 112)).unwrap();
        assert_eq!((near.device.as_str(), near.source, near.gateway), ("wg0", Some(LOCAL), None));
        let nowhere = node.kernel.route_to(Ipv4Addr::new(192, 0, 2, 1)).unwrap_err();
        assert_eq!(nowhere.errno, nix::libc::ENETUNREACH);
        run("ip route add default via 10.8.0.1");
        let far = node.kernel.route_to(Ipv4Addr::new(192, 0, 2, 1)).unwrap();
        assert_eq!((far.device.as_str(), far.gateway), ("wg0", Some(Ipv4Addr::new(10, 8, 0, 1))));
        run("ip route replace default via inet6 fe80::1 dev wg0");
        assert!(node.kernel.route_to(Ipv4Addr::new(192, 0, 2, 1)).unwrap().gateway.is_some());
    });
}

/// Times are taken by `cargo lab bench`, also of 16 000 peers.
#[test]
fn four_thousand_peers_are_put_read_and_deleted() {
    let peers = 4_000;
    in_namespace(async move |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        let puts: Vec<Operation> = (0..peers).flat_map(put_peer).collect();
        node.apply(&puts);
        let echo = node.kernel.queued();
        assert_eq!(node.entries(), entries(&puts));
        assert!(!echo.contains(&Change::Lost));
        assert_eq!(echo.len(), puts.len() / 3, "of our own changes only those of FDB entries come back");
        let deletes: Vec<Operation> = (0..peers).rev().flat_map(delete_peer).collect();
        node.apply(&deletes);
        assert_eq!(node.entries(), Entries::default());
    });
}

#[test]
fn what_was_read_ahead_counts_until_something_changes() {
    in_namespace(async |mut node| {
        let look_ahead = |node: &mut Node| node.kernel.look_ahead(&node.scope).unwrap();
        let observe = |node: &mut Node| node.kernel.observe(&node.scope).unwrap();
        node.kernel.watch(&node.scope).unwrap();
        // More than once: links that have just been set up may still report it.
        let spares_requests = |node: &mut Node| {
            (0..20).any(|_| {
                node.kernel.queued();
                look_ahead(node);
                requests_of(|| observe(node)).0 == 0
            })
        };
        assert_eq!(look_ahead(&mut node), None);
        assert!(spares_requests(&mut node), "without a device");
        run("ip route add 10.128.7.0/24 dev wg0");
        node.bring_up();
        node.apply(&(1..300).flat_map(put_peer).collect::<Vec<_>>());
        assert!(spares_requests(&mut node), "with a device");
        for disturbance in ["ip route del 10.128.7.0/24", "ip link set flannel.1 mtu 1300"] {
            node.kernel.queued();
            assert_eq!(look_ahead(&mut node), node.kernel.device(&node.scope).unwrap());
            run(disturbance);
            let observed = observe(&mut node);
            assert!(observed == observe(&mut node), "{disturbance}");
        }
        node.kernel.queued();
        look_ahead(&mut node);
        // Long enough for so small a dump to end.
        run("ip route show");
        node.apply(&[Operation::DeleteRoute(Route::overlay(subnet(1)))]);
        let observed = observe(&mut node);
        assert!(observed == observe(&mut node), "what we did ourselves, of which nobody tells us");
    });
}

/// How many requests `of` sends to the kernel, by their debug lines, and its result.
fn requests_of<T>(of: impl FnOnce() -> T) -> (usize, T) {
    let (line, lines) = std::sync::mpsc::channel();
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG);
    let log = log.with_writer(move || Line(line.clone())).finish();
    let result = tracing::subscriber::with_default(log, of);
    (lines.try_iter().filter(|line| line.contains("netlink request")).count(), result)
}

/// Hands on each line that is logged.
struct Line(std::sync::mpsc::Sender<String>);

impl std::io::Write for Line {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.send(String::from_utf8_lossy(line).into_owned()).unwrap();
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn lost_answers_are_reported_as_failures_and_retrying_helps() {
    let buffers = ReceiveBuffers { answers: 2048, ..ReceiveBuffers::default() };
    in_namespace_with(buffers, async |mut node| {
        node.bring_up();
        let unreachable = Route::direct(subnet(2), Ipv4Addr::new(192, 0, 2, 1));
        let failing = vec![Operation::PutRoute(unreachable); 500];
        let results = node.kernel.apply(&node.scope, &failing);
        assert!(results.iter().all(Result::is_err));
        let lost = results.last().unwrap().clone().unwrap_err();
        assert_eq!((lost.errno, lost.reason.as_str()), (0, "the kernel's answer was lost"));
        node.apply(&put_peer(1));
        assert_eq!(node.entries(), entries(&put_peer(1)));
    });
}

#[test]
fn lost_notifications_are_reported_and_those_after_are_read() {
    let buffers = ReceiveBuffers { notifications: 2048, ..ReceiveBuffers::default() };
    in_namespace_with(buffers, async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.kernel.queued();
        for number in 1..100 {
            run(&format!("ip route add {} dev wg0", subnet(number)));
        }
        assert_eq!(node.notice(|change| *change == Change::Lost).await, Change::Lost);
        node.kernel.queued();
        run("ip route del 10.128.2.0/24");
        node.notice(|change| matches!(change, Change::RouteRemoved(route) if route.dst == subnet(1))).await;
    });
}

#[test]
fn what_others_do_to_our_entries_is_noticed() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.apply(&put_peer(1));
        let target = FdbTarget { dst: station(1), plain: true };
        let route = Route::overlay(subnet(1));
        // Whose an FDB entry is the kernel does not tell; our neighbours and routes are not told to us.
        assert_eq!(node.kernel.queued(), [Change::Fdb(mac(1), Some(target))]);

        run("ip route del 10.128.2.0/24");
        assert_eq!(node.kernel.changed().await, [Change::RouteRemoved(route)]);
        run("ip neigh del 10.128.2.0 dev flannel.1");
        assert_eq!(node.kernel.changed().await, [Change::Neighbor(subnet(1).network(), None)]);
        run("bridge fdb del 02:00:01:00:00:01 dev flannel.1 dst 10.16.0.1 self");
        assert_eq!(node.kernel.changed().await, [Change::Fdb(mac(1), None)]);

        node.apply(&put_peer(1));
        node.kernel.queued();
        run("ip neigh replace 10.128.2.0 lladdr 02:00:01:00:00:01 dev flannel.1 nud reachable");
        assert_eq!(node.kernel.changed().await, [Change::Neighbor(subnet(1).network(), None)]);
        run("bridge fdb replace 02:00:01:00:00:01 dev flannel.1 dst 10.16.0.99 self dynamic");
        assert_eq!(node.kernel.changed().await.last(), Some(&Change::Fdb(mac(1), None)));
        run("ip route replace 10.128.2.0/24 via 10.8.0.1 proto static");
        let theirs = Route { protocol: 4, ..Route::direct(subnet(1), Ipv4Addr::new(10, 8, 0, 1)) };
        assert_eq!(node.kernel.changed().await, [Change::RouteAdded { route: theirs, replaced: true }]);
    });
}

#[test]
fn what_does_not_concern_us_is_not_reported() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.kernel.queued();
        run("ip route add 192.0.2.0/24 dev wg0");
        run("ip route add 10.128.9.0/24 dev wg0 table 100");
        run("ip neigh add 10.8.0.9 lladdr 02:00:00:00:00:09 dev wg0 nud permanent");
        run("bridge fdb add 02:00:00:00:00:09 dev wg0 self permanent");
        run("ip addr add 10.128.77.1/32 dev far0");
        run("ip link add br0 type bridge");
        assert_eq!(node.kernel.queued(), []);
    });
}

#[test]
fn every_change_of_our_device_is_noticed() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.kernel.queued();
        for command in [
            "ip link set flannel.1 mtu 1300",
            "ip link set flannel.1 address 02:00:00:00:00:01",
            "ip addr add 10.128.0.1/32 dev flannel.1",
            "ip addr del 10.128.0.1/32 dev flannel.1",
            "ip link set flannel.1 type vxlan learning",
            "ip link set flannel.1 down",
            "ip link set flannel.1 name renamed0",
            "ip link set renamed0 name flannel.1",
            "ip link del flannel.1",
            "ip link add flannel.1 type bridge",
        ] {
            run(command);
            assert!(node.kernel.changed().await.contains(&Change::Device), "{command}");
        }
    });
}

#[test]
fn entries_go_to_the_new_device_when_it_was_recreated_by_somebody() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.apply(&put_peer(1));
        run("ip link del flannel.1");
        run("ip link add flannel.1 type vxlan id 1 local 10.8.0.111 dev wg0 dstport 8472 nolearning");
        run("ip addr add 10.128.0.0/32 dev flannel.1");
        run("ip link set flannel.1 up");
        assert!(node.kernel.queued().contains(&Change::Device));
        node.apply(&put_peer(1));
        assert_eq!(node.entries(), entries(&put_peer(1)));
        assert_eq!(node.kernel.queued().iter().filter(|change| change.key().is_some()).count(), 1);
    });
}

#[test]
fn a_stale_index_costs_one_failed_attempt() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.apply(&put_peer(1));
        run("ip link del flannel.1");
        run("ip link add flannel.1 type vxlan id 1 local 10.8.0.111 dev wg0 dstport 8472 nolearning");
        run("ip addr add 10.128.0.0/32 dev flannel.1");
        run("ip link set flannel.1 up");
        assert!(node.kernel.apply(&node.scope, &put_peer(1)).iter().all(Result::is_err));
        node.apply(&put_peer(1));
    });
}

#[test]
fn the_underlay_is_followed_through_a_restart_of_the_vpn() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.kernel.queued();
        run("ip link set wg0 mtu 1400");
        assert_eq!(node.kernel.changed().await.last(), Some(&Change::Underlay));
        run("ip addr add 10.8.0.5/24 dev wg0");
        assert_eq!(node.kernel.changed().await, [Change::Underlay]);
        run("ip link del wg0");
        let gone = node.kernel.changed().await;
        assert!(gone.contains(&Change::Device) && gone.contains(&Change::Underlay), "{gone:?}");
        node.kernel.queued();
        run("ip link add wg0 type bridge");
        assert_eq!(node.kernel.changed().await, [Change::Underlay]);
        run("ip addr add 10.8.0.111/24 dev wg0");
        assert_eq!(node.kernel.changed().await, [Change::Underlay]);
    });
}

#[test]
fn what_the_choice_of_the_underlay_depends_on_is_noticed() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.kernel.queued();
        for command in [
            "ip addr add 10.99.0.1/24 dev far0",
            "ip addr del 10.99.0.1/24 dev far0",
            "ip route add default dev wg0 metric 77",
            "ip route del default dev wg0 metric 77",
            "ip link add br0 type bridge",
            "ip link del br0",
        ] {
            run(command);
            let expected: &[Change] =
                if command == "ip link add br0 type bridge" { &[] } else { &[Change::Underlay] };
            assert_eq!(node.kernel.queued(), expected, "{command}");
        }
    });
}

#[test]
fn the_process_behind_a_change_is_known_where_the_kernel_tells() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.apply(&put_peer(1));
        node.kernel.queued();
        assert_eq!(node.kernel.author(), None, "our own changes are nobody else's");
        let mut command = Command::new("ip").args(["route", "del", "10.128.2.0/24"]).spawn().unwrap();
        assert!(command.wait().unwrap().success());
        node.kernel.queued();
        assert_eq!(node.kernel.author(), Some(command.id()));
    });
}

#[test]
fn waiting_can_be_given_up_and_taken_up_again() {
    in_namespace(async |mut node| {
        node.bring_up();
        node.kernel.watch(&node.scope).unwrap();
        node.kernel.queued();
        for number in 1..20 {
            tokio::select! {
                biased;
                changes = node.kernel.changed() => panic!("nothing happened yet: {changes:?}"),
                () = std::future::ready(()) => {}
            }
            run(&format!("ip route add {} dev wg0", subnet(number)));
            let changes = node.kernel.changed().await;
            assert_eq!(changes.len(), 1, "{changes:?}");
        }
    });
}
