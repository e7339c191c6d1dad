//! `flanneld render WHAT`: prints what the Ansible role would install from a configuration file, and every option as it is in
//! effect with its origin. Changes nothing.

use std::ffi::OsString;
use std::process::ExitCode;

use super::{Command, print};
use crate::facts;
use crate::options::{self, What};

/// The row of the table of commands.
pub(super) const COMMAND: Command = Command {
    name: "render",
    summary: "print what the role would install: unit, conflist or network-config; or all options",
    run,
};

fn run(mut words: Vec<OsString>) -> ExitCode {
    let what = match take_what(&mut words) {
        Some(what) => what,
        None if words.iter().any(|word| matches!(word.to_str(), Some("-h" | "-help" | "--help"))) => {
            What::Options
        }
        None => {
            let known = What::ALL.map(|(word, _)| word).join(", ");
            eprintln!("flanneld render: say what to print, as the first or last word: {known}");
            return ExitCode::from(2);
        }
    };
    match options::render(what, words, std::env::vars_os(), &facts::outside()) {
        Ok(text) => print(&text, ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("flanneld render: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Takes out the word that says what to print. In front it cannot be the value of an option.
fn take_what(words: &mut Vec<OsString>) -> Option<What> {
    let named = |word: Option<&OsString>| {
        let word = word?.to_str()?;
        What::ALL.iter().find(|(name, _)| *name == word).map(|(_, what)| *what)
    };
    if let Some(what) = named(words.first()) {
        words.remove(0);
        return Some(what);
    }
    let what = named(words.last())?;
    words.pop();
    Some(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_print_is_the_first_or_the_last_word() {
        for (line, what, rest) in [
            ("unit -config-file=F", Some(What::Unit), "-config-file=F"),
            ("--config-file F conflist", Some(What::Conflist), "--config-file F"),
            ("network-config", Some(What::NetworkConfig), ""),
            ("options options", Some(What::Options), "options"),
            ("-config-file=F", None, "-config-file=F"),
            ("", None, ""),
        ] {
            let mut words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            assert_eq!(take_what(&mut words), what, "{line}");
            assert_eq!(words.join(" ".as_ref()).to_str(), Some(rest), "{line}");
        }
    }
}
