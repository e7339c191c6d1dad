//! A wait at the start: what is wrong is logged when it changes, status and systemd hear of it each time, and there is a pause.
//! It decides nothing: whoever waits tries again.

use std::time::Duration;

use tracing::error;

use super::Reporter;
use crate::status::Phase;

/// Pause between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// One thing that is waited for.
#[derive(Debug)]
pub(super) struct Waiting {
    what: &'static str,
    said: String,
}

impl Waiting {
    /// A wait for `what`, e.g. `a subnet`.
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, said: String::new() }
    }

    /// Reports why the last try failed, and pauses before the next.
    pub(super) async fn pause(&mut self, problem: String, phase: Phase, reporter: &mut Reporter) {
        if problem != self.said {
            error!(%problem, "waiting for {}", self.what);
            self.said = problem;
        }
        reporter.waiting(phase);
        tokio::time::sleep(RETRY).await;
    }
}
