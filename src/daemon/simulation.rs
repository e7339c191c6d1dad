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
//! a machine sleeps. The wall clock, set by ±48 h or by a year, is never asked for (`clippy.toml` refuses it), so there is nothing to
//! simulate. What is left of a jump is forward: one process that is not run for up to 48 h while the store's time and everybody
//! else's goes on (SIGSTOP, a suspended or migrated machine), also between a request and its answer, and all machines together
//! waking up 48 h later. Both are among the faults.
//!
//! **Replaying.** A seed has one history, to the last answer and kernel operation, in every process that has run nothing before it:
//! all choices of the faults, of the daemons and, see `chance`, of tokio follow from it.
//!
//! `tests/simulation/program.rs` runs it with 200 nodes for every seed; here, in a debug build, a few nodes must do.

// A simulation fails as tests do; clippy only knows functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod chance;
mod cluster;
mod faults;
mod history;
mod link;
mod node;
mod owners;
mod whole;

use cluster::Cluster;

use crate::store::seeded;

/// Runs one simulation of so many nodes, and some that join later: on a thread of its own, where everything follows from the seed.
/// What happened, in one number.
///
/// # Panics
/// With the history, when the promise was broken or a kernel is not whole.
pub fn run(seed: u64, nodes: u64) -> u64 {
    let simulation = move || {
        seeded::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async { Cluster::new(seed, nodes).run().await });
        history::so_far()
    };
    std::thread::spawn(simulation).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    /// The history of a seed, run in a process of its own by the test below; `None` when it failed.
    fn replay(seed: u64, nodes: u64) -> Option<String> {
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["--exact", "daemon::simulation::tests::one_seed", "--ignored", "--nocapture"]);
        let ended = test.env("SIMULATION", format!("{seed} {nodes}")).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        let history =
            said.lines().find_map(|line| line.split_once("history ")).map(|(_, history)| history.to_owned());
        if history.is_none() {
            println!("SIMULATION='{seed} {nodes}':\n{said}{}", String::from_utf8_lossy(&ended.stderr));
        }
        history
    }

    #[test]
    #[ignore = "the tests beside it run it, each seed in a process of its own; by hand with SIMULATION='SEED NODES'"]
    fn one_seed() {
        let [seed, nodes] =
            [0, 1].map(|at| env::var("SIMULATION").unwrap().split(' ').nth(at).unwrap().parse().unwrap());
        println!("history {:016x}", super::run(seed, nodes));
    }

    #[test]
    fn faults_of_every_kind_among_a_few_nodes() {
        let failed: Vec<_> = (0..40_u64).filter(|seed| replay(*seed, 2 + seed % 7).is_none()).collect();
        assert!(failed.is_empty(), "seeds {failed:?} failed, see above");
    }

    #[test]
    fn a_seed_has_one_history() {
        let histories = [1, 2, 3].map(|seed| replay(seed, 5).unwrap());
        assert_eq!([1, 2, 3].map(|seed| replay(seed, 5).unwrap()), histories);
        assert!(histories[0] != histories[1] && histories[1] != histories[2]);
    }
}
