//! What ADD prints: the delegate's result as it came, with the version filled in. Pure.

use crate::delegate_config::DelegateConfig;
use crate::error::Error;
use crate::netconf::{Object, kind};
use crate::version::{self, CniVersion};
use serde_json::Value;

/// Checks a delegate's output and gives back what to print. A result of another supported version
/// than asked for is passed on unconverted.
///
/// # Errors
/// Code 6 for anything but an object, code 1 for a version outside the list.
pub fn relay(stdout: &[u8], sent: &DelegateConfig) -> Result<String, Error> {
    let undecodable = |details| Error::Decode { what: "the delegate's result", details };
    let value: Value = serde_json::from_slice(stdout).map_err(|error| undecodable(error.to_string()))?;
    let Value::Object(mut result) = value else {
        return Err(undecodable(format!("{} instead of an object", kind(&value))));
    };
    match result.get("cniVersion") {
        None | Some(Value::Null) => fill_version(&mut result, sent),
        Some(Value::String(text)) if text.is_empty() => fill_version(&mut result, sent),
        Some(Value::String(text)) if CniVersion::find(text).is_some() => {}
        Some(Value::String(text)) => {
            return Err(Error::IncompatibleVersion {
                details: format!("the delegate's result is {text:?}, plugin supports {}", version::listed()),
            });
        }
        Some(other) => return Err(undecodable(format!("cniVersion: {} instead of a string", kind(other)))),
    }
    Ok(Value::Object(result).to_string())
}

fn fill_version(result: &mut Object, sent: &DelegateConfig) {
    let asked = Some(sent.text("cniVersion")).filter(|text| !text.is_empty());
    result.insert("cniVersion".into(), asked.unwrap_or(CniVersion::V0_1_0.as_str()).into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relayed(stdout: &str, version: Option<&str>) -> Result<String, u64> {
        let config = DelegateConfig::from_object(Object::new());
        let sent = version.map_or(config.clone(), |version| config.with("cniVersion", version.into()));
        relay(stdout.as_bytes(), &sent).map_err(|error| error.code())
    }

    #[test]
    fn a_result_passes_without_loss() {
        let text = r#"{"cniVersion":"0.3.1","unknown":12345678901234567890123,"ips":[]}"#;
        assert_eq!(relayed(text, Some("0.3.1")).unwrap(), text);
    }

    #[test]
    fn a_missing_version_is_the_one_that_was_sent() {
        for text in ["{}", r#"{"cniVersion":""}"#, r#"{"cniVersion":null}"#] {
            assert_eq!(relayed(text, Some("0.4.0")).unwrap(), r#"{"cniVersion":"0.4.0"}"#);
            assert_eq!(relayed(text, None).unwrap(), r#"{"cniVersion":"0.1.0"}"#);
        }
    }

    #[test]
    fn another_supported_version_stays() {
        assert_eq!(relayed(r#"{"cniVersion":"0.2.0"}"#, Some("1.0.0")).unwrap(), r#"{"cniVersion":"0.2.0"}"#);
    }

    #[test]
    fn what_is_no_result() {
        for text in ["", "null", "[]", "7", "nonsense", "{} {}", r#"{"cniVersion":7}"#] {
            assert_eq!(relayed(text, None), Err(6), "{text}");
        }
        assert_eq!(relayed(r#"{"cniVersion":"9.9.9"}"#, None), Err(1));
    }
}
