//! `flanneld render`: what the role would install from a configuration file, and what each option is.

use std::ffi::OsString;

use super::error::OptionsError;
use super::flags::{self, Kind};
use super::{Outside, Sources, cli, unicode, words};

/// What can be rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The unit.
    Unit,
    /// The CNI configuration.
    Conflist,
    /// Every option with its value and origin.
    Options,
    /// The network config.
    NetworkConfig,
}

impl What {
    /// Everything, with the words that name it.
    pub const ALL: [(&'static str, Self); 4] = [
        ("unit", Self::Unit),
        ("conflist", Self::Conflist),
        ("options", Self::Options),
        ("network-config", Self::NetworkConfig),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, what)| *what == self).map_or("", |(word, _)| word)
    }
}

/// The text to print. `argv` holds options only; they count as they would for the daemon.
///
/// # Errors
/// As [`super::read`], and when there is no configuration file to make something from.
pub fn render(
    what: What,
    argv: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    outside: &Outside<'_>,
) -> Result<String, OptionsError> {
    let words = words::read(unicode(argv.into_iter())?);
    if words.help {
        return Ok(cli::help("flanneld render {unit|conflist|options|network-config}"));
    }
    let sources = Sources::read(words, environment, outside)?;
    let configured = sources.configure()?;
    if what == What::Options {
        return Ok(configured.effective.iter().map(|option| format!("{option}\n")).collect());
    }
    let Some((path, layer)) = &sources.file else { return Err(OptionsError::NothingToRender(what.word())) };
    let text = match what {
        What::Unit => layer.unit(&for_unit(&sources)),
        What::Conflist => layer.conflist(),
        What::NetworkConfig | What::Options => layer.network().map(|config| config + "\n"),
    };
    text.map_err(|problem| OptionsError::File { path: path.clone(), problem })
}

/// The options that stand in a unit. Passwords do not: everybody may read it. Neither does the way to the file it is made from.
fn for_unit(sources: &Sources) -> Vec<(&'static str, String)> {
    let ours = [flags::CONFIG_FILE.name, flags::SEED_CONFIG.name];
    let fit = flags::ALL.iter().filter(|flag| flag.kind != Kind::Secret && !ours.contains(&flag.name));
    let given = fit.filter_map(|flag| Some((flag.name, &sources.raw.get(flag)?.texts)));
    given.flat_map(|(name, texts)| texts.iter().map(move |text| (name, text.clone()))).collect()
}
