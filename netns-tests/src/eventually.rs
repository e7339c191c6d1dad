//! Waiting for a state instead of sleeping.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Error, Result};

/// How often the state is looked at.
const PERIOD: Duration = Duration::from_millis(10);

/// Calls `look` until it returns `Ok` or the deadline has passed, and returns what it found.
///
/// # Errors
/// The last error of `look`, with what was waited for and how long.
pub fn eventually<T>(within: Duration, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if start.elapsed() >= within => return Err(late(&error, what, within)),
            Err(_) => thread::sleep(PERIOD),
        }
    }
}

/// Calls `look` until the time is up and fails as soon as it does: "stays so".
///
/// # Errors
/// The first error of `look`.
pub fn throughout(time: Duration, what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        look().map_err(|error| {
            error.context(format!("{what}: did not stay so, broken after {:?}", start.elapsed()))
        })?;
        thread::sleep(PERIOD);
    }
    Ok(())
}

fn late(error: &Error, what: &str, within: Duration) -> Error {
    anyhow::anyhow!("{what}: not within {within:?}; last seen: {error:#}")
}
