//! The network configuration on stdin: decoded in the two steps the contract's order of checks
//! needs, with every field typed. Decides only; nothing here reads a file.

use crate::env::is_identifier;
use crate::error::Error;
use crate::version::CniVersion;
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::time::Duration;

/// A JSON object, keys in the order they were written.
pub type Object = Map<String, Value>;

/// Where flanneld writes unless told otherwise.
pub const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Where the delegate configurations of attached containers are kept unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";
/// GC's list of attachments.
pub const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// The same list under the key that older libcni sent.
pub const OLD_ATTACHMENTS: &str = "cni.dev/attachments";
/// The longest `subnetFileWaitSeconds`: kubelet gives a sandbox four minutes in all.
pub const LONGEST_WAIT_SECONDS: u64 = 120;

/// stdin after the first checks: an object with a proper network name.
#[derive(Clone, Debug)]
pub struct Document {
    name: String,
    object: Object,
}

/// The configuration of one network, every known field checked.
#[derive(Clone, Debug)]
pub struct NetConf {
    /// The version agreed upon.
    pub version: CniVersion,
    /// Whether the config names its version; only then does the delegate get one from us.
    pub states_version: bool,
    /// The network's name.
    pub name: String,
    /// The file flanneld writes.
    pub subnet_file: PathBuf,
    /// How long ADD waits for that file.
    pub subnet_file_wait: Duration,
    /// Remove the address of a former subnet from the bridge when nothing uses it.
    pub repair_bridge_address: bool,
    /// Where delegate configurations are kept; absolute.
    pub data_dir: PathBuf,
    /// The user's part of the delegate's configuration.
    pub delegate: Object,
    /// The user's part of the delegate's `ipam`.
    pub ipam: Object,
    /// What the runtime fills in for declared capabilities.
    pub runtime_config: Option<Object>,
    /// The result of an earlier ADD.
    pub prev_result: Option<Object>,
    /// GC's list.
    pub attachments: Attachments,
    /// GC's list as it came, under each of its keys.
    pub attachment_keys: Object,
}

/// Which attachments GC must spare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachments {
    /// No list was sent: nothing may be concluded.
    NotSent,
    /// The complete set for this network.
    Complete(Vec<ValidAttachment>),
}

/// One interface of one container the runtime still knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidAttachment {
    /// The container's ID.
    pub container: String,
    /// The interface in it.
    pub ifname: String,
}

impl Document {
    /// Decodes stdin and checks the network name.
    ///
    /// # Errors
    /// Code 6 for anything but an object with a string `name`, 7 for an absent or improper name.
    pub fn parse(stdin: &[u8]) -> Result<Self, Error> {
        let undecodable = |details| Error::Decode { what: "the network config", details };
        let object: Object = serde_json::from_slice(stdin).map_err(|error| undecodable(error.to_string()))?;
        let name = match object.get("name") {
            None | Some(Value::Null) => return Err(Error::MissingName),
            Some(Value::String(name)) if name.is_empty() => return Err(Error::MissingName),
            Some(Value::String(name)) => name.clone(),
            Some(other) => return Err(undecodable(format!("name: {} instead of a string", kind(other)))),
        };
        if is_identifier(&name) { Ok(Self { name, object }) } else { Err(Error::BadName(name)) }
    }

    /// `cniVersion`, `None` when absent or empty.
    ///
    /// # Errors
    /// Code 6 when it is not a string.
    pub fn stated_version(&self) -> Result<Option<&str>, Error> {
        match self.object.get("cniVersion") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(Error::Decode {
                what: "the network config",
                details: format!("cniVersion: {} instead of a string", kind(other)),
            }),
        }
    }

    /// Checks and types every other field.
    ///
    /// # Errors
    /// Code 7, naming the field.
    pub fn into_netconf(mut self, version: CniVersion) -> Result<NetConf, Error> {
        let states_version = matches!(self.stated_version(), Ok(Some(_)));
        self.check_ignored_fields()?;
        Ok(NetConf {
            version,
            states_version,
            subnet_file: self.take_string("subnetFile")?.unwrap_or_else(|| DEFAULT_SUBNET_FILE.into()).into(),
            subnet_file_wait: wait(self.take("subnetFileWaitSeconds"))?,
            repair_bridge_address: flag("repairBridgeAddress", self.take("repairBridgeAddress"))?,
            data_dir: data_dir(self.take_string("dataDir")?)?,
            delegate: self.take_object("delegate")?.unwrap_or_default(),
            ipam: self.take_object("ipam")?.unwrap_or_default(),
            runtime_config: self.take_object("runtimeConfig")?,
            prev_result: self.take_object("prevResult")?,
            attachments: attachments(self.object.get(VALID_ATTACHMENTS))?,
            attachment_keys: self.attachment_keys(),
            name: self.name,
        })
    }

    fn check_ignored_fields(&self) -> Result<(), Error> {
        string("type", self.object.get("type"))?;
        each(object("capabilities", self.object.get("capabilities"))?, |key, value| {
            flag(&format!("capabilities.{key}"), Some(value.clone())).map(|_| ())
        })?;
        each(object("dns", self.object.get("dns"))?, |key, value| match key {
            "domain" => string("dns.domain", Some(value)).map(|_| ()),
            "nameservers" | "search" | "options" => strings(&format!("dns.{key}"), value),
            _ => Ok(()),
        })
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.object.get_mut(key).map(Value::take)
    }

    fn take_string(&mut self, key: &str) -> Result<Option<String>, Error> {
        match self.take(key) {
            Some(Value::String(text)) => Ok(Some(text)),
            other => string(key, other.as_ref()).map(|_| None),
        }
    }

    fn take_object(&mut self, key: &str) -> Result<Option<Object>, Error> {
        match self.take(key) {
            Some(Value::Object(map)) => Ok(Some(map)),
            other => object(key, other.as_ref()).map(|_| None),
        }
    }

    fn attachment_keys(&self) -> Object {
        let found = |key: &str| Some((key.to_owned(), self.object.get(key)?.clone()));
        [VALID_ATTACHMENTS, OLD_ATTACHMENTS].into_iter().filter_map(found).collect()
    }
}

/// What a JSON value is, in the words of an error message.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong(key: &str, found: &Value, expected: &str) -> Error {
    Error::Config(format!("{key}: {} instead of {expected}", kind(found)))
}

fn string<'a>(key: &str, value: Option<&'a Value>) -> Result<Option<&'a str>, Error> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(key, other, "a string")),
    }
}

fn object<'a>(key: &str, value: Option<&'a Value>) -> Result<Option<&'a Object>, Error> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(wrong(key, other, "an object")),
    }
}

fn flag(key: &str, value: Option<Value>) -> Result<bool, Error> {
    match value {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(value),
        Some(other) => Err(wrong(key, &other, "true or false")),
    }
}

fn strings(key: &str, value: &Value) -> Result<(), Error> {
    let Value::Array(items) = value else {
        return if value.is_null() { Ok(()) } else { Err(wrong(key, value, "a list of strings")) };
    };
    items.iter().try_for_each(|item| string(key, Some(item)).map(|_| ()))
}

fn each(map: Option<&Object>, mut check: impl FnMut(&str, &Value) -> Result<(), Error>) -> Result<(), Error> {
    map.into_iter().flatten().try_for_each(|(key, value)| check(key, value))
}

fn wait(value: Option<Value>) -> Result<Duration, Error> {
    let seconds = match &value {
        None | Some(Value::Null) => Some(0),
        Some(value) => value.as_u64().filter(|seconds| *seconds <= LONGEST_WAIT_SECONDS),
    };
    seconds.map(Duration::from_secs).ok_or_else(|| {
        let found = value.unwrap_or_default();
        Error::Config(format!(
            "subnetFileWaitSeconds: {found} is not a whole number from 0 to {LONGEST_WAIT_SECONDS}"
        ))
    })
}

fn data_dir(text: Option<String>) -> Result<PathBuf, Error> {
    let path = PathBuf::from(text.unwrap_or_else(|| DEFAULT_DATA_DIR.into()));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Error::Config(format!("dataDir: {path:?} is not an absolute path")))
    }
}

fn attachments(value: Option<&Value>) -> Result<Attachments, Error> {
    match value {
        None => Ok(Attachments::NotSent),
        Some(Value::Null) => Ok(Attachments::Complete(Vec::new())),
        Some(Value::Array(items)) => {
            items.iter().map(valid_attachment).collect::<Result<_, _>>().map(Attachments::Complete)
        }
        Some(other) => Err(wrong(VALID_ATTACHMENTS, other, "a list")),
    }
}

fn valid_attachment(item: &Value) -> Result<ValidAttachment, Error> {
    let entry = object(VALID_ATTACHMENTS, Some(item))?;
    let field = |key: &str| {
        string(&format!("{VALID_ATTACHMENTS}: {key}"), entry.and_then(|map| map.get(key)))
            .map(|text| text.unwrap_or_default().to_owned())
    };
    Ok(ValidAttachment { container: field("containerID")?, ifname: field("ifname")? })
}

#[cfg(test)]
mod tests;
