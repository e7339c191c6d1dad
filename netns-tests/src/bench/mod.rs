//! Measuring whole daemons: ours, and any other with the same command line, in the same run and beside the floors that
//! kernel and etcd set.
//!
//! ```text
//! Subject ─► Bed: node + etcd full of made-up peers + listener to the kernel ─► scenarios ─► Results ─► table, plot
//!                                                     floors: kernel, etcd ────────┘
//! ```

mod bed;
mod chain;
pub mod counts;
mod etcd;
mod grpc;
mod kernel;
mod plugin;
mod report;
mod sample;
mod scenarios;
mod tls;
mod traffic;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::binaries;
use crate::etcd::Api;
use bed::Subject;
use report::Results;
use scenarios::{BARE_FLOOR, Bench, ETCD_FLOOR, KERNEL_FLOOR};

/// Whether this is a release build, as the daemons are that it measures: else it hears of an event later than they do.
pub const OPTIMISED: bool = cfg!(not(debug_assertions));

/// The column of the daemon built from this repository.
const OURS: &str = "ours";

/// Options of `cargo lab bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// another daemon with flannel's command line, measured in the same run; may be repeated
    #[arg(long, value_name = "PATH")]
    against: Vec<PathBuf>,
    /// which of etcd's stores the others use, in their order, or one for all: flannel up to 0.16 knows only v2, later ones only v3
    #[arg(long, value_name = "v2|v3", value_delimiter = ',', default_value = "v3", value_parser = api)]
    against_api: Vec<Api>,
    /// another CNI plugin `flannel`, measured beside ours; may be repeated
    #[arg(long, value_name = "PATH")]
    against_plugin: Vec<PathBuf>,
    /// only these, separated by commas: size, start, tls, restart, changes, burst, quiet, repair, plugin, traffic
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// how often each thing is measured
    #[arg(long, default_value_t = 7)]
    runs: u32,
    /// numbers of made-up peers
    #[arg(long, value_delimiter = ',', default_value = "0,255,4000,16000")]
    peers: Vec<u32>,
    /// how long the idle daemon is looked at, in seconds
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// where `bench.md` and `bench.svg` are written
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn api(text: &str) -> Result<Api, String> {
    match text {
        "v2" => Ok(Api::V2),
        "v3" => Ok(Api::V3),
        other => Err(format!("{other} is no API of etcd; v2 or v3")),
    }
}

/// Runs the scenarios and writes table and plot.
///
/// # Errors
/// When a binary is missing or does not do its work.
pub fn run(args: &BenchArgs) -> Result<()> {
    let subjects = subjects(args)?;
    let (mut results, mut failed) = (Results::default(), Vec::new());
    let scenarios = scenarios_of(args)?;
    let beside_bare = scenarios.iter().any(|scenario| BESIDE_BARE.contains(scenario));
    let bare = if beside_bare { binaries::build_bare()? } else { PathBuf::new() };
    for scenario in scenarios {
        println!("measuring: {scenario}");
        if let Err(error) = measure(scenario, args, (&subjects, &bare), &mut results) {
            println!("{scenario}: {error:#}");
            failed.push(scenario);
        }
    }
    let mut columns: Vec<String> = subjects.iter().map(|subject| subject.name.clone()).collect();
    let others = plugins(args)?.into_iter().map(|(name, _)| name);
    columns.extend(others.filter(|name| name != OURS));
    columns.extend(
        [BARE_FLOOR, KERNEL_FLOOR, ETCD_FLOOR, plugin::BARE, chain::BRIDGE, traffic::UNDERLAY]
            .map(str::to_owned),
    );
    columns.retain(|column| results.has(column));
    let text = format!("{}\n{}", header(args)?, results.markdown(&columns));
    println!("\n{text}");
    fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    fs::write(args.out.join("bench.md"), &text)?;
    fs::write(args.out.join("bench.svg"), results.plot(&columns)?)?;
    println!("written: {0}/bench.md, {0}/bench.svg", args.out.display());
    ensure!(failed.is_empty(), "measured only in part: {}", failed.join(", "));
    Ok(())
}

const SCENARIOS: [&str; 10] =
    ["size", "start", "tls", "restart", "changes", "burst", "quiet", "repair", "plugin", "traffic"];

/// Measured beside the bare daemon, too.
const BESIDE_BARE: [&str; 4] = ["start", "restart", "changes", "quiet"];

/// What is measured with one number of peers is measured with the largest up to this one: beyond it the kernel's route insert,
/// which takes quadratic time, is all that shows.
const MANY: u32 = 4_000;
/// How often a start among more than [`MANY`] peers is measured at most; each takes seconds.
const LONG_RUNS: u32 = 3;

fn scenarios_of(args: &BenchArgs) -> Result<Vec<&'static str>> {
    let unknown = args.only.iter().find(|name| !SCENARIOS.contains(&name.as_str()));
    ensure!(
        unknown.is_none(),
        "no scenario {}; there are {}",
        unknown.cloned().unwrap_or_default(),
        SCENARIOS.join(", ")
    );
    let chosen = |name: &&str| args.only.is_empty() || args.only.iter().any(|wanted| wanted == name);
    Ok(SCENARIOS.into_iter().filter(chosen).collect())
}

fn measure(
    scenario: &str,
    args: &BenchArgs,
    (subjects, bare): (&[Subject], &Path),
    results: &mut Results,
) -> Result<()> {
    if scenario == "plugin" {
        plugin::measure(&plugins(args)?, results)?;
        return chain::measure(&plugins(args)?, results);
    }
    let ours = subjects.first().context("no daemon to measure")?;
    if scenario == "traffic" {
        return traffic::measure(ours, args.runs.min(3), results);
    }
    let most = args.peers.iter().copied().filter(|peers| *peers <= MANY).max().unwrap_or(0);
    let messages = tempfile::NamedTempFile::new()?;
    let mut bench = Bench {
        subjects,
        results,
        runs: args.runs,
        idle: Duration::from_secs(args.idle),
        bare,
        messages: messages.path(),
    };
    match scenario {
        "size" => bench.size(),
        "start" => args.peers.iter().try_for_each(|peers| bench.start(*peers)),
        "tls" => bench.start_with_tls(),
        "restart" => bench.restart(most),
        "changes" => {
            args.peers.iter().filter(|peers| **peers > 0).try_for_each(|peers| bench.changes(*peers))
        }
        "burst" => bench.burst(most),
        "quiet" => bench.quiet(most),
        _ => bench.repair(most),
    }
}

fn subjects(args: &BenchArgs) -> Result<Vec<Subject>> {
    let own = Subject { name: OURS.to_owned(), program: binaries::flanneld()?, api: Api::V3 };
    let mut subjects = vec![own];
    let apis = args.against_api.iter().chain(args.against_api.last().into_iter().cycle());
    for (path, api) in args.against.iter().zip(apis) {
        let program = path.canonicalize().with_context(|| format!("--against {}", path.display()))?;
        subjects.push(Subject { name: name_of(path, subjects.len()), program, api: *api });
    }
    Ok(subjects)
}

fn plugins(args: &BenchArgs) -> Result<Vec<(String, PathBuf)>> {
    let mut plugins = vec![(OURS.to_owned(), binaries::cni_folder()?.join("flannel"))];
    for path in &args.against_plugin {
        plugins.push((name_of(path, plugins.len()), path.clone()));
    }
    Ok(plugins)
}

/// A column's heading: the file's name and a number, since two binaries may have the same name.
fn name_of(path: &Path, number: usize) -> String {
    format!("{} #{number}", path.file_name().unwrap_or_default().to_string_lossy())
}

/// What was measured on, and when.
fn header(args: &BenchArgs) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let load = fs::read_to_string("/proc/loadavg").context("read the load")?;
    let date = Command::new("date").arg("+%Y-%m-%d").output().context("date")?;
    Ok(format!(
        "{} × {}, Linux {}, {}; {} runs, median (min–max); load before the end {}{}\n",
        cores,
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        String::from_utf8_lossy(&date.stdout).trim(),
        args.runs,
        load.split_whitespace().next().unwrap_or("?"),
        if OPTIMISED { "" } else { "; floors and instruments not optimised" },
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchArgs,
    }

    #[test]
    fn scenarios_are_chosen_by_name_and_unknown_ones_are_named() {
        let of = |words: &[&str]| scenarios_of(&Cli::parse_from([&["bench"], words].concat()).args);
        assert_eq!(of(&[]).unwrap(), SCENARIOS);
        assert_eq!(of(&["--only", "start,size"]).unwrap(), ["size", "start"]);
        assert!(of(&["--only", "strat"]).unwrap_err().to_string().contains("no scenario strat"));
    }

    #[test]
    fn an_api_that_etcd_does_not_have_is_refused() {
        assert_eq!(api("v2"), Ok(Api::V2));
        assert!(api("v4").is_err());
    }
}
