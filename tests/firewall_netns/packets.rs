//! One table of packets, written once, under every firewall and under the rules the Go daemon recorded.

use std::net::{Ipv4Addr, SocketAddr};

use flanneld::firewall::{Backend, Variant};
use flanneld::model::masquerade::RuleSet;

use crate::lab::address::{BRIDGE, GROUP, HOST, OUTSIDE, PEER_POD, POD, POD_TWO, UNRELATED, VTEP};
use crate::lab::{HAIRPIN_PORT, LOCAL_NODE_PORT, Lab, NODE_PORT, Namespace, PLAIN, flow};
use crate::{ensure, firewall_for, overlay, rule_options, rules};

/// Who sends: a namespace and the address it sends from.
#[derive(Debug, Clone, Copy)]
enum From {
    Pod,
    Host,
    HostAsBridge,
    PeerPod,
    Outside,
    Unrelated,
}

/// Where to: an address, and the namespace that listens there.
#[derive(Debug, Clone, Copy)]
enum To {
    Pod,
    PodTwo,
    Host,
    PeerPod,
    Outside,
    Group,
    /// A node port; what listens behind it.
    Service(u16),
}

/// The table: source, destination, port, and the source address that the receiver sees.
const TABLE: [(From, To, u16, Ipv4Addr); 20] = [
    (From::Pod, To::PodTwo, PLAIN, POD),
    (From::Pod, To::PeerPod, PLAIN, POD),
    (From::Pod, To::Host, PLAIN, POD),
    (From::Pod, To::Outside, PLAIN, HOST),
    (From::Pod, To::Outside, 7001, POD), // mark 0x4000: kube-proxy's business
    (From::Pod, To::Outside, 7002, POD), // the same with another bit set
    (From::Pod, To::Outside, 7003, HOST), // mark 0x1: nobody's business
    (From::Host, To::Pod, PLAIN, HOST),
    (From::Host, To::PeerPod, PLAIN, VTEP),
    (From::Host, To::Outside, PLAIN, HOST),
    (From::HostAsBridge, To::Outside, PLAIN, HOST),
    (From::HostAsBridge, To::Group, PLAIN, BRIDGE),
    (From::PeerPod, To::Pod, PLAIN, PEER_POD),
    (From::PeerPod, To::Outside, PLAIN, HOST),
    (From::Outside, To::Pod, PLAIN, OUTSIDE),
    (From::Outside, To::PeerPod, PLAIN, VTEP),
    (From::Outside, To::PeerPod, 7001, OUTSIDE),
    (From::Outside, To::Service(NODE_PORT), NODE_PORT, VTEP),
    (From::Outside, To::Service(LOCAL_NODE_PORT), LOCAL_NODE_PORT, OUTSIDE),
    (From::Pod, To::Service(HAIRPIN_PORT), HAIRPIN_PORT, BRIDGE),
];

fn sender(lab: &Lab, from: From) -> (&Namespace, Ipv4Addr) {
    match from {
        From::Pod => (&lab.pod, POD),
        From::Host => (&lab.node, HOST),
        From::HostAsBridge => (&lab.node, BRIDGE),
        From::PeerPod => (&lab.peer, PEER_POD),
        From::Outside => (&lab.outside, OUTSIDE),
        From::Unrelated => (&lab.unrelated, UNRELATED),
    }
}

/// The address to send to, and where it arrives.
fn receiver(lab: &Lab, to: To) -> (Ipv4Addr, &Namespace) {
    match to {
        To::Pod => (POD, &lab.pod),
        To::PodTwo => (POD_TWO, &lab.pod_two),
        To::Host => (HOST, &lab.node),
        To::PeerPod => (PEER_POD, &lab.peer),
        To::Outside => (OUTSIDE, &lab.outside),
        To::Group => (GROUP, &lab.outside),
        To::Service(NODE_PORT) => (HOST, &lab.peer),
        To::Service(_) => (HOST, &lab.pod),
    }
}

fn seen_source(lab: &Lab, from: From, to: To, port: u16) -> Ipv4Addr {
    let (sender, source) = sender(lab, from);
    let (target, arrives) = receiver(lab, to);
    let sender = sender.socket(source, 0);
    let listen = if matches!(to, To::Service(_)) { PLAIN } else { port };
    let receiver = arrives.socket(Ipv4Addr::UNSPECIFIED, listen);
    if matches!(to, To::Group) {
        receiver.join_multicast_v4(&GROUP, &OUTSIDE).unwrap();
        // Otherwise the kernel takes the interface that has the source address.
        socket2::SockRef::from(&sender).set_multicast_if_v4(&HOST).unwrap();
    }
    flow(&sender, SocketAddr::from((target, port)), &receiver)
}

/// The whole table.
pub(crate) fn check(lab: &Lab) {
    for (from, to, port, expected) in TABLE {
        println!("{from:?} to {to:?} port {port}");
        assert_eq!(seen_source(lab, from, to, port), expected, "{from:?} to {to:?} port {port}");
    }
}

/// Whether a packet that has nothing to do with the overlay is forwarded; if not, a later one arrives first.
pub(crate) fn unrelated_passes(lab: &Lab) -> bool {
    let receiver = lab.outside.socket(Ipv4Addr::UNSPECIFIED, PLAIN);
    let target = SocketAddr::from((OUTSIDE, PLAIN));
    let (namespace, source) = sender(lab, From::Unrelated);
    namespace.socket(source, 0).send_to(b"unrelated", target).unwrap();
    lab.node.socket(HOST, 0).send_to(b"last", target).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = receiver.recv_from(&mut buffer).unwrap();
    let passes = &buffer[..length] == b"unrelated";
    assert!(!passes || from.ip() == UNRELATED, "masqueraded: {from}");
    passes
}

fn check_backend(backend: Backend) {
    let lab = Lab::new();
    lab.add_services();
    let mut firewall = firewall_for(&lab.node, backend);
    lab.node.block_on(async || {
        assert_eq!(ensure(&mut firewall, &rules()).await.choice.backend, backend);
    });
    check(&lab);
    assert!(unrelated_passes(&lab));
}

#[test]
fn packets_under_nftables() {
    check_backend(Backend::Nftables);
}

#[test]
fn packets_under_iptables_nft() {
    check_backend(Backend::Iptables(Variant::Nft));
}

#[test]
fn packets_under_iptables_legacy() {
    check_backend(Backend::Iptables(Variant::Legacy));
}

#[test]
fn packets_under_the_rules_of_the_go_daemon() {
    for variant in ["nft", "legacy"] {
        let lab = Lab::new();
        lab.add_services();
        lab.node
            .feed(&format!("iptables-{variant}-restore"), &crate::take_over::go_rules("v0.28.9", variant));
        check(&lab);
    }
}

#[test]
fn excluded_destinations_see_the_pod() {
    for backend in crate::BACKENDS {
        let lab = Lab::new();
        let mut firewall = firewall_for(&lab.node, backend);
        let mut options = rule_options();
        options.exclude.push("10.8.0.1/32".parse().unwrap());
        let rules = RuleSet::new(overlay("10.200.0.0/16", "10.200.43.0/24"), None, &options);
        lab.node.block_on(async || ensure(&mut firewall, &rules).await);
        assert_eq!(seen_source(&lab, From::Pod, To::Outside, PLAIN), POD);
        assert_eq!(seen_source(&lab, From::Host, To::PeerPod, PLAIN), VTEP);
    }
}

#[test]
fn a_forward_policy_of_drop_does_not_stop_pods_under_any_firewall() {
    for drops in ["legacy", "nft"] {
        for backend in crate::BACKENDS {
            let lab = Lab::new();
            lab.add_services();
            let mut firewall = firewall_for(&lab.node, backend);
            lab.node.sh(&format!("iptables-{drops} -P FORWARD DROP"));
            lab.node.block_on(async || ensure(&mut firewall, &rules()).await);
            check(&lab);
            assert!(!unrelated_passes(&lab), "{drops} {backend}");
            lab.node.block_on(async || firewall.cleanup().await.unwrap());
            let save = lab.node.sh(&format!("iptables-{drops}-save"));
            assert!(save.contains(":FORWARD DROP") && !save.contains("FLANNEL"), "{save}");
        }
    }
}
