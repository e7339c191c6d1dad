//! What a configuration file gives for each option: its own words for the options, and what the role makes of its variables.
//!
//! For one option, from strong to weak: a key with the option's name, `flannel_settings_user`, `flannel_settings`, the role's
//! default for that. What the command line or the environment gives anyway is not evaluated.

use std::collections::BTreeMap;

use super::error::FileError;
use super::role::{self, Shape};
use super::template::{Gather, Templates};
use super::yaml::{Content, Entry, Node};
use crate::model::network_config::{ConfigError, NetworkConfig};
use crate::options::flags::{self, Flag, Kind};
use crate::options::raw::{Given, Origin, Raw};

/// A file whose keys and types are right; templates are not evaluated yet.
pub(in crate::options) struct Layer {
    options: Vec<Entry>,
    settings: Vec<Entry>,
    variables: BTreeMap<String, Node>,
    templates: Templates,
}

impl Layer {
    /// Judges keys and types.
    pub(super) fn new(entries: Vec<Entry>, gather: Gather) -> Result<Self, FileError> {
        let (mut options, mut variables) = (Vec::new(), BTreeMap::new());
        for entry in entries {
            match (flags::find(&entry.key), role::find(&entry.key)) {
                (Some(flag), _) => {
                    check_option(flag, &entry)?;
                    if flag.name == flags::CONFIG_FILE.name {
                        return Err(FileError::NotHere { key: entry.key, line: entry.line });
                    }
                    options.push(entry);
                }
                (None, Some(variable)) => {
                    check_variable(variable.shape, &entry)?;
                    variables.insert(entry.key, entry.value);
                }
                (None, None) => return Err(unknown(entry.key, entry.line)),
            }
        }
        let settings = combined(&variables);
        let templates = Templates::new(with_defaults(&variables, &settings), gather);
        let layer = Self { options, settings, variables, templates };
        layer.network_if_given()?;
        Ok(layer)
    }

    /// What the file gives for the options that nothing above it gives.
    pub(in crate::options) fn below(&self, given: &Raw) -> Result<Raw, FileError> {
        let mut raw = Raw::default();
        for flag in flags::ALL.iter().filter(|flag| given.get(flag).is_none()) {
            if let Some(found) = self.given(flag)? {
                raw.insert(flag, found);
            }
        }
        Ok(raw)
    }

    fn given(&self, flag: &'static Flag) -> Result<Option<Given>, FileError> {
        let seed = || self.variables.get(role::SEED).filter(|_| flag.name == flags::SEED_CONFIG.name);
        let listed = [&self.options, &self.settings].into_iter().flatten();
        let found = listed.filter(|entry| entry.key == flag.name).map(|entry| &entry.value);
        let Some(node) = found.chain(seed()).next() else { return Ok(None) };
        if flag.name == flags::CONFIG_FILE.name {
            return Ok(None);
        }
        let origin = if node.line == 0 { Origin::Role } else { Origin::File { line: node.line } };
        let texts = self.texts(flag, node)?;
        Ok((!texts.is_empty()).then_some(Given { texts, origin }))
    }

    /// The texts as the command line would have them.
    fn texts(&self, flag: &Flag, node: &Node) -> Result<Vec<String>, FileError> {
        let one = |node: &Node| -> Result<String, FileError> {
            if let (Content::Bool(_, word), false) = (&node.content, flag.is_bool()) {
                // `vxlan-tx-checksum: off` is a boolean only for YAML.
                return Ok(word.clone());
            }
            let text = self.templates.scalar(flag.name, node).map_err(|error| hushed(flag, error))?;
            Ok(text.unwrap_or_default())
        };
        let texts = match &node.content {
            Content::List(items) => items.iter().map(one).collect::<Result<Vec<_>, _>>()?,
            _ => vec![one(node)?],
        };
        match flag.kind {
            Kind::List => Ok(texts),
            Kind::Urls { .. } => Ok(vec![self.with_ports(&texts.join(","))?]),
            _ => Ok(vec![texts.join(",")]),
        }
    }

    /// Endpoints without a port get `etcd_client_port`, if the file has it.
    fn with_ports(&self, urls: &str) -> Result<String, FileError> {
        match (self.variables.contains_key(role::CLIENT_PORT), self.templates.variable(role::CLIENT_PORT)?) {
            (true, Some(port)) => {
                Ok(urls.split(',').map(|url| with_port(url, &port)).collect::<Vec<_>>().join(","))
            }
            _ => Ok(urls.to_owned()),
        }
    }

    /// A variable of the role, or its default; `None`: it has neither.
    pub(super) fn variable(&self, name: &str) -> Result<Option<String>, FileError> {
        self.templates.variable(name)
    }

    /// The network config that the role would write.
    ///
    /// # Errors
    /// When it would not be one, or not one that is built.
    pub(in crate::options) fn network(&self) -> Result<String, FileError> {
        let range = self.variable(role::IP_RANGE)?.unwrap_or_default();
        let backend = self.variable(role::BACKEND_TYPE)?.unwrap_or_default();
        let config = format!(
            r#"{{"Network":{},"Backend":{{"Type": {}}}}}"#,
            serde_json::Value::from(range),
            serde_json::Value::from(backend)
        );
        match NetworkConfig::from_json(config.as_bytes()) {
            Ok(_) => Ok(config),
            Err(error) => Err(self.no_network(&error)),
        }
    }

    /// Whether the file says which network there shall be.
    pub(in crate::options) fn has_network(&self) -> bool {
        self.variables.contains_key(role::IP_RANGE)
    }

    fn network_if_given(&self) -> Result<(), FileError> {
        let given =
            [role::IP_RANGE, role::BACKEND_TYPE].iter().any(|name| self.variables.contains_key(*name));
        if given { self.network().map(drop) } else { Ok(()) }
    }

    fn no_network(&self, error: &ConfigError) -> FileError {
        let key = if error.is_fatal() { role::BACKEND_TYPE } else { role::IP_RANGE };
        let line = self.variables.get(key).map_or(0, |node| node.line);
        FileError::Network { key, line, problem: error.to_string() }
    }
}

/// A secret's template says nothing about itself.
fn hushed(flag: &Flag, error: FileError) -> FileError {
    match error {
        FileError::Template { key, line, .. } | FileError::Undefined { key, line, .. }
            if flag.kind == Kind::Secret =>
        {
            FileError::Template { key, line, problem: "it is a secret and not shown".to_owned() }
        }
        other => other,
    }
}

fn check_option(flag: &Flag, entry: &Entry) -> Result<(), FileError> {
    if flag.name == flags::VERSION.name {
        return Err(FileError::NotHere { key: entry.key.clone(), line: entry.line });
    }
    let content = &entry.value.content;
    let scalar = Shape::Scalar.accepts(content);
    let (fits, expected) = match flag.kind {
        Kind::Bool { .. } => {
            (matches!(content, Content::Bool(..) | Content::Text(_) | Content::Int(0 | 1)), "true or false")
        }
        Kind::Int { .. } => (matches!(content, Content::Int(_) | Content::Text(_)), "an integer"),
        Kind::List | Kind::Urls { .. } => {
            (scalar || Shape::List.accepts(content), "a text or a list of texts")
        }
        Kind::Text { .. } if flag.name == flags::IP_MASQ_EXCLUDE.name => {
            (scalar || Shape::List.accepts(content), "a text or a list of texts")
        }
        Kind::Text { .. } | Kind::Secret => (scalar, "a text"),
    };
    if fits { Ok(()) } else { Err(wrong_type(entry, expected)) }
}

fn check_variable(shape: Shape, entry: &Entry) -> Result<(), FileError> {
    if !shape.accepts(&entry.value.content) {
        return Err(wrong_type(entry, shape.in_words()));
    }
    if let (Shape::Settings, Content::Map(settings)) = (shape, &entry.value.content) {
        for setting in settings {
            match flags::find(&setting.key) {
                Some(flag) => check_option(flag, setting)?,
                None => return Err(no_setting(setting, &entry.key)),
            }
        }
    }
    Ok(())
}

fn wrong_type(entry: &Entry, expected: &'static str) -> FileError {
    let (key, got) = (entry.key.clone(), entry.value.content.kind());
    FileError::WrongType { key, line: entry.line, expected, got }
}

fn unknown(key: String, line: usize) -> FileError {
    let variables = role::VARIABLES.iter().map(|variable| variable.name);
    let suggestion = flags::closest_of(&key, variables.chain(flags::ALL.iter().map(|flag| flag.name)));
    FileError::Unknown { suggestion: suggestion.map(str::to_owned), key, line }
}

/// Within a mapping of options there can only be options.
fn no_setting(setting: &Entry, within: &str) -> FileError {
    let (key, line) = (setting.key.clone(), setting.line);
    if role::find(&key).is_some() {
        return FileError::Misplaced { key, line, within: within.to_owned() };
    }
    FileError::Unknown { suggestion: flags::closest(&key).map(|flag| flag.name.to_owned()), key, line }
}

/// `flannel_settings` of the file or of the role, with `flannel_settings_user` laid over it.
fn combined(variables: &BTreeMap<String, Node>) -> Vec<Entry> {
    let map = |name: &str| match variables.get(name).map(|node| &node.content) {
        Some(Content::Map(entries)) => Some(entries.clone()),
        _ => None,
    };
    let implied = role::IMPLY_SETTINGS.iter().any(|name| variables.contains_key(*name));
    let mut settings = match map(role::SETTINGS) {
        Some(settings) => settings,
        None if implied => default_settings(variables.contains_key(role::INTERFACE)),
        None => Vec::new(),
    };
    for over in map(role::SETTINGS_USER).unwrap_or_default() {
        settings.retain(|entry| entry.key != over.key);
        settings.push(over);
    }
    settings
}

fn default_settings(has_interface: bool) -> Vec<Entry> {
    let defaults = role::DEFAULT_SETTINGS.iter().filter(|default| has_interface || !default.of_interface);
    let entry = |default: &role::Default| Entry {
        key: default.option.to_owned(),
        line: 0,
        value: built_in(default.value),
    };
    defaults.map(entry).collect()
}

/// A value that stands in no file: on line 0.
fn built_in(text: &str) -> Node {
    Node { content: Content::Text(text.to_owned()), line: 0 }
}

/// What templates may refer to.
fn with_defaults(variables: &BTreeMap<String, Node>, settings: &[Entry]) -> BTreeMap<String, Node> {
    let defaults = role::VARIABLES.iter();
    let mut all: BTreeMap<String, Node> = defaults
        .filter_map(|variable| Some((variable.name.to_owned(), built_in(variable.default?))))
        .collect();
    all.extend(variables.clone());
    if !settings.is_empty() {
        let line = variables.get(role::SETTINGS).map_or(0, |node| node.line);
        all.insert(role::SETTINGS.to_owned(), Node { content: Content::Map(settings.to_vec()), line });
    }
    all
}

fn with_port(url: &str, port: &str) -> String {
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    let bare = !host.is_empty() && !host.contains(['/', '@']) && (host.ends_with(']') || !host.contains(':'));
    if bare { format!("{url}:{port}") } else { url.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_endpoint_without_a_port_gets_one() {
        for (url, with) in [
            ("https://10.8.0.101", "https://10.8.0.101:2379"),
            ("https://10.8.0.101:4001", "https://10.8.0.101:4001"),
            ("https://[fd00::1]", "https://[fd00::1]:2379"),
            ("https://[fd00::1]:1", "https://[fd00::1]:1"),
            ("http://etcd/path", "http://etcd/path"),
            ("", ""),
        ] {
            assert_eq!(with_port(url, "2379"), with);
        }
    }
}
