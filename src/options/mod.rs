//! Flags in Go's syntax, `FLANNELD_` variables and a configuration file become typed [`Options`]. No I/O: argv and environment
//! are passed in, and so is the way to whatever else is asked for.
//!
//! ```text
//! argv ─► words (dashes) ─► cli (clap) ─┐
//! FLANNELD_… ───────────────────────────┼─► Raw (typed by the user) ─► Settings (typed by us) ─► Options (what it means)
//! config-file ─► file (YAML, Jinja) ────┘
//! ```
//!
//! The table in [`flags`] is the only place that knows names, types, defaults and what is built.

mod cli;
mod error;
mod etcd;
pub mod file;
pub mod flags;
mod number;
mod raw;
mod reload;
mod render;
mod resolved;
mod secret;
mod settings;
mod words;

use std::ffi::OsString;
use std::path::Path;

pub use error::{OptionsError, Warning};
pub use etcd::{Credentials, Endpoint, Etcd, Identity, Prefix, Tls};
pub use raw::Origin;
pub use reload::Reloaded;
pub use render::{What, render};
pub use resolved::{Firewall, IfaceSelection, LeaseTimes, Options};
pub use secret::Secret;
pub use settings::Effective;

use file::{FileError, Gather, Layer};
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
    settings: Settings,
    network: Option<String>,
}

/// The way to what options may ask for: nothing of it is touched unless a configuration file is given.
pub struct Outside<'a> {
    /// The text of a file, or why there is none.
    pub read: &'a dyn Fn(&Path) -> Result<String, String>,
    /// What templates may know of this host.
    pub facts: Gather,
}

impl Configured {
    /// The options that somebody gave, in one line for the log, without secrets.
    #[must_use]
    pub fn given(&self) -> String {
        let given = self.effective.iter().filter(|option| option.origin != Origin::Default);
        given.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn new(
        settings: Settings,
        network: Option<String>,
        mut warnings: Vec<Warning>,
    ) -> Result<Self, OptionsError> {
        warnings.extend(settings.warnings());
        let options = Options::of(&settings, network.clone())?;
        let effective = settings.effective(|setting| options.overrules(setting));
        Ok(Self { options, effective, warnings, settings, network })
    }
}

/// Reads argv (with the program's name in front), the environment, and the configuration file if one of them names it. The
/// command line wins over the environment, which wins over the file, which wins over defaults.
///
/// # Errors
/// On the first thing that is wrong; the process should print it and exit with [`OptionsError::exit_code`].
pub fn read(
    argv: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    outside: &Outside<'_>,
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
    let configured = Sources::read(words, environment, outside)?.configure()?;
    Ok(Invocation::Run(Box::new(configured)))
}

/// Everything that was given, by whomever.
struct Sources {
    raw: Raw,
    file: Option<(String, Layer)>,
    warnings: Vec<Warning>,
}

impl Sources {
    fn read(
        words: words::Words,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        outside: &Outside<'_>,
    ) -> Result<Self, OptionsError> {
        let command_line = Raw::from_command_line(words.options)?;
        if let Some(stray) = words.stray {
            return Err(stray);
        }
        let (environment, warnings) = Raw::from_environment(environment)?;
        let raw = command_line.over(environment);
        let path = raw.get(&flags::CONFIG_FILE).and_then(|given| given.texts.last());
        let Some(path) = path.filter(|path| !path.is_empty()).cloned() else {
            return Ok(Self { raw, file: None, warnings });
        };
        let wrong = |problem| OptionsError::File { path: path.clone(), problem };
        let text = (outside.read)(Path::new(&path)).map_err(|error| wrong(FileError::Unreadable(error)))?;
        let layer = file::read(&text, outside.facts.clone()).map_err(wrong)?;
        let below = layer.below(&raw).map_err(wrong)?;
        Ok(Self { raw: raw.over(below), file: Some((path, layer)), warnings })
    }

    fn configure(&self) -> Result<Configured, OptionsError> {
        let network = match &self.file {
            Some((path, layer)) if layer.has_network() => {
                let wrong = |problem| OptionsError::File { path: path.clone(), problem };
                Some(layer.network().map_err(wrong)?)
            }
            _ => None,
        };
        Configured::new(Settings::of(&self.raw)?, network, self.warnings.clone())
    }
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
