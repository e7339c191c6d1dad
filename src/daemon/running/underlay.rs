//! Follows the interface below the tunnel: device, lease and `subnet.env` go where the selection rules lead now.

use std::net::Ipv4Addr;
use std::time::Duration;

use tracing::warn;

use super::Running;
use crate::daemon::underlay::{Look, look, needed};
use crate::kernel::Kernel;
use crate::model::fights::{Fights, Verdict};
use crate::model::underlay::{Choice, Underlay};
use crate::store::LeaseStore;

/// How many addresses outside of the overlay are remembered before they are forgotten, should they change all the time.
const REMEMBERED: usize = 64;

/// What is below the tunnel.
#[derive(Debug)]
pub(in crate::daemon) struct Below {
    /// How it is chosen.
    choice: Choice,
    /// What was chosen.
    now: Underlay,
    /// The store's addresses.
    store: Vec<Ipv4Addr>,
    fights: Fights<()>,
    /// The underlay changes all the time: when it may be followed again.
    pub(super) due: Option<Duration>,
    /// What must not be routed into the overlay, now or earlier.
    pub(in crate::daemon) needed: Vec<Ipv4Addr>,
}

impl Below {
    /// What the start has chosen.
    pub(in crate::daemon) fn new<K: Kernel>(
        kernel: &mut K,
        (choice, now): (Choice, Underlay),
        store: &[Ipv4Addr],
    ) -> Self {
        let needed = needed(kernel, store, &now);
        Self { choice, now, store: store.to_vec(), fights: Fights::default(), due: None, needed }
    }

    /// Adds what is needed now; what was needed earlier may be again.
    fn remember(&mut self, addresses: &[Ipv4Addr]) {
        if self.needed.len() > REMEMBERED {
            self.needed.clear();
        }
        self.needed.extend(addresses);
        self.needed.sort_unstable();
        self.needed.dedup();
    }
}

impl<S: LeaseStore, K: Kernel> Running<S, K> {
    /// Runs the selection rules again. While they lead nowhere everything stays as it is.
    pub(super) fn look_below(&mut self) {
        self.below.due = None;
        match look(&self.below.choice, &mut self.data_plane.kernel) {
            Ok(Look { chosen: Ok(chosen), .. }) => self.follow(chosen),
            Ok(Look { chosen: Err(none), .. }) => self.reporter.underlay_missing(&none),
            Err(error) => self.reporter.underlay_missing(&error),
        }
    }

    fn follow(&mut self, chosen: Underlay) {
        let (was, is) = (&self.below.now.external, &chosen.external);
        if self.reporter.underlay_is_missing() || (&was.name, was.address) != (&is.name, is.address) {
            self.store.reconnect();
        }
        self.reporter.underlay(&chosen);
        let addresses = needed(&mut self.data_plane.kernel, &self.below.store, &chosen);
        self.below.remember(&addresses);
        if chosen != self.below.now {
            if let Verdict::Wait { until, .. } = self.below.fights.ask((), self.clock.now().0) {
                self.below.due = Some(until);
                return;
            }
            let (before, after) = (&self.below.now, &chosen);
            warn!(interface = %after.external.name, address = %after.external.address, mtu = %after.mtu,
                public_ip = %after.public_ip, former_interface = %before.external.name,
                former_address = %before.external.address, former_mtu = %before.mtu,
                "the external interface has changed; device, lease and subnet.env follow");
            if after.mtu < before.mtu {
                warn!(mtu = %after.mtu, "running pods keep the larger MTU: restart those that lose large packets");
            }
            self.data_plane.set_underlay(&chosen.external, chosen.mtu);
            self.file.set_mtu(chosen.mtu);
            self.claim.public_ip = chosen.public_ip;
            self.below.now = chosen;
            self.resync("underlay");
        } else if self.reporter.device_is_failing() || self.data_plane.has_conflicts() {
            // What was in the way may be gone: routes go with their link in silence.
            self.resync("underlay");
        }
        if self.is_outdated() {
            self.timers.renew = Some(self.clock.now());
        }
    }
}
