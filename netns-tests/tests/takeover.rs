//! Worker nodes as the role left them with Go flannel v0.16.1 are taken over while pods talk: v2 store, TLS, client certificate,
//! ip-masq.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use anyhow::Result;
use netns_tests::flanneld::SUBNET_FILE;
use netns_tests::lab::DEVICE;
use netns_tests::monitor::Recorder;
use netns_tests::recorded::{DeviceState, Recorded};
use netns_tests::scenario::Traffic;
use netns_tests::{Flanneld, Lab, Pod, Spec, observe};
use nix::sys::signal::Signal;

#[test]
fn go_nodes_of_the_role_are_taken_over_without_a_lost_packet_or_a_write_to_the_kernel() -> Result<()> {
    let recorded = Recorded::open("v0.16.1")?;
    let spec = Spec { nodes: 2, etcd_tls: true, ..recorded.spec()? };
    let lab = Lab::start(&spec)?;
    recorded.put_leases(&lab)?;
    recorded.install(lab.node(1)?)?;
    recorded.install_other(lab.node(2)?, Lab::public_ip(2))?;
    for node in lab.nodes() {
        recorded.install_rules(node)?;
    }
    let pods = [Pod::attach(lab.node(1)?, "pod")?, Pod::attach(lab.node(2)?, "pod")?];
    let traffic = Traffic::start(&pods[0], &pods[1])?;
    let mut daemons = Vec::new();
    for number in [1, 2] {
        let node = lab.node(number)?;
        let (before, leased) = (DeviceState::observe(node, DEVICE)?, lab.lease(number)?);
        let (mac, file) = (observe::mac(node, DEVICE)?, node.read(SUBNET_FILE)?);
        let recorder = Recorder::start(node)?;
        let options = lab.options(number).flag("ip-masq", "true");
        let mut daemon = Flanneld::start(node, &options)?;
        daemon.wait_ready()?;
        lab.wait_node_converged(&daemon)?;
        traffic.ping().wait_answers(200)?;
        assert_eq!(recorder.changes(DEVICE)?, Vec::<String>::new(), "node{number}");
        DeviceState::observe(node, DEVICE)?.ensure_equals(&before)?;
        let now = lab.lease(number)?;
        assert_eq!((&now.subnet, &now.vtep_mac), (&leased.subnet, &leased.vtep_mac));
        assert_eq!(now.stored.create_revision, leased.stored.create_revision, "the same key lives on");
        assert_eq!((observe::mac(node, DEVICE)?, node.read(SUBNET_FILE)?), (mac, file));
        daemons.push(daemon);
    }
    // And once more, from our own state.
    for (number, daemon) in (1..).zip(daemons) {
        let recorder = Recorder::start(daemon.node())?;
        let node = daemon.node().clone();
        daemon.stop(Signal::SIGKILL)?;
        let options = lab.options(number).flag("ip-masq", "true");
        Flanneld::start(&node, &options)?.wait_ready()?;
        assert_eq!(recorder.changes(DEVICE)?, Vec::<String>::new(), "node{number}");
    }
    traffic.finish_without_loss().map(drop)
}
