//! A pass over argv that turns Go's flag syntax into the one clap reads.
//!
//! Go: `-name` equals `--name`; a bool takes a value only behind `=`; every other flag takes the next word whatever it looks
//! like; flags end at a word without a dash, at a lone `-` or after `--`. Out come words of the forms `--name` and
//! `--name=VALUE` only. Nothing is typed here, and names are not judged.

use super::error::OptionsError;
use super::flags::{self, Flag, Kind};
use super::number;
use super::secret::REDACTED;

/// What the pass made of argv.
#[derive(Default)]
pub(super) struct Words {
    /// `--name` or `--name=VALUE`, in order.
    pub(super) options: Vec<String>,
    /// `-h` or `-help` was among them.
    pub(super) help: bool,
    /// `-version` was among them and not switched off.
    pub(super) version: bool,
    /// The first word that belongs to no option; what follows it was not looked at.
    pub(super) stray: Option<OptionsError>,
}

/// Reads argv without its first word.
pub(super) fn read(argv: impl IntoIterator<Item = String>) -> Words {
    let mut words = Words::default();
    let mut argv = argv.into_iter();
    let mut last = None;
    while let Some(word) = argv.next() {
        let Some(body) = option_body(&word) else {
            words.stray = ended_by(word, argv.next(), last);
            break;
        };
        let (name, value) = split(body);
        words.note(name, value);
        last = flags::find(name);
        let takes_next = value.is_none() && last.is_some_and(|flag| !flag.is_bool());
        let next = if takes_next { argv.next() } else { None };
        words.options.push(match next {
            Some(value) => format!("--{name}={value}"),
            None => format!("--{body}"),
        });
    }
    words
}

impl Words {
    fn note(&mut self, name: &str, value: Option<&str>) {
        match name {
            "h" | "help" => self.help = true,
            "version" => self.version |= value.is_none_or(|text| number::boolean(text) != Some(false)),
            _ => {}
        }
    }
}

/// What stands behind the dashes; `None` for a word that ends the options.
fn option_body(word: &str) -> Option<&str> {
    let body = word.strip_prefix('-')?;
    let body = body.strip_prefix('-').unwrap_or(body);
    (!body.is_empty()).then_some(body)
}

fn split(body: &str) -> (&str, Option<&str>) {
    match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    }
}

/// The error for the word at which options end. A `--` with nothing behind it is none.
fn ended_by(word: String, next: Option<String>, after: Option<&'static Flag>) -> Option<OptionsError> {
    let word = if word == "--" { next? } else { word };
    let secret = after.is_some_and(|flag| flag.kind == Kind::Secret);
    Some(OptionsError::Stray { word: if secret { REDACTED.to_owned() } else { word }, after })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(argv: &[&str]) -> Words {
        read(argv.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn dashes_and_values_take_one_form() {
        for (argv, options) in [
            (&["-v=4"][..], &["--v=4"][..]),
            (&["--v=4"], &["--v=4"]),
            (&["-v", "4"], &["--v=4"]),
            (&["--v", "4"], &["--v=4"]),
            (&["-ip-masq"], &["--ip-masq"]),
            (&["--ip-masq=T"], &["--ip-masq=T"]),
            (&["-ip-masq", "-v", "1"], &["--ip-masq", "--v=1"]),
            (&["-etcd-prefix", "-iface"], &["--etcd-prefix=-iface"]),
            (&["-iface", "--"], &["--iface=--"]),
            (&["-iface="], &["--iface="]),
            (&["-iface", ""], &["--iface="]),
            (&["-etcd-prefix=a=b"], &["--etcd-prefix=a=b"]),
            (&["-iface"], &["--iface"]),
            (&["-nonsense", "-v", "1"], &["--nonsense", "--v=1"]),
            (&["-v=1", "--"], &["--v=1"]),
            (&[], &[]),
        ] {
            let words = of(argv);
            assert_eq!(words.options, options, "{argv:?}");
            assert!(words.stray.is_none(), "{argv:?}");
        }
    }

    #[test]
    fn a_word_without_dash_ends_the_options_and_is_stray() {
        for (argv, message) in [
            (
                &["-ip-masq", "true", "-iface", "x"][..],
                "unexpected word \"true\" after -ip-masq: write -ip-masq=true",
            ),
            (&["-ip-masq", "wg0"], "unexpected word \"wg0\" after -ip-masq: options begin with a dash"),
            (&["run"], "unexpected word \"run\": flanneld takes only options, which begin with a dash"),
            (&["-v=1", "-"], "unexpected word \"-\" after -v: options begin with a dash"),
            (
                &["--", "-v=1"],
                "unexpected word \"-v=1\": flanneld takes only options, which begin with a dash",
            ),
            (&["-v=1", "--", "x"], "unexpected word \"x\" after -v: options begin with a dash"),
            (&[""], "unexpected word \"\": flanneld takes only options, which begin with a dash"),
            (
                &["-etcd-password=", "hunter2"],
                "unexpected word after -etcd-password: write -etcd-password=VALUE",
            ),
        ] {
            assert_eq!(of(argv).stray.unwrap().to_string(), message, "{argv:?}");
        }
    }

    #[test]
    fn help_and_version_are_seen_anywhere_among_the_options() {
        for argv in [&["-h"][..], &["--h"], &["-help"], &["--help"], &["-v=1", "-help"], &["-h=x"]] {
            assert!(of(argv).help, "{argv:?}");
        }
        for argv in [&["-version"][..], &["--version"], &["-version=true"], &["-nonsense", "-version"]] {
            assert!(of(argv).version, "{argv:?}");
        }
        for argv in [&["-version=false"][..], &["-etcd-prefix", "-version"], &["x", "-version"]] {
            assert!(!of(argv).version, "{argv:?}");
        }
    }
}
