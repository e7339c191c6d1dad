//! What can be wrong with the options, in words that name the option as it was typed and the cure.

use super::file::FileError;
use super::flags::{Flag, Kind};
use super::number::boolean;
use super::raw::Origin;

/// Why the options cannot be used. Messages never show a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No option has that name.
    #[error("unknown option -{name}{}", suggested(*suggestion, |flag| format!("-{}", flag.name)))]
    Unknown {
        /// As typed, without dashes and value.
        name: String,
        /// What was probably meant.
        suggestion: Option<&'static Flag>,
    },
    /// An option at the end lacks its value.
    #[error("-{0} needs a value: write -{0}=VALUE")]
    NoValue(String),
    /// A word that belongs to no option.
    #[error("{}", stray(word, *after))]
    Stray {
        /// The word, redacted if it may be a secret.
        word: String,
        /// The option right before it.
        after: Option<&'static Flag>,
    },
    /// A word that is not text.
    #[error("{0} is not valid UTF-8")]
    NotUnicode(String),
    /// A value that its type or range does not allow.
    #[error("{given}: expected {expected}")]
    BadValue {
        /// The option and value as typed, redacted.
        given: String,
        /// What would be accepted.
        expected: String,
    },
    /// It asks for something the daemon cannot do yet.
    #[error("{given} asks for something this version cannot do; supported is {supported}")]
    NotBuilt {
        /// The option and value as typed.
        given: String,
        /// What to use instead.
        supported: &'static str,
    },
    /// One of two options that only make sense together is missing.
    #[error("{given} needs {missing} as well")]
    HalfOfPair {
        /// What was given.
        given: &'static str,
        /// What has to be given with it.
        missing: &'static str,
    },
    /// The lease would be renewed before it begins.
    #[error(
        "subnet-lease-renew-margin={margin_minutes} (minutes, {margin_origin}) must be shorter than \
         subnet-lease-ttl={ttl_seconds} (seconds, {ttl_origin}): give a smaller margin or a longer ttl"
    )]
    MarginNotBelowTtl {
        /// The margin in minutes.
        margin_minutes: i64,
        /// Where it came from.
        margin_origin: Origin,
        /// The ttl in seconds.
        ttl_seconds: i64,
        /// Where it came from.
        ttl_origin: Origin,
    },
    /// The configuration file cannot be used.
    #[error("configuration file {path}: {problem}")]
    File {
        /// Which one.
        path: String,
        /// Why.
        problem: FileError,
    },
    /// There is nothing to write as network config.
    #[error(
        "seed-config needs flannel_ip_range in a configuration file (and flannel_backend_type, unless vxlan is meant)"
    )]
    NothingToSeed,
    /// Only variables of a configuration file can be rendered.
    #[error("{0} is made from the variables of a configuration file: give -config-file=FILE")]
    NothingToRender(&'static str),
}

impl OptionsError {
    /// What the process exits with: 2 when the command line cannot be read, 1 when it can be but asks for the impossible.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unknown { .. } | Self::NoValue(_) | Self::Stray { .. } | Self::NotUnicode(_) => 2,
            Self::BadValue { .. }
            | Self::NotBuilt { .. }
            | Self::HalfOfPair { .. }
            | Self::MarginNotBelowTtl { .. }
            | Self::File { .. }
            | Self::NothingToSeed
            | Self::NothingToRender(_) => 1,
        }
    }
}

/// Something worth telling the operator that does not stop the start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// An environment variable that looks like ours.
    #[error("environment variable {name} sets no option{}", suggested(*suggestion, Flag::variable))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// What was probably meant.
        suggestion: Option<&'static Flag>,
    },
    /// An option that is only accepted for compatibility.
    #[error("{0} has no effect: it steers the logging library of the Go daemon (use -v=N)")]
    NoEffect(String),
    /// A default that asks for something not built yet.
    #[error("{name}={value} is the default but is not built yet and does nothing: set {name}={off} to silence this", name = .flag.name)]
    DefaultNotBuilt {
        /// The option.
        flag: &'static Flag,
        /// Its default.
        value: String,
        /// The value that asks for nothing.
        off: &'static str,
    },
}

fn suggested(flag: Option<&'static Flag>, spell: impl Fn(&Flag) -> String) -> String {
    match flag {
        Some(flag) => format!(": did you mean {}?", spell(flag)),
        None => ": flanneld -help lists all options".to_owned(),
    }
}

fn stray(word: &str, after: Option<&'static Flag>) -> String {
    match after {
        Some(flag) if flag.is_bool() && boolean(word).is_some() => {
            format!("unexpected word {word:?} after -{0}: write -{0}={word}", flag.name)
        }
        Some(flag) if flag.kind == Kind::Secret => {
            format!("unexpected word after -{0}: write -{0}=VALUE", flag.name)
        }
        Some(flag) => format!("unexpected word {word:?} after -{}: options begin with a dash", flag.name),
        None => format!("unexpected word {word:?}: flanneld takes only options, which begin with a dash"),
    }
}
