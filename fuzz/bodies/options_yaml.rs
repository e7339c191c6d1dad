//! A configuration file, with variables and words beside it. Whatever it says: the same answer each time, no password in it, what
//! is accepted can be given on the command line with the same meaning, and what the role would install can be made.
//!
//! Lines `#env NAME=VALUE` and `#arg WORD` of the file (comments for YAML) become environment and command line.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use crate::options::file::facts::Facts;
use crate::options::flags::{self, Kind};
use crate::options::{Configured, Invocation, OptionsError, Origin, Outside, What, read, render};

/// A password that no text may show.
const PASSWORD: &str = "correct-horse-battery";

/// The target.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if text.contains(PASSWORD) {
        return;
    }
    let outcome = configure(text);
    assert_eq!(configure(text), outcome, "no chance takes part");
    match &outcome {
        Ok(Invocation::Run(configured)) => accepted(configured, text),
        Ok(Invocation::Help(_) | Invocation::Version(_)) => {}
        Err(error) => shown(&error.to_string(), text),
    }
    for (_, what) in What::ALL {
        let rendered = with(text, |outside| render(what, words(text), environment(text), outside));
        shown(&rendered.unwrap_or_else(|error| error.to_string()), text);
    }
}

fn accepted(configured: &Configured, text: &str) {
    shown(&configured.given(), text);
    shown(&format!("{configured:?}"), text);
    configured.warnings.iter().for_each(|warning| shown(&warning.to_string(), text));
    let again = configured.reload(configured).unwrap();
    assert!(again.applied.is_empty() && again.restart.is_empty());
    assert_eq!(again.configured.options, configured.options);
    on_the_command_line(configured);
}

/// Every option whose text is the value; what was seeded from the file needs the file.
fn on_the_command_line(configured: &Configured) {
    if configured.options.seed.is_some() {
        return;
    }
    let mut argv: Vec<OsString> = vec!["flanneld".into()];
    let file = flags::CONFIG_FILE.name;
    for option in configured.effective.iter().filter(|option| option.name != file) {
        let kind = flags::find(option.name).unwrap().kind;
        let password = kind == Kind::Secret && option.origin == Origin::Environment;
        let value = if password { PASSWORD } else { &option.value };
        let hidden = value.contains("***") || value.contains(", half of ");
        match option.origin {
            Origin::Default => {}
            _ if kind == Kind::List || hidden => return,
            _ => argv.push(format!("-{}={value}", option.name).into()),
        }
    }
    match with("", |outside| read(argv, [], outside)) {
        Ok(Invocation::Run(other)) => assert_eq!(other.options, configured.options),
        other => panic!("{other:?}"),
    }
}

/// Nothing an operator reads shows a password or grows out of proportion.
fn shown(message: &str, text: &str) {
    assert!(!message.contains(PASSWORD));
    assert!(message.len() <= 20 * (1 << 20) + 20 * text.len(), "{} bytes", message.len());
}

fn configure(text: &str) -> Result<Invocation, OptionsError> {
    let argv = std::iter::once("flanneld".into()).chain(words(text));
    with(text, |outside| read(argv, environment(text), outside))
}

fn with<T>(text: &str, ask: impl FnOnce(&Outside<'_>) -> T) -> T {
    let read = |_: &Path| Ok(text.to_owned());
    ask(&Outside { read: &read, facts: Arc::new(Facts::of_a_worker) })
}

fn words(text: &str) -> Vec<OsString> {
    std::iter::once("-config-file=/etc/flanneld.yml")
        .chain(lines(text, "#arg "))
        .map(OsString::from)
        .collect()
}

fn environment(text: &str) -> Vec<(OsString, OsString)> {
    let given = lines(text, "#env ").filter_map(|line| line.split_once('='));
    let secret = [("FLANNELD_ETCD_PASSWORD", PASSWORD), ("FLANNELD_ETCD_USERNAME", "flanneld")];
    // A variable stands in an environment once.
    let given = given.filter(|(name, _)| secret.iter().all(|(other, _)| other != name));
    secret.into_iter().chain(given).map(|(name, value)| (name.into(), value.into())).collect()
}

fn lines<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.strip_prefix(mark))
}
