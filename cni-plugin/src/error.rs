//! Every way a run can fail, with the code the specification gives it, and the error object a
//! runtime reads. Layers below have error types of their own; this one joins them.

use crate::delegate::DelegateError;
use crate::env::Verb;
use crate::stale_bridge::StaleBridge;
use crate::state::StateError;
use crate::subnet_env::SubnetEnvError;
use crate::version::CniVersion;
use serde_json::{Value, json};
use std::io;

/// Codes of the CNI specification, named after what they tell the runtime.
pub mod code {
    /// The config's version is not supported.
    pub const INCOMPATIBLE_VERSION: u64 = 1;
    /// A `CNI_*` variable is missing or wrong.
    pub const BAD_ENVIRONMENT: u64 = 4;
    /// Reading or writing failed.
    pub const IO: u64 = 5;
    /// Something is not the JSON it should be.
    pub const DECODE: u64 = 6;
    /// The network configuration is wrong.
    pub const BAD_CONFIG: u64 = 7;
    /// The network namespace is not acceptable.
    pub const BAD_NETNS: u64 = 8;
    /// Try again later.
    pub const TRY_LATER: u64 = 11;
    /// ADD cannot be served now.
    pub const NOT_AVAILABLE: u64 = 50;
    /// Everything that has no code of its own.
    pub const INTERNAL: u64 = 999;
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config's version is none of ours.
    #[error("incompatible CNI versions")]
    IncompatibleVersion {
        /// The version asked for and the list.
        details: String,
    },
    /// The config's version does not have this command.
    #[error("the config's version does not allow {verb}")]
    CommandNotAllowed {
        /// The command refused.
        verb: Verb,
        /// The version asked for and the one needed.
        details: String,
    },
    /// Variables that must not be empty.
    #[error("required environment variables missing: [{}]", .0.join(","))]
    MissingVariables(Vec<&'static str>),
    /// A variable whose value breaks the specification's rules.
    #[error("invalid value in {key}: {value:?}")]
    BadVariable {
        /// The variable.
        key: &'static str,
        /// What it held.
        value: String,
    },
    /// The wording is fixed: old clients read `unknown CNI_COMMAND: VERSION` as "a 0.1.0 plugin".
    #[error("unknown CNI_COMMAND: {0}")]
    UnknownCommand(String),
    /// stdin could not be read.
    #[error("cannot read the network config from stdin")]
    Stdin(#[source] io::Error),
    /// A document of another shape than expected.
    #[error("cannot decode {what}")]
    Decode {
        /// Which document.
        what: &'static str,
        /// What is wrong with it.
        details: String,
    },
    /// The config has no network name.
    #[error("missing network name")]
    MissingName,
    /// The config's network name breaks the specification's rule.
    #[error("invalid characters in network name")]
    BadName(String),
    /// Any other field of the config.
    #[error("invalid network config: {0}")]
    Config(String),
    /// The container's namespace is the one this process runs in.
    #[error("the plugin's own network namespace and CNI_NETNS {0:?} must not be the same")]
    OwnNetns(String),
    /// `subnet.env` is missing, incomplete or wrong.
    #[error(transparent)]
    SubnetEnv(#[from] SubnetEnvError),
    /// The saved delegate configuration could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The delegate could not be run, failed or answered nonsense.
    #[error(transparent)]
    Delegate(#[from] DelegateError),
    /// The bridge still carries the address of a former subnet.
    #[error(transparent)]
    StaleBridge(#[from] StaleBridge),
    /// CHECK for something that ADD never made.
    #[error("no usable state for container {container}, interface {ifname}")]
    NeverAdded {
        /// The container's ID.
        container: String,
        /// The interface in it.
        ifname: String,
    },
    /// ADD could not be served now.
    #[error("flannel cannot serve ADD now")]
    NotAvailable(#[source] Box<Self>),
    /// Several parts of one GC failed; the first decides the code.
    #[error("{first}")]
    Several {
        /// The first failure.
        first: Box<Self>,
        /// The messages of all failures, in order.
        all: String,
    },
}

impl Error {
    /// The number a runtime decides on.
    pub fn code(&self) -> u64 {
        match self {
            Self::IncompatibleVersion { .. } | Self::CommandNotAllowed { .. } => code::INCOMPATIBLE_VERSION,
            Self::MissingVariables(_) | Self::BadVariable { .. } | Self::UnknownCommand(_) => {
                code::BAD_ENVIRONMENT
            }
            Self::Stdin(_) | Self::State(_) => code::IO,
            Self::Decode { .. } => code::DECODE,
            Self::MissingName | Self::BadName(_) | Self::Config(_) => code::BAD_CONFIG,
            Self::OwnNetns(_) => code::BAD_NETNS,
            Self::SubnetEnv(error) => error.code(),
            Self::Delegate(error) => error.code(),
            Self::StaleBridge(_) | Self::NeverAdded { .. } => code::INTERNAL,
            Self::NotAvailable(_) => code::NOT_AVAILABLE,
            Self::Several { first, .. } => first.code(),
        }
    }

    /// The longer part of the error object, if there is more to say than the message.
    pub fn details(&self) -> Option<String> {
        match self {
            Self::IncompatibleVersion { details }
            | Self::CommandNotAllowed { details, .. }
            | Self::Decode { details, .. } => Some(details.clone()),
            Self::BadName(name) => Some(name.clone()),
            Self::Delegate(DelegateError::Reported { details, .. }) => details.clone(),
            Self::NotAvailable(reason) => Some(reason.whole()),
            Self::Several { all, .. } => Some(all.clone()),
            Self::StaleBridge(error) => Some(error.cure()),
            Self::SubnetEnv(error) => error.advice(),
            _ => std::error::Error::source(self).map(ToString::to_string),
        }
    }

    /// Message and details in one line, for logs and for errors that quote this one.
    pub fn whole(&self) -> String {
        match self.details() {
            Some(details) => format!("{self}; {details}"),
            None => self.to_string(),
        }
    }

    /// The error object of the specification.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code(),
            "msg": self.to_string(),
        });
        if let (Some(map), Some(details)) = (object.as_object_mut(), self.details()) {
            map.insert("details".to_owned(), details.into());
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_the_specification_s_keys() {
        let error = Error::BadName("a b".into());
        assert_eq!(
            error.to_json(CniVersion::V0_3_1),
            json!({"cniVersion": "0.3.1", "code": 7, "msg": "invalid characters in network name", "details": "a b"})
        );
        let error = Error::MissingName;
        assert_eq!(
            error.to_json(CniVersion::NEWEST),
            json!({"cniVersion": "1.1.0", "code": 7, "msg": "missing network name"})
        );
    }

    #[test]
    fn the_wording_old_clients_look_for_stays() {
        assert_eq!(Error::UnknownCommand("VERSION".into()).to_string(), "unknown CNI_COMMAND: VERSION");
    }

    #[test]
    fn a_status_failure_says_why_in_its_details() {
        let error = Error::NotAvailable(Box::new(Error::Config("x".into())));
        assert_eq!((error.code(), error.details().unwrap().as_str()), (50, "invalid network config: x"));
    }

    #[test]
    fn several_failures_take_the_first_one_s_code() {
        let error = Error::Several { first: Box::new(Error::MissingName), all: "a; b".into() };
        assert_eq!((error.code(), error.details().unwrap().as_str()), (7, "a; b"));
    }
}
