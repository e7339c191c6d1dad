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
//! More seeds: `SIMULATION_SEEDS=FROM..TO cargo test -p flanneld --lib simulation`, or `cargo lab soak --scenario simulation`.

mod cluster;
mod faults;
mod link;
mod node;
mod owners;
mod whole;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cluster::Cluster;

use crate::store::seeded;

/// The seeds of the suite.
const SEEDS: std::ops::Range<u64> = 0..200;
/// One seed in so many has 200 nodes, one in each quarter; the others have up to eleven. In a debug build a large one takes as
/// long as thirty others, so `cargo lab soak --scenario simulation` builds with optimisation and gives every seed 200.
const LARGE: u64 = 65;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SIMULATION_SEEDS") else { return SEEDS };
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.unwrap_or_else(|| panic!("SIMULATION_SEEDS={text}: expected FROM..TO"))
}

/// How many nodes every seed has, if somebody says so.
fn nodes() -> Option<u64> {
    let text = std::env::var("SIMULATION_NODES").ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("SIMULATION_NODES={text}: expected a number")))
}

/// Runs every fourth seed, so that four processes share the work.
fn run_quarter(quarter: u64) {
    for seed in seeds().filter(|seed| seed % 4 == quarter) {
        let ended = catch_unwind(AssertUnwindSafe(|| run(seed)));
        let nodes = nodes().map_or_else(String::new, |nodes| format!("SIMULATION_NODES={nodes} "));
        assert!(
            ended.is_ok(),
            "seed {seed} failed; replay: {nodes}SIMULATION_SEEDS={seed}..{} cargo test -p flanneld --lib simulation",
            seed + 1
        );
    }
}

fn run(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    seeded::seed(seed);
    let nodes = nodes().unwrap_or(if seed.is_multiple_of(LARGE) { 200 } else { 2 + seed % 7 });
    runtime.unwrap().block_on(async { Cluster::new(seed, nodes).run().await });
}

#[test]
fn faults_of_every_kind_first_quarter() {
    run_quarter(0);
}

#[test]
fn faults_of_every_kind_second_quarter() {
    run_quarter(1);
}

#[test]
fn faults_of_every_kind_third_quarter() {
    run_quarter(2);
}

#[test]
fn faults_of_every_kind_fourth_quarter() {
    run_quarter(3);
}
