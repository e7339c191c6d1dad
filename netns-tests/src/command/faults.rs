//! `cargo lab faults`: runs the fault tests and prints how long each repair took.

use anyhow::Result;

use crate::command::{packages, suite, table::markdown};
use crate::fault;

/// Builds the release binaries, runs `tests/faults_*.rs` and prints the table.
///
/// # Errors
/// When a test failed.
pub fn run() -> Result<()> {
    packages::ensure_present()?;
    suite::build_binaries()?;
    fault::forget()?;
    let tested = suite::run_tests_of_files("faults_");
    print()?;
    tested
}

/// Prints what the tests have measured, as README.md of this crate shows it, and in short, as the repository's README.md does.
///
/// # Errors
/// When nothing was measured.
pub fn print() -> Result<()> {
    let rows = fault::rows()?;
    println!("\n{}", markdown(&fault::HEADINGS, &rows));
    println!("\n{}", markdown(&fault::SUMMARY_HEADINGS, &fault::summary(&rows)));
    Ok(())
}
