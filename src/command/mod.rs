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
use std::io::{self, Write};
use std::process::ExitCode;

use arguments::{Arguments, Read, Usage, read};

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

/// The options of a command; or, where it ends with the reading, its exit code: the help was asked for, or a word is wrong.
fn arguments(usage: &Usage, words: Vec<OsString>) -> Result<Box<Arguments>, ExitCode> {
    match read(usage, words, std::env::vars_os()) {
        Ok(Read::Arguments(arguments)) => Ok(arguments),
        Ok(Read::Help(text)) => Err(print(&text, ExitCode::SUCCESS)),
        Err(error) => {
            eprintln!("flanneld {}: {error}", usage.command);
            Err(ExitCode::from(error.exit_code()))
        }
    }
}

/// Prints what a command has to say and ends it with `code`. Somebody who closes the pipe early (`| head`) has read enough; a text
/// that does not fit on the disk is missed.
fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("flanneld: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
        _ => code,
    }
}
