//! Whole daemons in memory, 200 of them for each of 200 seeds, with faults of every kind: see `flanneld::daemon::simulation`.
//!
//! ```text
//! cargo lab soak --scenario simulation [--seed N]              more seeds, twenty a go
//! SIMULATION_SEEDS=7..8 target/debug/examples/simulation       one of them, built by `cargo lab`; SIMULATION_NODES=N for fewer nodes
//! ```
//!
//! Each seed has a process of its own, where it has the same history whenever it runs; the first one shows it.
//!
//! An example as far as cargo is concerned, with the optimisation that `cargo lab` adds: else a seed takes twelve seconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::env;
use std::ops::Range;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use flanneld::daemon::simulation;

fn main() -> ExitCode {
    let nodes = nodes();
    if let Ok(seed) = env::var("SIMULATION_SEED") {
        println!("{:016x}", simulation::run(seed.parse().expect("SIMULATION_SEED: a number"), nodes));
        return ExitCode::SUCCESS;
    }
    let seeds = seeds();
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < seeds.end) {
            let history = history(seed);
            // One seed shows for all that they can be replayed.
            let replays = || seed != seeds.start || self::history(seed) == history;
            if history.is_none() || !replays() {
                failed.lock().unwrap().push(seed);
            }
        }
    };
    thread::scope(|scope| {
        (0..thread::available_parallelism().map_or(1, usize::from)).for_each(|_| drop(scope.spawn(work)));
    });
    let failed = failed.into_inner().unwrap();
    println!("{nodes} nodes, seeds {} to {}: {} failed", seeds.start, seeds.end - 1, failed.len());
    for seed in &failed {
        println!(
            "seed {seed} failed, or has two histories; replay: SIMULATION_SEEDS={seed}..{} SIMULATION_NODES={nodes}",
            seed + 1
        );
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The history of one seed, in a process that runs nothing else; none when it failed, with the reason on standard error.
fn history(seed: u64) -> Option<Vec<u8>> {
    let mut run = Command::new(env::current_exe().unwrap());
    let ended = run.env("SIMULATION_SEED", seed.to_string()).output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&ended.stderr));
    ended.status.success().then_some(ended.stdout)
}

fn seeds() -> Range<u64> {
    let Ok(text) = env::var("SIMULATION_SEEDS") else { return 0..200 };
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range
        .filter(|range| !range.is_empty())
        .unwrap_or_else(|| panic!("SIMULATION_SEEDS={text}: expected FROM..TO"))
}

fn nodes() -> u64 {
    let Ok(text) = env::var("SIMULATION_NODES") else { return 200 };
    text.parse().unwrap_or_else(|_| panic!("SIMULATION_NODES={text}: expected a number"))
}
