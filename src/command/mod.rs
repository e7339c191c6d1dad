//! What the binary does beside being the daemon: `flanneld COMMAND [OPTION]…`.
//!
//! One row per command; each command's file reads its own options, prints on stdout and says with its exit code whether
//! something is wrong. A first word that is no command is left to [`crate::options`], which knows what to say about it.

mod arguments;
mod check;
mod cleanup;
mod docker_opts;
mod own_lease;
mod render;
mod running;
mod status;
mod words;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

/// A word that may follow `flanneld` on the command line.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// The word.
    pub name: &'static str,
    /// What it does, in one line for the help.
    pub summary: &'static str,
    /// Does it. The words are those behind the command's name.
    pub run: fn(Vec<OsString>) -> ExitCode,
}

/// Every command, in the order of the help.
pub const ALL: &[Command] =
    &[status::COMMAND, check::COMMAND, cleanup::COMMAND, docker_opts::COMMAND, render::COMMAND];

/// The command of this name.
#[must_use]
pub fn find(word: &OsStr) -> Option<Command> {
    ALL.iter().copied().find(|command| word == command.name)
}

/// The commands as the help lists them; empty without commands.
#[must_use]
pub fn help() -> String {
    ALL.iter().map(|command| format!("  {:<12} {}\n", command.name, command.summary)).collect()
}

/// Prints what a command has to say. Somebody who closes the pipe early (`| head`) has read enough.
fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
