//! `cargo lab test`: everything that must hold before a change lands, with one summary at the end.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::binaries;
use crate::command::table::table;
use crate::command::{faults, packages};
use crate::fault;

/// Installed when missing. Built without optimisation: that takes 2.5 minutes on two cores instead of 7.
const CARGO_DENY: &str = "cargo-deny@0.20.2";

/// Runs every step, also after one has failed.
///
/// # Errors
/// When a step failed; the table says which.
pub fn run() -> Result<()> {
    packages::ensure_present_for_tests()?;
    let mut steps = Steps::default();
    steps.cargo("formatting", &["fmt", "--all", "--check"]);
    let all_targets = ["--all-targets"].as_slice();
    for targets in [all_targets, &["--features", "flanneld/simulation", "--lib", "--example", "simulation"]] {
        let words = [&["clippy", "--locked", "--workspace"], targets, &["--", "--deny", "warnings"]].concat();
        steps.cargo("clippy", &words);
    }
    steps.step("cargo-deny", check_dependencies);
    // The lab's tests drive what users run: the release binaries.
    steps.step("release binaries", || build_binaries().and_then(|()| binaries::build_bare().map(drop)));
    steps.step("tests", || fault::forget().and_then(|()| run_tests_beside_simulation()));
    faults::print()?;
    steps.finish()
}

/// Builds what users run and prints how large it is: the figures in README.md come from here.
pub(super) fn build_binaries() -> Result<()> {
    let folder = binaries::build()?;
    for name in ["flanneld", "flannel"] {
        let path = folder.join(name);
        let bytes = std::fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?.len();
        println!("{name}: {bytes} bytes, stripped");
    }
    Ok(())
}

/// Licences, banned crates and sources. The advisory database needs a network of its own and is left out.
fn check_dependencies() -> Result<()> {
    if !has_subcommand("deny") {
        let words = ["install", "--locked", "--profile", "dev", "--no-default-features", CARGO_DENY];
        cargo(&words).context("install cargo-deny")?;
    }
    cargo(&["deny", "--locked", "check", "licenses", "bans", "sources"])
}

/// Builds 200 daemons in memory for each of 200 seeds: `tests/simulation`. In a plain debug build a seed would take twelve seconds.
pub(super) fn build_simulation() -> Result<Command> {
    let optimised =
        ["opt-level=2", "debug-assertions=false"].map(|how| format!("profile.dev.package.flanneld.{how}"));
    let mut build = cargo_command();
    build.args(["build", "--locked"]).args(optimised.iter().flat_map(|how| ["--config", how]));
    // The whole workspace, as for the tests: its features make the same dependencies.
    run_command(build.args(["--workspace", "--features", "flanneld/simulation", "--example", "simulation"]))?;
    // The lab's tests mostly wait for something, the simulation for nothing. Not much behind them, though: a thread that does not
    // run for seconds within a read-side section of RCU holds up what the kernel does for everybody (namespaces, nftables).
    let mut simulation = Command::new("nice");
    simulation.args(["-n", "5"]).arg(binaries::target_folder().join("debug/examples/simulation"));
    Ok(simulation)
}

/// The simulation is built before the tests, and takes while they run what they leave of the processors.
fn run_tests_beside_simulation() -> Result<()> {
    let mut simulation = build_simulation()?;
    let simulation = std::thread::spawn(move || simulation.output());
    let tested = run_tests();
    let ended = simulation.join().ok().context("wait for the simulation")?.context("run the simulation")?;
    println!("{}", String::from_utf8_lossy(&ended.stdout));
    if !ended.status.success() {
        println!("{}", String::from_utf8_lossy(&ended.stderr));
    }
    tested?;
    ensure!(ended.status.success(), "the simulation ended with {}", ended.status);
    Ok(())
}

/// All tests: with cargo-nextest if the machine has it (a process and a time limit for each test), else with cargo test.
fn run_tests() -> Result<()> {
    let folder = binaries::folder();
    let mut command = cargo_command();
    if has_subcommand("nextest") {
        command.args(["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]);
        run_command(command.env(binaries::FOLDER_VARIABLE, folder))?;
        return cargo(&["test", "--locked", "--workspace", "--doc"]);
    }
    command.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    run_command(command.env(binaries::FOLDER_VARIABLE, folder))
}

/// The lab's tests in files whose name begins with `prefix`, one after the other: measurements should not share the machine.
pub(super) fn run_tests_of_files(prefix: &str) -> Result<()> {
    let folder = binaries::repository().join("netns-tests/tests");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        files.extend(name.strip_suffix(".rs").filter(|name| name.starts_with(prefix)).map(str::to_owned));
    }
    files.sort();
    let mut command = cargo_command();
    command.args(["test", "--locked", "--package", "netns-tests", "--no-fail-fast"]);
    command.args(files.iter().flat_map(|file| ["--test", file]));
    command.args(["--", "--test-threads=1"]);
    run_command(command.env(binaries::FOLDER_VARIABLE, binaries::folder()))
}

#[derive(Default)]
struct Steps {
    done: Vec<(&'static str, Duration, Result<()>)>,
}

impl Steps {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = work();
        if let Err(error) = &result {
            println!("{error:#}");
        }
        self.done.push((name, start.elapsed(), result));
    }

    fn cargo(&mut self, name: &'static str, words: &[&str]) {
        self.step(name, || cargo(words));
    }

    fn finish(self) -> Result<()> {
        let row = |(name, time, result): &(&str, Duration, Result<()>)| {
            let word = if result.is_ok() { "ok" } else { "FAILED" };
            vec![(*name).to_owned(), word.to_owned(), format!("{:.0}", time.as_secs_f64())]
        };
        let rows: Vec<_> = self.done.iter().map(row).collect();
        println!("\n{}", table(&["step", "", "seconds"], &rows));
        let failed = self.done.iter().filter(|(_, _, result)| result.is_err()).count();
        ensure!(failed == 0, "{failed} of {} steps failed", self.done.len());
        Ok(())
    }
}

fn has_subcommand(name: &str) -> bool {
    cargo_command().args([name, "--version"]).output().is_ok_and(|output| output.status.success())
}

fn cargo(words: &[&str]) -> Result<()> {
    run_command(cargo_command().args(words))
}

fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(binaries::repository());
    // Tests of other packages start `etcd` too, which may only be unpacked.
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = binaries::unpacked_packages().join("usr/bin");
    let folders = std::env::split_paths(&folders).chain([unpacked, "/usr/sbin".into(), "/sbin".into()]);
    if let Ok(path) = std::env::join_paths(folders) {
        command.env("PATH", path);
    }
    command
}

fn run_command(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
