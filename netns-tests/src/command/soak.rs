//! `cargo lab soak`: randomised scenarios with numbered seeds, in pieces: what was done is written down after each seed,
//! so that the next call goes on behind it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::binaries;
use crate::command::{packages, suite};
use crate::lab::Lab;
use crate::pod::Pod;
use crate::random::Random;
use crate::scenario::{self, Traffic};

type Scenario = fn(u64) -> Result<()>;

const SCENARIOS: [(&str, Scenario); 4] =
    [("race", race), ("restarts", restarts), ("churn", churn), ("simulation", simulation)];

/// Seeds of the simulation in one go; the first ten goes are the 200 of the test suite.
const SIMULATIONS: u64 = 20;

/// Options of `soak`.
#[derive(Args, Debug)]
pub struct SoakArgs {
    /// how long to go on, in seconds; a scenario that has begun is finished
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// only this scenario: race, restarts, churn or simulation
    #[arg(long)]
    scenario: Option<String>,
    /// run this one seed and write nothing down: replays a failure
    #[arg(long, requires = "scenario")]
    seed: Option<u64>,
}

/// What was done so far, by scenario.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// the seed that comes next
    next: BTreeMap<String, u64>,
    /// seeds that failed
    failed: BTreeMap<String, Vec<u64>>,
}

/// Runs the scenarios in turn.
///
/// # Errors
/// When a seed failed; each is printed with the command that replays it.
pub fn run(args: &SoakArgs) -> Result<()> {
    packages::ensure_present()?;
    binaries::flanneld()?;
    let chosen: Vec<_> = SCENARIOS
        .into_iter()
        .filter(|(name, _)| args.scenario.as_deref().is_none_or(|wanted| wanted == *name))
        .collect();
    ensure!(!chosen.is_empty(), "no such scenario; there are {:?}", SCENARIOS.map(|(name, _)| name));
    if let (Some(seed), [(_, scenario)]) = (args.seed, chosen.as_slice()) {
        return scenario(seed);
    }
    let (start, time) = (Instant::now(), Duration::from_secs(args.seconds));
    let mut failures = 0;
    for (name, scenario) in chosen.iter().cycle() {
        if start.elapsed() >= time {
            break;
        }
        failures += u32::from(!run_next(name, *scenario)?);
    }
    if failures > 0 {
        bail!("{failures} seeds failed");
    }
    Ok(())
}

/// Runs the scenario's next seed, writes down that it was run, and says whether it passed.
fn run_next(name: &str, scenario: Scenario) -> Result<bool> {
    let mut progress = read_progress()?;
    let seed = *progress.next.entry(name.to_owned()).and_modify(|next| *next += 1).or_default();
    let start = Instant::now();
    let result = scenario(seed);
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(()) => println!("{name} seed {seed}: ok, {seconds:.1} s"),
        Err(error) => {
            println!("{name} seed {seed}: FAILED, {seconds:.1} s\n{error:#}");
            println!("replay: cargo lab soak --scenario {name} --seed {seed}");
            progress.failed.entry(name.to_owned()).or_default().push(seed);
        }
    }
    fs::write(progress_file(), serde_json::to_string_pretty(&progress)?).context("write the progress")?;
    Ok(result.is_ok())
}

fn progress_file() -> PathBuf {
    binaries::target_folder().join("lab-soak.json")
}

fn read_progress() -> Result<Progress> {
    match fs::read_to_string(progress_file()) {
        Ok(text) => serde_json::from_str(&text).context("the soak's progress file"),
        Err(_) => Ok(Progress::default()),
    }
}

/// Whole daemons in memory with faults of every kind: the simulation of the test suite, further seeds.
fn simulation(seed: u64) -> Result<()> {
    let from = seed * SIMULATIONS;
    let seeds = format!("{from}..{}", from + SIMULATIONS);
    let status = suite::build_simulation()?.env("SIMULATION_SEEDS", seeds).status();
    ensure!(status.context("run the simulation")?.success(), "some seed from {from} on failed, see above");
    Ok(())
}

/// Up to 12 daemons start at once on as many subnets.
fn race(seed: u64) -> Result<()> {
    let nodes = Random::new(seed).below(11) + 2;
    scenario::race_for_subnets(&scenario::lab_without_a_spare_subnet(nodes)?)
}

/// Daemons are ended in random ways under traffic, 20 times.
fn restarts(seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let lab = Lab::three_nodes()?;
    let mut daemons = lab.flanneld_everywhere()?;
    let pods = lab.nodes().iter().map(|node| Pod::attach(node, "pod")).collect::<Result<Vec<_>>>()?;
    let [first, second, ..] = pods.as_slice() else { bail!("too few pods") };
    let traffic = Traffic::start(first, second)?;
    for _ in 0..20 {
        let position = random.below(3);
        let signal = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT];
        let signal = random.choice(&signal).copied().unwrap_or(Signal::SIGKILL);
        traffic.ping().wait_answers(u64::from(random.below(100)))?;
        let daemon = daemons.remove(usize::from(position));
        let daemon = scenario::restart_unnoticed(&lab, position + 1, daemon, signal)?;
        daemons.insert(usize::from(position), daemon);
    }
    traffic.finish_without_loss().map(drop)
}

/// Made-up peers come, change and go, also while the daemon is away.
fn churn(seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let lab = Lab::three_nodes()?;
    let mut daemons = lab.flanneld_everywhere()?;
    for _ in 0..5 {
        let daemon = daemons.pop().context("no daemon")?;
        scenario::churn_of_peers(&lab, &daemon, &mut random, 30)?;
        daemon.stop(Signal::SIGKILL)?;
        if let Some(other) = daemons.first() {
            scenario::churn_of_peers(&lab, other, &mut random, 30)?;
        }
        let daemon = lab.flanneld(3)?;
        lab.wait_node_converged(&daemon)?;
        daemons.push(daemon);
    }
    Ok(())
}
