//! Tells a clone of this machine by what it writes into our key. What to do about it is the operator's business.
//!
//! A clone has our machine id and so our `NodeID`; with our public IP, too, the lease is its own as much as ours. What it
//! cannot have is our kernel's boot id. While we run, no earlier or later boot of this machine can write.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use crate::clock::BootTime;
use crate::daemon::acquire::Claim;
use crate::model::{BootId, LeaseAttrs, NodeId};

/// How long the pause between two looks at our key is while a clone writes it, too: each look ends in a write, which the clone
/// answers with its own.
const PAUSE: Duration = Duration::from_secs(60);
/// A clone that has not written for so long is gone.
const GONE: Duration = Duration::from_secs(600);

/// When a clone was last heard of.
#[derive(Debug, Default)]
pub(super) struct Clones {
    last: Option<BootTime>,
}

impl Clones {
    /// A clone has written our key.
    pub(super) fn seen(&mut self, now: BootTime) {
        self.last = Some(now);
    }

    /// How long to leave our key alone after the last look at it, while there is a clone.
    pub(super) fn pause(&self, now: BootTime) -> Option<Duration> {
        self.last.filter(|last| now.since(*last) < GONE).map(|_| PAUSE)
    }
}

/// Another running machine that takes itself for this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Twin {
    public_ip: Ipv4Addr,
    node: NodeId,
    ours: BootId,
    theirs: BootId,
}

/// Whether `standing`, found in our key while we run, was written by a clone.
pub(super) fn clone_of(claim: &Claim, standing: &LeaseAttrs) -> Option<Twin> {
    let (node, ours, theirs) = (claim.node_id?, claim.boot_id?, standing.boot_id?);
    let is_clone = standing.node_id == Some(node) && theirs != ours;
    is_clone.then_some(Twin { public_ip: standing.public_ip, node, ours, theirs })
}

impl Twin {
    /// For the log.
    pub(super) fn in_words(self, subnet: Ipv4Network) -> String {
        let Self { public_ip, node, ours, theirs } = self;
        format!(
            "ANOTHER MACHINE TAKES ITSELF FOR THIS NODE: it has written the lease of {subnet} with public IP {public_ip} and this \
             node's NodeID {node}, but its kernel was booted apart from ours (BootID {theirs}, ours {ours}). That is a cloned disk: \
             packets for {subnet} reach one of the two at random. On the clone stop flanneld, delete subnet.env and \
             /etc/machine-id, run systemd-machine-id-setup, and give it an address of its own (-iface, -public-ip)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MacAddr, NetworkConfig, VxlanData};

    fn boot(text: &str) -> Option<BootId> {
        BootId::from_kernel(text)
    }

    fn claim(node_id: Option<NodeId>, boot_id: Option<BootId>) -> Claim {
        let config = NetworkConfig::from_json(br#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}"#);
        Claim {
            config: config.unwrap(),
            public_ip: Ipv4Addr::new(10, 8, 0, 111),
            node_id,
            boot_id,
            previous: None,
            device_mac: None,
            fresh_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            ttl: Duration::from_secs(1),
        }
    }

    fn written(node_id: Option<NodeId>, boot_id: Option<BootId>) -> LeaseAttrs {
        let data = VxlanData { vni: 1, mac: MacAddr::new([2, 0, 0, 0, 0, 1]) };
        LeaseAttrs::vxlan(Ipv4Addr::new(10, 8, 0, 111), data, node_id).since_boot(boot_id)
    }

    #[test]
    fn only_the_same_machine_with_another_boot_is_a_clone() {
        let (us, them) = (NodeId::from_machine_id("us"), NodeId::from_machine_id("them"));
        let ours = claim(Some(us), boot("a"));
        for (node, boot_id, expected) in [
            (Some(us), boot("b"), true),
            (Some(us), boot("a\n"), false),
            (Some(us), None, false),
            (Some(them), boot("b"), false),
            (None, None, false),
        ] {
            let found = clone_of(&ours, &written(node, boot_id));
            assert_eq!(found.is_some(), expected, "{node:?} {boot_id:?}");
        }
        assert_eq!(
            clone_of(&claim(Some(us), None), &written(Some(us), boot("b"))),
            None,
            "we do not know our boot"
        );
        assert_eq!(
            clone_of(&claim(None, boot("a")), &written(None, boot("b"))),
            None,
            "nobody has a machine id"
        );
    }

    #[test]
    fn the_message_names_the_clone_and_the_cure() {
        let us = NodeId::from_machine_id("us");
        let clone = clone_of(&claim(Some(us), boot("a")), &written(Some(us), boot("b"))).unwrap();
        let expected = "ANOTHER MACHINE TAKES ITSELF FOR THIS NODE: it has written the lease of 10.200.8.0/24 with public IP \
            10.8.0.111 and this node's NodeID 9502d4f947df09ad, but its kernel was booted apart from ours (BootID \
            ba6eb1dd34d0bf71, ours 84eaf3ed2dce8138). That is a cloned disk: packets for 10.200.8.0/24 reach one of the two \
            at random. On the clone stop flanneld, delete subnet.env and /etc/machine-id, run systemd-machine-id-setup, and \
            give it an address of its own (-iface, -public-ip)";
        assert_eq!(clone.in_words("10.200.8.0/24".parse().unwrap()), expected);
    }

    #[test]
    fn our_key_is_left_alone_for_longer_while_there_is_a_clone() {
        let mut clones = Clones::default();
        let at = |seconds| BootTime(Duration::from_secs(seconds));
        assert_eq!(clones.pause(at(1)), None);
        clones.seen(at(10));
        assert_eq!(clones.pause(at(11)), Some(PAUSE));
        assert_eq!(clones.pause(at(10 + 600)), None);
    }
}
