//! Another node has published our VTEP MAC, as a copied device or lease may: whoever published it later takes another one.
//!
//! Nobody can be made to change again and again: the new MAC is known to others only after it was published, and then we are
//! the first.

use tracing::warn;

use super::Running;
use crate::daemon::acquire::random_bytes;
use crate::kernel::Kernel;
use crate::model::MacAddr;
use crate::model::lease_set::Rival;
use crate::model::two_stores::Origin;
use crate::store::{LeaseStore, Revision};

impl<S: LeaseStore, K: Kernel> Running<S, K> {
    /// Takes another MAC if that is up to us; the device gets it with the next `resync`, the peers with the next claim.
    pub(super) fn give_up_shared_mac(&mut self) -> bool {
        let (held, mac) = (&self.lease.held, self.data_plane.vtep().mac);
        // The MAC of a reservation is somebody's will, and until a new one is published everybody sees the old one.
        if held.lease.is_none() || self.lease.mac() != Some(mac) {
            return false;
        }
        let older = |rival: &Rival| is_before(rival.writer.revision, held.modified);
        let Some(rival) = self.data_plane.leases.with_our_mac().find(older) else { return false };
        let fresh = MacAddr::local_from_random(random_bytes());
        warn!(%mac, %fresh, first = %rival, "another node published our VTEP MAC before us; this node takes a new one");
        self.data_plane.set_mac(fresh);
        self.timers.renew = Some(self.clock.now());
        true
    }
}

/// Revisions of two stores do not compare.
fn is_before(theirs: Revision, ours: Revision) -> bool {
    let ((their_store, theirs), (our_store, ours)) = (Origin::of(theirs), Origin::of(ours));
    their_store == our_store && theirs < ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_revisions_of_one_store_say_who_was_first() {
        assert!(is_before(7, 8));
        assert!(!is_before(8, 8) && !is_before(9, 8));
        assert!(!is_before(Origin::V2.modified(7), Origin::V3.modified(8)));
        assert!(!is_before(Origin::V3.modified(7), Origin::V2.modified(8)));
        assert!(is_before(Origin::V2.modified(7), Origin::V2.modified(8)));
    }
}
