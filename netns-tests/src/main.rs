//! `cargo lab`: the verbs, and nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use netns_tests::bench::BenchArgs;
use netns_tests::command::demo::DemoArgs;
use netns_tests::command::soak::SoakArgs;
use netns_tests::command::{bench, demo, faults, install, kept, soak, suite};
use netns_tests::holder::{self, HoldArgs};
use netns_tests::{Lab, Spec};

/// Runs flanneld on real namespaces, a real etcd and real CNI plugins. Nothing on the host changes.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the main job: nodes, leases, pods, traffic, a killed daemon; installs what is missing
    Demo(DemoArgs),
    /// Run a command in a node or pod that `demo --keep` left running
    Exec {
        /// node1, pod1, etcd1, switch, …
        place: String,
        /// the command, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// End what `demo --keep` left running
    Down,
    /// Build and put daemon, CNI plugin, unit and examples where the Ansible role and Kubernetes expect them
    Install {
        /// the root of the file system to install into
        #[arg(long)]
        prefix: PathBuf,
    },
    /// Check everything: formatting, clippy, dependencies, all tests
    Test,
    /// Do every fault to a node under traffic and print how long each repair took
    Faults,
    /// Measure our daemon, others beside it, and the floors of kernel and etcd; prints a table
    Bench(BenchArgs),
    /// Run randomised scenarios until a time is up; goes on where it stopped
    Soak(SoakArgs),
    #[command(name = "__hold", hide = true)]
    Hold(HoldArgs),
    #[command(name = "__init", hide = true)]
    Init(HoldArgs),
    #[command(name = "__janitor", hide = true)]
    Janitor {
        #[arg(long)]
        lab: PathBuf,
    },
    /// Start a lab, print its folder and hang: for the test that kills it
    #[command(name = "__hang", hide = true)]
    Hang,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Demo(args) => demo::run(&args)?,
        Verb::Exec { place, command } => return kept::exec(&place, &command),
        Verb::Down => kept::down()?,
        Verb::Install { prefix } => install::run(&prefix)?,
        Verb::Test => suite::run()?,
        Verb::Faults => faults::run()?,
        Verb::Bench(args) => bench::run(&args)?,
        Verb::Soak(args) => soak::run(&args)?,
        Verb::Hold(args) => holder::hold(&args)?,
        Verb::Init(args) => holder::init(&args)?,
        Verb::Janitor { lab } => holder::janitor(&lab)?,
        Verb::Hang => hang()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn hang() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    println!("{}", lab.folder().path().display());
    loop {
        std::thread::park();
    }
}
