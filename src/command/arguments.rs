//! The command line of a command: its own switches, and beside them every option of the daemon, read as the daemon reads it.

use std::collections::BTreeSet;
use std::ffi::OsString;

use crate::facts;
use crate::options::{self, Configured, Invocation, OptionsError, flags};

/// A word that only this command knows: `--json`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Switch {
    /// Without dashes.
    pub(super) name: &'static str,
    /// What it does, for the help.
    pub(super) help: &'static str,
}

/// What is known of a command before it is asked to do anything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// The command's word.
    pub(super) command: &'static str,
    /// What it does and what its exit codes mean.
    pub(super) text: &'static str,
    /// Its own switches.
    pub(super) switches: &'static [Switch],
}

/// What somebody typed.
#[derive(Debug)]
pub(super) struct Arguments {
    given: BTreeSet<&'static str>,
    /// The daemon's options.
    pub(super) configured: Configured,
}

impl Arguments {
    /// Whether a switch was given.
    pub(super) fn has(&self, switch: &str) -> bool {
        self.given.contains(switch)
    }
}

/// What came of reading.
#[derive(Debug)]
pub(super) enum Read {
    /// Go on.
    Arguments(Box<Arguments>),
    /// Print this and end well.
    Help(String),
}

/// Reads the words behind the command's name.
///
/// # Errors
/// When the daemon would not understand its options either.
pub(super) fn read(
    usage: &Usage,
    words: Vec<OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Read, OptionsError> {
    let (given, rest) = split(usage, words);
    let argv = std::iter::once(format!("flanneld {}", usage.command).into()).chain(rest);
    Ok(match options::read(argv, environment, &facts::outside())? {
        Invocation::Run(configured) => {
            Read::Arguments(Box::new(Arguments { given, configured: *configured }))
        }
        Invocation::Help(options) => Read::Help(help(usage, &options)),
        Invocation::Version(version) => Read::Help(version),
    })
}

/// Takes out the switches. A word that is the value of the option before it is none.
fn split(usage: &Usage, words: Vec<OsString>) -> (BTreeSet<&'static str>, Vec<OsString>) {
    let (mut given, mut rest) = (BTreeSet::new(), Vec::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let name = word.to_str().and_then(|word| word.strip_prefix('-'));
        let name = name.map(|name| name.strip_prefix('-').unwrap_or(name)).unwrap_or_default();
        if let Some(switch) = usage.switches.iter().find(|switch| switch.name == name) {
            given.insert(switch.name);
            continue;
        }
        let takes_next = flags::find(name).is_some_and(|flag| !flag.is_bool());
        rest.push(word);
        rest.extend(takes_next.then(|| words.next()).flatten());
    }
    (given, rest)
}

fn help(usage: &Usage, options: &str) -> String {
    let switches: String =
        usage.switches.iter().map(|switch| format!("  --{:<12} {}\n", switch.name, switch.help)).collect();
    // The usage line of the daemon's help names no switches.
    let options = options.split_once("\n\n").map_or(options, |(_, rest)| rest);
    format!(
        "Usage: flanneld {} [SWITCH]... [OPTION]...\n\n{}\n\n{switches}\nBeside these, the options of the daemon:\n\n{options}",
        usage.command, usage.text
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage {
        command: "look",
        text: "Looks.",
        switches: &[Switch { name: "json", help: "as JSON" }, Switch { name: "force", help: "anyway" }],
    };

    fn of(words: &[&str]) -> Arguments {
        let words = words.iter().map(Into::into).collect();
        match read(&USAGE, words, []).unwrap() {
            Read::Arguments(arguments) => *arguments,
            Read::Help(text) => panic!("{text}"),
        }
    }

    #[test]
    fn switches_and_options_may_be_mixed() {
        for words in [
            &["--json", "-subnet-file=/x/y"][..],
            &["-subnet-file=/x/y", "-json"],
            &["--subnet-file", "/x/y", "--json"],
        ] {
            let arguments = of(words);
            assert!(arguments.has("json") && !arguments.has("force"), "{words:?}");
            assert_eq!(arguments.configured.options.subnet_file.to_str(), Some("/x/y"), "{words:?}");
        }
    }

    #[test]
    fn the_value_of_an_option_is_no_switch() {
        let arguments = of(&["-etcd-prefix", "--json", "--force"]);
        assert!(!arguments.has("json") && arguments.has("force"));
    }

    #[test]
    fn an_unknown_word_is_refused_as_the_daemon_refuses_it() {
        let error = read(&USAGE, vec!["--jsn".into()], []).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn the_help_shows_switches_and_options() {
        let Read::Help(text) = read(&USAGE, vec!["-help".into()], []).unwrap() else { panic!("no help") };
        assert!(
            text.starts_with("Usage: flanneld look [SWITCH]... [OPTION]...\n\nLooks.\n\n  --json"),
            "{text}"
        );
        assert!(text.contains("subnet-file"), "{text}");
    }
}
