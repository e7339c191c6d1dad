//! `cargo lab`: the verbs, and nothing else.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use netns_tests::holder::{self, HoldArgs};
use netns_tests::{Lab, Spec};

#[derive(Parser)]
#[command(name = "cargo lab", about = "Runs flanneld on real namespaces, a real etcd and real CNI plugins")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    #[command(name = "__hold", hide = true)]
    Hold(HoldArgs),
    #[command(name = "__init", hide = true)]
    Init(HoldArgs),
    #[command(name = "__janitor", hide = true)]
    Janitor {
        #[arg(long)]
        lab: PathBuf,
    },
    /// starts a lab, prints its folder and hangs: for the test that kills it
    #[command(name = "__hang", hide = true)]
    Hang,
}

fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Hold(args) => holder::hold(&args),
        Verb::Init(args) => holder::init(&args),
        Verb::Janitor { lab } => holder::janitor(&lab),
        Verb::Hang => {
            let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
            println!("{}", lab.folder().path().display());
            loop {
                std::thread::park();
            }
        }
    }
}
