//! Our requests are the bytes that the Go daemon sends, but for the sequence number; where not, the test says why.

use super::*;
use crate::kernel::recorded::go;
use crate::model::Vni;

/// Indexes in the recordings.
const WG0: u32 = 2;
const VTEP: u32 = 3;

fn encode(request: impl FnOnce(&mut Vec<u8>, Stamp)) -> Vec<u8> {
    let mut out = Vec::new();
    request(&mut out, Stamp { sequence: 0, acknowledge: true });
    out
}

fn encode_operation(operation: &Operation) -> Vec<u8> {
    encode(|out, stamp| super::operation(out, stamp, VTEP, operation))
}

/// As sent for a dump or a lookup, where the answer itself says that the request arrived.
fn unacknowledged(request: impl FnOnce(&mut Vec<u8>, Stamp)) -> Vec<u8> {
    let mut out = Vec::new();
    request(&mut out, Stamp { sequence: 0, acknowledge: false });
    out
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn subnet(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn vtep() -> Vtep {
    Vtep {
        name: "flannel.1".parse().unwrap(),
        mac: mac("22:84:96:4b:66:c2"),
        vni: Vni::DEFAULT,
        parent: "wg0".parse().unwrap(),
        local: Ipv4Addr::new(10, 8, 0, 111),
        port: None,
        mtu: Mtu::try_from(1370).unwrap(),
        learning: false,
        gbp: false,
        tx_checksum: None,
    }
}

/// `netlink-packet-route` ends the kind of a link with a zero byte, the Go daemon does not. The kernel takes both; the byte
/// lies in what is padding otherwise, so that only the length of `IFLA_INFO_KIND` differs.
fn with_terminated_kind(mut bytes: Vec<u8>) -> Vec<u8> {
    let kind = [9, 0, 1, 0, b'v', b'x', b'l', b'a', b'n', 0, 0, 0];
    let place = bytes.windows(kind.len()).position(|window| window == kind).unwrap();
    bytes[place] = 10;
    bytes
}

#[test]
fn the_device_is_created_with_the_same_bytes() {
    let recorded = with_terminated_kind(go("ip link add flannel.1 type vxlan"));
    assert_eq!(encode(|out, stamp| create(out, stamp, &vtep(), WG0)), recorded);
    let other = Vtep {
        name: "flannel.42".parse().unwrap(),
        mac: mac("96:18:fe:e1:06:dc"),
        vni: Vni::try_from(42).unwrap(),
        port: Some(4789),
        mtu: Mtu::try_from(1350).unwrap(),
        ..vtep()
    };
    let recorded = with_terminated_kind(go("ip link add flannel.42 type vxlan, with a port"));
    assert_eq!(encode(|out, stamp| create(out, stamp, &other, WG0)), recorded);
}

#[test]
fn the_device_is_addressed_and_brought_up_with_the_same_bytes() {
    let address = subnet("10.200.43.0/32");
    assert_eq!(encode(|out, stamp| add_address(out, stamp, VTEP, address)), go("ip addr add"));
    assert_eq!(encode(|out, stamp| set_up(out, stamp, VTEP)), go("ip link set up"));
}

#[test]
fn a_peers_entries_are_put_with_the_same_bytes() {
    let (ip, station) = (Ipv4Addr::new(10, 200, 54, 0), Ipv4Addr::new(10, 8, 0, 112));
    let peer = mac("e2:f9:06:60:e7:6a");
    assert_eq!(encode_operation(&Operation::PutNeighbor(ip, peer)), go("ip neigh replace"));
    assert_eq!(encode_operation(&Operation::PutFdb(peer, station)), go("bridge fdb replace"));
    let route = Route::overlay(subnet("10.200.54.0/24"));
    assert_eq!(encode_operation(&Operation::PutRoute(route)), go("ip route replace, onlink"));
    let older = Operation::PutNeighbor(Ipv4Addr::new(10, 200, 87, 0), mac("82:74:53:46:43:0b"));
    assert_eq!(encode_operation(&older), go("ip neigh replace (v0.16.1)"));
}

#[test]
fn a_peers_entries_are_deleted_with_the_same_bytes() {
    let (ip, station) = (Ipv4Addr::new(10, 200, 45, 0), Ipv4Addr::new(10, 8, 0, 113));
    let peer = mac("a2:e0:a1:b7:ee:5b");
    assert_eq!(encode_operation(&Operation::DeleteNeighbor(ip, peer)), go("ip neigh del"));
    assert_eq!(encode_operation(&Operation::DeleteFdb(peer, station)), go("bridge fdb del"));
    let route = Route::overlay(subnet("10.200.45.0/24"));
    assert_eq!(encode_operation(&Operation::DeleteRoute(route)), go("ip route del, onlink"));
}

/// Ours carry our own protocol number; with that of the Go daemon they are the same.
#[test]
fn direct_routes_differ_in_the_protocol_only() {
    let direct = |subnet_text: &str, gateway: [u8; 4]| Route::direct(subnet(subnet_text), gateway.into());
    for (route, name) in [
        (direct("10.200.29.0/24", [10, 8, 0, 112]), "ip route replace, direct"),
        (direct("10.200.46.0/24", [10, 8, 0, 112]), "ip route replace, direct (v0.16.1)"),
    ] {
        let boot = Route { protocol: 3, ..route };
        assert_eq!(encode_operation(&Operation::PutRoute(boot)), go(name));
        let mut recorded = go(name);
        // rtm_protocol: behind the netlink header, the sixth byte of rtmsg.
        recorded[16 + 5] = 149;
        assert_eq!(encode_operation(&Operation::PutRoute(route)), recorded);
    }
    let gone = Operation::DeleteRoute(direct("10.200.65.0/24", [10, 8, 0, 113]));
    assert_eq!(encode_operation(&gone), go("ip route del, direct"));
}

/// What the Go daemon never sends: a metric, and a route of unknown scope.
#[test]
fn a_foreign_route_is_deleted_by_metric_and_in_any_scope() {
    let route = Route { metric: 7, plain: false, ..Route::overlay(subnet("10.200.45.0/24")) };
    let mut expected = go("ip route del, onlink");
    expected[0] += 8;
    expected[16 + 6] = 255;
    expected.extend([8, 0, 6, 0, 7, 0, 0, 0]);
    assert_eq!(encode_operation(&Operation::DeleteRoute(route)), expected);
}

#[test]
fn a_route_is_looked_up_with_the_same_bytes() {
    let found = unacknowledged(|out, stamp| route_to(out, stamp, Ipv4Addr::new(10, 8, 0, 112)));
    assert_eq!(found, go("ip route get"));
}

#[test]
fn addresses_are_dumped_with_the_same_bytes() {
    assert_eq!(unacknowledged(|out, stamp| addresses(out, stamp, 0)), go("ip -4 addr show"));
}

/// We ask for a link without statistics (`RTEXT_FILTER_SKIP_STATS`, 8) where the Go daemon asks for its virtual functions
/// (`RTEXT_FILTER_VF`, 1), and without an acknowledgement behind the answer.
#[test]
fn links_are_asked_for_without_statistics() {
    let name = "flannel.1".parse().unwrap();
    for (ours, recorded) in [
        (unacknowledged(|out, stamp| link_by_name(out, stamp, &name)), go("ip link show flannel.1")),
        (unacknowledged(|out, stamp| link_by_index(out, stamp, VTEP)), go("ip link show, by index")),
    ] {
        let mut expected = recorded;
        expected[6] = 1;
        expected[16 + 16 + 4] = 8;
        assert_eq!(ours, expected);
    }
}

/// The Go daemon dumps links with `rtgenmsg`, one byte. Strict checking demands a whole `ifinfomsg`.
#[test]
fn a_dump_of_links_has_a_whole_header() {
    let ours = unacknowledged(links);
    let recorded = go("ip link show");
    assert_eq!(ours[4..8], recorded[4..8]);
    assert_eq!(ours.len(), 16 + 16 + 8);
}

#[test]
fn many_requests_stand_behind_each_other_with_their_own_numbers() {
    let operation = Operation::PutNeighbor(Ipv4Addr::new(10, 200, 54, 0), mac("e2:f9:06:60:e7:6a"));
    let mut out = Vec::new();
    for sequence in [7, 8] {
        super::operation(&mut out, Stamp { sequence, acknowledge: sequence == 8 }, VTEP, &operation);
    }
    let mut first = go("ip neigh replace");
    let mut second = first.clone();
    first[8] = 7;
    second[8] = 8;
    // NLM_F_ACK on the last one only; an error is answered without it.
    first[6] &= !4;
    assert_eq!(out, [first, second].concat());
}
