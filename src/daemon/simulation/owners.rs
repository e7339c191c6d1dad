//! Watches over the promise: at no moment do two nodes both say that they own one subnet.
//!
//! What the promise cannot cover is excused, with its bound: when somebody deletes or overwrites a node's key, or the store is
//! replaced, the node may believe in its lease until that would have run out, while another node takes the subnet.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::history;
use crate::status::{OwnLease, Status};

/// Who says that it owns what.
#[derive(Debug, Default)]
pub(super) struct Owners {
    claims: BTreeMap<usize, OwnLease>,
    excused: BTreeMap<Ipv4Network, Duration>,
    all_excused: Duration,
    /// The promise was broken.
    pub(super) broken: Vec<String>,
}

impl Owners {
    /// Takes note of what a node says of itself. A node that crashed still counts: its pods go on.
    pub(super) fn note(&mut self, node: usize, status: &Status, now: Duration) {
        history::note((node, &status.lease, &status.phase));
        if let Some(lease) = &status.lease {
            let rival = self.claims.iter().find(|(other, claim)| {
                **other != node && claim.subnet == lease.subnet && !claim.is_expired(now)
            });
            if let Some((other, claim)) = rival
                && !lease.is_expired(now)
                && !self.is_excused(lease.subnet, now)
            {
                self.broken.push(format!(
                    "at {now:?} nodes {other} and {node} both own {}, until {:?} and {:?}",
                    lease.subnet, claim.expires, lease.expires
                ));
            }
            self.claims.insert(node, lease.clone());
        } else {
            self.claims.remove(&node);
        }
    }

    /// What a node says, or said last.
    pub(super) fn claim(&self, node: usize) -> Option<OwnLease> {
        self.claims.get(&node).cloned()
    }

    /// Somebody took this subnet's key away from its owner.
    pub(super) fn excuse(&mut self, subnet: Ipv4Network, until: Duration) {
        self.excused.insert(subnet, until);
    }

    /// The store forgot everything.
    pub(super) fn excuse_all(&mut self, until: Duration) {
        self.all_excused = until;
    }

    fn is_excused(&self, subnet: Ipv4Network, now: Duration) -> bool {
        now < self.all_excused || self.excused.get(&subnet).is_some_and(|until| now < *until)
    }
}
