//! What the runtime asks for: the `CNI_*` variables, checked and typed.
//! Takes a look-up function instead of reading the environment, and knows nothing about stdin.

use crate::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A command that carries a network configuration on stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Verify an attachment.
    Check,
    /// Could ADD be served?
    Status,
    /// Remove what no valid attachment needs.
    Gc,
}

impl Verb {
    /// The value of `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A container ID the specification allows; safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerId(String);

impl ContainerId {
    /// The ID, if it begins with a letter or digit and holds only `[A-Za-z0-9_.-]`.
    pub fn new(text: &OsStr) -> Option<Self> {
        let text = text.to_str()?;
        is_identifier(text).then(|| Self(text.to_owned()))
    }

    /// The ID as text; always ASCII.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of the interface inside the container; any bytes Linux allows, UTF-8 or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfName(OsString);

impl IfName {
    /// The name, unless Linux or the specification refuses it.
    pub fn new(text: &OsStr) -> Option<Self> {
        let bytes = text.as_bytes();
        let sized = (1..=15).contains(&bytes.len());
        let reserved = bytes == b"." || bytes == b"..";
        let separator = bytes.iter().any(|byte| matches!(byte, b'/' | b':'));
        let blank = text.to_string_lossy().chars().any(char::is_whitespace);
        (sized && !reserved && !separator && !blank).then(|| Self(text.to_owned()))
    }

    /// The name as the kernel knows it.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// The name for JSON; bytes that are not UTF-8 are replaced.
    pub fn to_text(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

/// One interface of one container: what ADD creates and DEL removes.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: ContainerId,
    /// `CNI_IFNAME`.
    pub ifname: IfName,
    /// `CNI_NETNS`; may be empty on DEL, and may name something that is gone.
    pub netns: OsString,
    /// `CNI_NETNS_OVERRIDE`: the plugin's own namespace is meant on purpose.
    pub netns_override: bool,
}

/// A command with a configuration, and the parameters it has.
#[derive(Clone, Debug)]
pub enum Task {
    /// Attach a container.
    Add(Attachment),
    /// Detach a container.
    Del(Attachment),
    /// Verify an attachment.
    Check(Attachment),
    /// Could ADD be served?
    Status,
    /// Remove what no valid attachment needs.
    Gc,
}

impl Task {
    /// The command alone.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Add(_) => Verb::Add,
            Self::Del(_) => Verb::Del,
            Self::Check(_) => Verb::Check,
            Self::Status => Verb::Status,
            Self::Gc => Verb::Gc,
        }
    }
}

/// A checked invocation.
#[derive(Clone, Debug)]
pub enum Call {
    /// Report the supported versions; nothing else was checked.
    Version,
    /// A word that is no command; reported only after stdin was checked.
    Unknown(OsString),
    /// A command, and where delegates are looked for.
    Task(Task, PluginPath),
}

/// `CNI_PATH`, split at `:`; empty elements are dropped rather than read as the current directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginPath(Vec<PathBuf>);

impl PluginPath {
    /// Splits the variable's value.
    pub fn new(value: &OsStr) -> Self {
        let parts = value.as_bytes().split(|byte| *byte == b':');
        Self(parts.filter(|part| !part.is_empty()).map(|part| OsStr::from_bytes(part).into()).collect())
    }

    /// The directories, in order of preference.
    pub fn directories(&self) -> &[PathBuf] {
        &self.0
    }
}

/// Whether `text` matches `[A-Za-z0-9][A-Za-z0-9_.-]*`, the rule for container IDs and network names.
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Reads and checks the variables; `None` when `CNI_COMMAND` is unset or empty.
///
/// # Errors
/// Code 4: a malformed ID or interface name at once, missing variables all together.
pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<Call>, Error> {
    let lookup = |key: &str| lookup(key).filter(|value| !value.is_empty());
    let Some(command) = lookup("CNI_COMMAND") else { return Ok(None) };
    let mut reader = Reader { lookup, missing: Vec::new() };
    let call = match command.as_bytes() {
        b"VERSION" => Call::Version,
        b"ADD" => reader.attached(true, Task::Add)?,
        b"DEL" => reader.attached(false, Task::Del)?,
        b"CHECK" => reader.attached(true, Task::Check)?,
        b"STATUS" => Call::Task(Task::Status, reader.path()),
        b"GC" => Call::Task(Task::Gc, reader.path()),
        _ => Call::Unknown(command),
    };
    if reader.missing.is_empty() { Ok(Some(call)) } else { Err(Error::MissingVariables(reader.missing)) }
}

/// Collects what is missing while values are read in the contract's order.
struct Reader<F> {
    lookup: F,
    missing: Vec<&'static str>,
}

impl<F: Fn(&str) -> Option<OsString>> Reader<F> {
    fn attached(&mut self, needs_netns: bool, task: impl Fn(Attachment) -> Task) -> Result<Call, Error> {
        let container = self.validated("CNI_CONTAINERID", ContainerId::new)?;
        let netns = if needs_netns { self.required("CNI_NETNS") } else { (self.lookup)("CNI_NETNS") };
        let ifname = self.validated("CNI_IFNAME", IfName::new)?;
        let path = self.path();
        let netns_override = (self.lookup)("CNI_NETNS_OVERRIDE").is_some_and(|value| is_yes(&value));
        let (Some(container), Some(ifname)) = (container, ifname) else {
            return Err(Error::MissingVariables(std::mem::take(&mut self.missing)));
        };
        let netns = netns.unwrap_or_default();
        Ok(Call::Task(task(Attachment { container, ifname, netns, netns_override }), path))
    }

    fn path(&mut self) -> PluginPath {
        self.required("CNI_PATH").map(|value| PluginPath::new(&value)).unwrap_or_default()
    }

    fn required(&mut self, key: &'static str) -> Option<OsString> {
        let value = (self.lookup)(key);
        if value.is_none() {
            self.missing.push(key);
        }
        value
    }

    fn validated<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&OsStr) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.required(key) else { return Ok(None) };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(Error::BadVariable { key, value: value.to_string_lossy().into_owned() }),
        }
    }
}

fn is_yes(value: &OsStr) -> bool {
    value == "1" || value.eq_ignore_ascii_case("true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const FULL: &[(&str, &str)] = &[
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "pod-1"),
        ("CNI_NETNS", "/run/netns/pod"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];

    fn with(changes: &[(&str, &str)]) -> Result<Option<Call>, Error> {
        let mut map: HashMap<String, OsString> =
            FULL.iter().map(|(key, value)| ((*key).to_owned(), value.into())).collect();
        for (key, value) in changes {
            map.insert((*key).to_owned(), value.into());
        }
        read(|key| map.get(key).cloned())
    }

    #[test]
    fn an_unset_or_empty_command_is_no_call() {
        assert!(read(|_| None).unwrap().is_none());
        assert!(with(&[("CNI_COMMAND", ""), ("CNI_CONTAINERID", "%")]).unwrap().is_none());
    }

    #[test]
    fn missing_variables_are_named_together_in_table_order() {
        let missing = |command: &str| {
            let error = read(|key| (key == "CNI_COMMAND").then(|| command.into())).unwrap_err();
            assert_eq!(error.code(), 4);
            error.to_string()
        };
        let whole = "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]";
        assert!(missing("ADD").contains(whole));
        assert!(missing("CHECK").contains(whole));
        assert!(missing("DEL").contains("[CNI_CONTAINERID,CNI_IFNAME,CNI_PATH]"));
        assert!(missing("STATUS").contains("[CNI_PATH]"));
        assert!(missing("GC").contains("[CNI_PATH]"));
    }

    #[test]
    fn empty_counts_as_missing() {
        let error = with(&[("CNI_NETNS", ""), ("CNI_IFNAME", "")]).unwrap_err();
        assert!(error.to_string().contains("[CNI_NETNS,CNI_IFNAME]"), "{error}");
    }

    #[test]
    fn a_malformed_value_wins_over_a_missing_one() {
        let error = with(&[("CNI_CONTAINERID", "a b"), ("CNI_PATH", "")]).unwrap_err();
        assert!(matches!(error, Error::BadVariable { key: "CNI_CONTAINERID", .. }), "{error}");
        let error = with(&[("CNI_IFNAME", "a/b"), ("CNI_NETNS", "")]).unwrap_err();
        assert!(matches!(error, Error::BadVariable { key: "CNI_IFNAME", .. }), "{error}");
    }

    #[test]
    fn container_ids() {
        let ok = |text: &str| ContainerId::new(OsStr::new(text)).is_some();
        for good in ["a", "0", "A-b_c.d", &"x".repeat(300)] {
            assert!(ok(good), "{good}");
        }
        for bad in ["", ".a", "-a", "_a", "a b", "a/b", "a:b", "a\n", "é", "aé"] {
            assert!(!ok(bad), "{bad:?}");
        }
        assert!(ContainerId::new(OsStr::from_bytes(b"a\xff")).is_none());
    }

    #[test]
    fn interface_names() {
        let ok = |text: &[u8]| IfName::new(OsStr::from_bytes(text)).is_some();
        for good in ["eth0", "a", "123456789012345", "...", "é", "a@b"] {
            assert!(ok(good.as_bytes()), "{good}");
        }
        assert!(ok(b"e\xff"), "Linux does not ask for UTF-8");
        for bad in ["", ".", "..", "1234567890123456", "éééééééé", "a/b", "a:b", "a b", "a\n", "a\u{a0}"]
        {
            assert!(!ok(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn unknown_commands_and_version_need_nothing() {
        let only = |command: &str| read(|key| (key == "CNI_COMMAND").then(|| command.into()));
        assert!(matches!(only("add").unwrap().unwrap(), Call::Unknown(_)));
        assert!(matches!(only("VERSION").unwrap().unwrap(), Call::Version));
    }

    #[test]
    fn the_netns_override_takes_1_and_true_in_any_case() {
        let value = |text| match with(&[("CNI_NETNS_OVERRIDE", text)]).unwrap().unwrap() {
            Call::Task(Task::Add(attachment), _) => attachment.netns_override,
            other => panic!("{other:?}"),
        };
        for yes in ["1", "true", "TRUE", "True"] {
            assert!(value(yes), "{yes}");
        }
        for no in ["", "0", "yes", "false", " true"] {
            assert!(!value(no), "{no}");
        }
    }

    #[test]
    fn the_plugin_path_drops_empty_elements() {
        let path = PluginPath::new(OsStr::new(":/a::/b:"));
        assert_eq!(path.directories(), [PathBuf::from("/a"), PathBuf::from("/b")]);
    }
}
