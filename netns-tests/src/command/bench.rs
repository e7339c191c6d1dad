//! `cargo lab bench`: gets what is missing, then measures.

use anyhow::Result;

use crate::bench::{self, BenchArgs};
use crate::command::packages;

/// Measures on release binaries, built anew.
///
/// # Errors
/// When something is missing or a daemon does not do its work.
pub fn run(args: &BenchArgs) -> Result<()> {
    packages::ensure_present()?;
    bench::run(args)
}
