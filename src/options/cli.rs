//! The command line as clap sees it: built from the table of flags, it splits words, finds repeats and renders the help.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::error::OptionsError;
use super::flags::{self, Flag, Kind, Support};

const TEMPLATE: &str = "Usage: {usage}\n\n{options}{after-help}\n";
const AFTER_HELP: &str = "Write an option as -name=VALUE or -name VALUE, with one dash or two; a bool only as -name or -name=BOOL.\n\
     Each can also be set in the environment, as FLANNELD_ and its name in upper case with _ for -\n\
     (FLANNELD_ETCD_ENDPOINTS); the command line wins.";

/// Reads words of the forms `--name` and `--name=VALUE`.
pub(super) fn matches(options: Vec<String>) -> Result<ArgMatches, OptionsError> {
    command("flanneld").no_binary_name(true).try_get_matches_from(options).map_err(|error| translate(&error))
}

/// The text of `-help`.
pub(super) fn help(program: &str) -> String {
    command(program).render_help().to_string()
}

fn command(program: &str) -> Command {
    Command::new("flanneld")
        .override_usage(format!("{program} [OPTION]..."))
        .help_template(TEMPLATE)
        .after_help(AFTER_HELP)
        .next_line_help(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .args(flags::ALL.iter().map(argument))
}

/// Values stay text: typing them is the same for every origin, and happens later.
fn argument(flag: &'static Flag) -> Arg {
    let arg = Arg::new(flag.name).long(flag.name).help(help_of(flag)).allow_hyphen_values(true);
    match flag.kind {
        Kind::Bool { .. } => {
            arg.value_name("bool").num_args(0..=1).require_equals(true).default_missing_value("true")
        }
        Kind::Int { unit, .. } => arg.value_name(unit).action(ArgAction::Set),
        Kind::List => arg.value_name("string, repeatable").action(ArgAction::Append),
        Kind::Urls { .. } => arg.value_name("URLs").action(ArgAction::Set),
        Kind::Text { .. } | Kind::Secret => arg.value_name("string").action(ArgAction::Set),
    }
}

/// The help text with the default, unless that is empty, zero or false as in Go.
fn help_of(flag: &Flag) -> String {
    let state = match flag.support {
        Support::Built => "",
        Support::NoEffect => " (accepted, without effect)",
        Support::NotBuilt { .. } => " (not built yet)",
    };
    let default = match flag.kind {
        Kind::Text { default: "" }
        | Kind::Urls { default: "" }
        | Kind::Secret
        | Kind::List
        | Kind::Bool { default: false }
        | Kind::Int { default: 0, .. } => String::new(),
        Kind::Text { default } | Kind::Urls { default } => format!(" (default {default:?})"),
        Kind::Bool { default } => format!(" (default {default})"),
        Kind::Int { default, .. } => format!(" (default {default})"),
    };
    format!("{}{state}{default}", flag.help)
}

fn translate(error: &clap::Error) -> OptionsError {
    let name = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(shown)) => bare_name(shown),
        _ => String::new(),
    };
    match error.kind() {
        ErrorKind::UnknownArgument => OptionsError::Unknown { suggestion: flags::closest(&name), name },
        _ => OptionsError::NoValue(name),
    }
}

/// The name out of clap's way of writing an option: `--iface <string>`, `--ip-masq[=<bool>]`.
fn bare_name(shown: &str) -> String {
    let body = shown.strip_prefix("--").unwrap_or(shown);
    body.split([' ', '=', '[']).next().unwrap_or(body).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_makes_a_valid_command() {
        command("flanneld").debug_assert();
    }
}
