//! Flags in Go's syntax and `FLANNELD_` variables become typed [`Options`]. No I/O: argv and environment are passed in.
//!
//! ```text
//! argv ─► words (dashes) ─► cli (clap) ─┐
//! FLANNELD_… ───────────────────────────┴─► Raw (typed by the user) ─► Settings (typed by us) ─► Options (what it means)
//! ```
//!
//! The table in [`flags`] is the only place that knows names, types, defaults and what is built.

mod cli;
mod error;
mod etcd;
pub mod flags;
mod number;
mod raw;
mod resolved;
mod secret;
mod settings;
mod words;

use std::ffi::OsString;

pub use error::{OptionsError, Warning};
pub use etcd::{Credentials, Endpoint, Etcd, Identity, Prefix, Tls};
pub use raw::Origin;
pub use resolved::{Firewall, IfaceSelection, LeaseTimes, Options};
pub use secret::Secret;
pub use settings::Effective;

use raw::Raw;
use settings::Settings;

/// What the process was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Be the daemon.
    Run(Box<Configured>),
    /// Print this on stderr and exit with 0 (`-help`).
    Help(String),
    /// Print this on stderr and exit with 0 (`-version`). Wins over everything else.
    Version(String),
}

/// Options that can be run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// What they mean.
    pub options: Options,
    /// Each option with its value, redacted, and its origin, sorted by name.
    pub effective: Vec<Effective>,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
}

impl Configured {
    /// The options that somebody gave, in one line for the log, without secrets.
    #[must_use]
    pub fn given(&self) -> String {
        let given = self.effective.iter().filter(|option| option.origin != Origin::Default);
        given.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Reads argv (with the program's name in front) and the environment. The command line wins over the environment, which
/// wins over defaults.
///
/// # Errors
/// On the first thing that is wrong; the process should print it and exit with [`OptionsError::exit_code`].
pub fn read(
    argv: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, OptionsError> {
    let mut argv = argv.into_iter();
    let program = argv.next().map_or_else(|| "flanneld".into(), |name| name.to_string_lossy().into_owned());
    let words = words::read(unicode(argv)?);
    if words.version {
        return Ok(Invocation::Version(format!("v{}", env!("CARGO_PKG_VERSION"))));
    }
    if words.help {
        return Ok(Invocation::Help(cli::help(&program)));
    }
    let command_line = Raw::from_command_line(words.options)?;
    if let Some(stray) = words.stray {
        return Err(stray);
    }
    let (environment, warnings) = Raw::from_environment(environment)?;
    configure(&command_line.over(environment), warnings).map(|run| Invocation::Run(Box::new(run)))
}

fn configure(raw: &Raw, mut warnings: Vec<Warning>) -> Result<Configured, OptionsError> {
    let settings = Settings::of(raw)?;
    warnings.extend(settings.warnings());
    let options = Options::of(&settings)?;
    let effective = settings.effective(|setting| options.overrules(setting));
    Ok(Configured { options, effective, warnings })
}

fn unicode(argv: impl Iterator<Item = OsString>) -> Result<Vec<String>, OptionsError> {
    let text = |(index, word): (usize, OsString)| {
        word.into_string()
            .map_err(|_| OptionsError::NotUnicode(format!("word {} of the command line", index + 1)))
    };
    argv.enumerate().map(text).collect()
}

#[cfg(test)]
mod tests;
