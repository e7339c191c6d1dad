//! Whole daemons against a store in memory, each on a fake kernel, under paused time, with faults drawn from a seed.
//!
//! ```text
//! Cluster ── faults ──► Memory (etcd's semantics) ◄── Link (delays, losses, stopped process) ◄── daemon::run ──► SharedKernel
//!    └───── owners: at no moment two nodes own one subnet                                           ▲ faults ─────┘
//!    └───── whole: after quiet every kernel holds what the store's text asks for
//! ```
//!
//! Real: everything from `daemon::run` inwards, the watch, the conditional writes. Not real: netlink, the network, the firewall
//! (nobody keeps rules here) and inotify. subnet.env is a file in memory (`/dev/shm`).
//!
//! **Clock jumps.** The daemon reads `CLOCK_BOOTTIME` and nothing else: nobody can set it, it never goes back, and it goes on while
//! a machine sleeps. The wall clock, set by ±48 h or by a year, is never asked for, so there is nothing to simulate. What is
//! left of a jump is forward: one process that is not run for up to 48 h while the store's time and everybody else's goes on
//! (SIGSTOP, a suspended or migrated machine), also between a request and its answer, and all machines together waking up
//! 48 h later. Both are among the faults.
//!
//! **Replaying.** All choices of the faults and of the daemons follow from the seed. What is left to chance is which of two events
//! of the same millisecond a `tokio::select!` takes first, so a failure that hangs on that may need several runs.
//!
//! `tests/simulation/program.rs` runs it with 200 nodes for every seed; here, in a debug build, a few nodes must do.

// A simulation fails as tests do; clippy only knows functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cluster;
mod faults;
mod link;
mod node;
mod owners;
mod whole;

use cluster::Cluster;

use crate::store::seeded;

/// Runs one simulation of so many nodes, and some that join later. The same seed makes the same choices.
///
/// # Panics
/// With the history, when the promise was broken or a kernel is not whole.
pub fn run(seed: u64, nodes: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    seeded::seed(seed);
    runtime.unwrap().block_on(async { Cluster::new(seed, nodes).run().await });
}

#[cfg(test)]
mod tests {
    #[test]
    fn faults_of_every_kind_among_a_few_nodes() {
        (0..40).for_each(|seed| super::run(seed, 2 + seed % 7));
    }
}
