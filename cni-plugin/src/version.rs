//! The CNI protocol versions this plugin speaks, and which of them allow which command.
//! Decides only; reading the configuration is `netconf`'s job.

use crate::env::Verb;
use crate::error::Error;
use serde_json::{Value, json};
use std::fmt;

/// One supported protocol version; ordered from the oldest to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// 0.1.0, which a configuration without `cniVersion` means.
    V0_1_0,
    /// 0.2.0 added VERSION.
    V0_2_0,
    /// 0.3.0 added chains and the result with a list of interfaces.
    V0_3_0,
    /// 0.3.1, the version of the common conflist.
    V0_3_1,
    /// 0.4.0 added CHECK and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0 dropped `version` from the addresses of a result.
    V1_0_0,
    /// 1.1.0 added STATUS and GC.
    V1_1_0,
}

impl CniVersion {
    /// Every supported version, in the order VERSION lists them.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// What error objects and VERSION carry before a version is agreed upon.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The spelling used in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version spelt exactly `text`; `1.0` is none.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    fn triple(self) -> (u32, u32, u32) {
        match self {
            Self::V0_1_0 => (0, 1, 0),
            Self::V0_2_0 => (0, 2, 0),
            Self::V0_3_0 => (0, 3, 0),
            Self::V0_3_1 => (0, 3, 1),
            Self::V0_4_0 => (0, 4, 0),
            Self::V1_0_0 => (1, 0, 0),
            Self::V1_1_0 => (1, 1, 0),
        }
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The version a configuration with this `cniVersion` asks for, if `verb` may be used with it.
///
/// `stated` is `None` when the key is absent or empty, which means 0.1.0.
///
/// # Errors
/// Code 1 for a version outside the list or too old for the command; code 6 when a command with
/// a minimum version meets text that is no version number.
pub fn negotiate(verb: Verb, stated: Option<&str>) -> Result<CniVersion, Error> {
    let text = stated.unwrap_or(CniVersion::V0_1_0.as_str());
    if let Some(minimum) = introduced_in(verb) {
        allow(verb, text, minimum)?;
    }
    CniVersion::find(text).ok_or_else(|| Error::IncompatibleVersion {
        details: format!("config is {text:?}, plugin supports {}", listed()),
    })
}

/// The answer to VERSION: echoes the version of the probe when it is a supported one.
pub fn answer(probe: &[u8]) -> Value {
    let version = asked_in(probe).unwrap_or(CniVersion::NEWEST);
    json!({
        "cniVersion": version.as_str(),
        "supportedVersions": CniVersion::ALL.map(CniVersion::as_str),
    })
}

/// The version a VERSION probe names, if the probe is whole and the version supported.
pub fn asked_in(probe: &[u8]) -> Option<CniVersion> {
    let probe: Value = serde_json::from_slice(probe).ok()?;
    CniVersion::find(probe.get("cniVersion")?.as_str()?)
}

/// The supported versions for a reader: `0.1.0, 0.2.0, …`.
pub fn listed() -> String {
    CniVersion::ALL.map(CniVersion::as_str).join(", ")
}

fn introduced_in(verb: Verb) -> Option<CniVersion> {
    match verb {
        Verb::Check => Some(CniVersion::V0_4_0),
        Verb::Status | Verb::Gc => Some(CniVersion::V1_1_0),
        Verb::Add | Verb::Del => None,
    }
}

fn allow(verb: Verb, text: &str, minimum: CniVersion) -> Result<(), Error> {
    let asked = parse_triple(text).ok_or_else(|| Error::Decode {
        what: "cniVersion",
        details: format!("{text:?} is not a version number of up to three parts"),
    })?;
    let refused = |details| Err(Error::CommandNotAllowed { verb, details });
    if asked < minimum.triple() {
        return refused(format!("config is {text:?}, {verb} needs {minimum}"));
    }
    if asked > CniVersion::NEWEST.triple() {
        return refused(format!("config is {text:?}, plugin supports {}", listed()));
    }
    Ok(())
}

fn parse_triple(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.');
    let first = parts.next().and_then(number)?;
    let mut optional = || parts.next().map_or(Some(0), number);
    let triple = (first, optional()?, optional()?);
    parts.next().is_none().then_some(triple)
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_the_contract_s_in_order() {
        assert_eq!(listed(), "0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0");
        assert!(CniVersion::ALL.is_sorted());
        assert!(CniVersion::ALL.map(CniVersion::triple).is_sorted());
        for version in CniVersion::ALL {
            assert_eq!(parse_triple(version.as_str()), Some(version.triple()));
        }
    }

    #[test]
    fn add_compares_by_equality_and_defaults_to_0_1_0() {
        assert_eq!(negotiate(Verb::Add, None).unwrap(), CniVersion::V0_1_0);
        for version in CniVersion::ALL {
            assert_eq!(negotiate(Verb::Del, Some(version.as_str())).unwrap(), version);
        }
        for odd in ["0.3", "1.0", "v1.0.0", "1.2.0", "9.9.9", "1.1.0 ", "01.1.0", "one"] {
            assert_eq!(negotiate(Verb::Add, Some(odd)).unwrap_err().code(), 1, "{odd}");
        }
    }

    #[test]
    fn commands_with_a_minimum_compare_numerically() {
        let code = |verb, text| negotiate(verb, Some(text)).map_or_else(|error| error.code(), |_| 0);
        assert_eq!(negotiate(Verb::Check, None).unwrap_err().code(), 1);
        for (verb, text, expected) in [
            (Verb::Check, "0.3.1", 1),
            (Verb::Check, "0.4.0", 0),
            (Verb::Check, "1.0.0", 0),
            (Verb::Check, "1.0", 1),
            (Verb::Check, "9.9.9", 1),
            (Verb::Check, "v1.0.0", 6),
            (Verb::Check, "1.0.0.0", 6),
            (Verb::Check, "1..0", 6),
            (Verb::Check, "+1.0.0", 6),
            (Verb::Check, "99999999999.0.0", 6),
            (Verb::Status, "1.0.0", 1),
            (Verb::Status, "1.1.0", 0),
            (Verb::Gc, "0.10.0", 1),
            (Verb::Gc, "1.1.0", 0),
            (Verb::Gc, "1.1.1", 1),
        ] {
            assert_eq!(code(verb, text), expected, "{verb} {text}");
        }
    }

    #[test]
    fn the_answer_echoes_only_what_is_supported() {
        let version = |probe: &str| answer(probe.as_bytes())["cniVersion"].clone();
        assert_eq!(version(r#"{"cniVersion":"1.0.0"}"#), "1.0.0");
        for probe in ["", "nonsense", "{}", r#"{"cniVersion":7}"#, r#"{"cniVersion":"9.9.9"}"#, "[]"] {
            assert_eq!(version(probe), "1.1.0", "{probe}");
        }
    }
}
