//! `cargo lab soak`: randomised scenarios with numbered seeds, for as long as one likes, in pieces.
use anyhow::Result;
use clap::Args;
/// Options of `soak`.
#[derive(Args, Debug)]
pub struct SoakArgs {}
/// Runs.
///
/// # Errors
/// never
pub fn run(_args: &SoakArgs) -> Result<()> {
    Ok(())
}
