//! What was typed, before anybody asks what it means: texts with their origin.
//!
//! One layer per origin: the command line lies over the environment, which lies over the configuration file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use clap::ArgMatches;

use super::cli;
use super::error::{OptionsError, Warning};
use super::flags::{self, Flag, Kind, VARIABLE_PREFIX};
use super::secret::REDACTED;

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// argv
    CommandLine,
    /// A `FLANNELD_` variable.
    Environment,
    /// The configuration file.
    File {
        /// The line of the value.
        line: usize,
    },
    /// The role's own default, as the configuration file holds variables of the role.
    Role,
    /// Nobody gave one.
    Default,
}

impl Origin {
    /// An option with its value as this origin spells it, for messages. Secrets are redacted.
    #[must_use]
    pub fn spell(self, flag: &Flag, value: &str) -> String {
        let value = shown(flag, value);
        match self {
            Self::CommandLine => format!("-{}={value}", flag.name),
            Self::Environment => format!("{}={value}", flag.variable()),
            Self::File { line } => format!("{}: {value} (configuration file, line {line})", flag.name),
            Self::Role => format!("{}: {value} (default of the role)", flag.name),
            Self::Default => format!("{}={value}", flag.name),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::Environment => f.write_str("environment"),
            Self::File { line } => write!(f, "configuration file, line {line}"),
            Self::Role => f.write_str("default of the role"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value as it may be shown: no password, neither of an option nor within a URL.
pub(super) fn shown(flag: &Flag, value: &str) -> String {
    match flag.kind {
        Kind::Secret if !value.is_empty() => REDACTED.to_owned(),
        Kind::Urls { .. } => without_passwords(value),
        _ => value.to_owned(),
    }
}

/// As a password may contain anything, everything between the first `://` and the last `@` goes.
fn without_passwords(urls: &str) -> String {
    let Some((before, host)) = urls.rsplit_once('@') else { return urls.to_owned() };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://{REDACTED}@{host}"),
        None => format!("{REDACTED}@{host}"),
    }
}

/// The texts one origin, or several laid over each other, gave for each option.
#[derive(Default)]
pub(super) struct Raw(BTreeMap<&'static str, Given>);

/// The texts for one option; never empty.
pub(super) struct Given {
    pub(super) texts: Vec<String>,
    pub(super) origin: Origin,
}

impl Raw {
    /// Reads words of the forms `--name` and `--name=VALUE`.
    pub(super) fn from_command_line(options: Vec<String>) -> Result<Self, OptionsError> {
        let matches = cli::matches(options)?;
        let given = |flag: &'static Flag| Some((flag.name, typed(&matches, flag)?));
        Ok(Self(flags::ALL.iter().filter_map(given).collect()))
    }

    /// Reads `FLANNELD_` variables; others are not looked at. An empty variable counts as unset, and `FLANNELD_VERSION`
    /// has no effect.
    pub(super) fn from_environment(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Vec<Warning>), OptionsError> {
        let mut raw = Self::default();
        let mut warnings = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(VARIABLE_PREFIX)) else { continue };
            if value.is_empty() || name == flags::VERSION.variable() {
                continue;
            }
            match flags::ALL.iter().find(|flag| flag.variable() == name) {
                Some(flag) => raw.insert_variable(flag, value)?,
                None => warnings.push(unknown(name)),
            }
        }
        warnings.sort_by_key(ToString::to_string);
        Ok((raw, warnings))
    }

    /// What `self` gives, and what `lower` gives for the rest.
    pub(super) fn over(mut self, lower: Self) -> Self {
        for (name, given) in lower.0 {
            self.0.entry(name).or_insert(given);
        }
        self
    }

    pub(super) fn get(&self, flag: &Flag) -> Option<&Given> {
        self.0.get(flag.name)
    }

    pub(super) fn insert(&mut self, flag: &'static Flag, given: Given) {
        self.0.insert(flag.name, given);
    }

    fn insert_variable(&mut self, flag: &'static Flag, value: OsString) -> Result<(), OptionsError> {
        let not_unicode = |_| OptionsError::NotUnicode(format!("environment variable {}", flag.variable()));
        let texts = vec![value.into_string().map_err(not_unicode)?];
        self.insert(flag, Given { texts, origin: Origin::Environment });
        Ok(())
    }
}

fn typed(matches: &ArgMatches, flag: &Flag) -> Option<Given> {
    let texts = matches.get_many::<String>(flag.name)?.cloned().collect();
    Some(Given { texts, origin: Origin::CommandLine })
}

fn unknown(variable: &str) -> Warning {
    let name = variable.trim_start_matches(VARIABLE_PREFIX);
    Warning::UnknownVariable { name: variable.to_owned(), suggestion: flags::closest(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_not_shown() {
        for (typed, safe) in [
            ("https://bob:pa@ss@a:2379", "https://***@a:2379"),
            ("https://bob:pa,ss@a:2379", "https://***@a:2379"),
            ("http://a:1,https://bob:pw@b:2,http://c:3", "http://***@b:2,http://c:3"),
            ("bob:pw@a:1", "***@a:1"),
            ("http://a:1,http://b:2", "http://a:1,http://b:2"),
        ] {
            assert_eq!(shown(&flags::ETCD_ENDPOINTS, typed), safe);
        }
    }

    #[test]
    fn each_origin_spells_options_its_own_way() {
        assert_eq!(Origin::CommandLine.spell(&flags::V, "4"), "-v=4");
        assert_eq!(Origin::Environment.spell(&flags::ETCD_PASSWORD, "hunter2"), "FLANNELD_ETCD_PASSWORD=***");
        assert_eq!(Origin::Default.spell(&flags::IP_MASQ, "false"), "ip-masq=false");
        let file = Origin::File { line: 7 };
        assert_eq!(
            file.spell(&flags::ETCD_PASSWORD, "hunter2"),
            "etcd-password: *** (configuration file, line 7)"
        );
        assert_eq!(Origin::Role.spell(&flags::V, "4"), "v: 4 (default of the role)");
    }
}
