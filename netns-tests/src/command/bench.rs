//! `cargo lab bench`: gets what is missing, then measures.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::bench::{self, BenchArgs};
use crate::binaries;
use crate::command::packages;

/// Set for the release build of this program, which must not look for another one.
const REPLACED: &str = "LAB_REPLACED";

/// Measures on release binaries, built anew, as a release build itself. With ready-built ones nothing is built.
///
/// # Errors
/// When something is missing or a daemon does not do its work.
pub fn run(args: &BenchArgs) -> Result<()> {
    let told = [REPLACED, binaries::FOLDER_VARIABLE].iter().any(|name| std::env::var_os(name).is_some());
    if bench::OPTIMISED || told {
        packages::ensure_present()?;
        return bench::run(args);
    }
    let mut release = Command::new(binaries::build_lab()?);
    let error = release.args(std::env::args_os().skip(1)).env(REPLACED, "1").exec();
    Err(error).context("run the release build of lab")
}
