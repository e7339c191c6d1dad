//! Free text for people, on stderr. Never fails: a closed stderr must not end a run.

use std::fmt::Display;
use std::io::Write;

/// Writes one line.
pub fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "flannel: {text}");
}
