//! `flanneld check`: looks at this host as an experienced operator would, and says what is wrong and what to do about it.
//!
//! `gather` looks, `rules` judges, `text` writes; here they are put together. Nothing is changed.

mod echo;
mod facts;
mod gather;
mod host;
mod rules;
mod text;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use super::arguments::{Arguments, Switch, Usage};
use super::{Command, arguments, print, running};
use crate::facts as facts_of_host;
use crate::kernel::{LinuxKernel, ReceiveBuffers};
use crate::options::{self, Invocation, Options, Origin};
use crate::status_socket;

pub(super) const COMMAND: Command = Command {
    name: "check",
    summary: "look for what is wrong on this host and between it and its peers, with the cure",
    run,
};

const USAGE: Usage = Usage {
    command: COMMAND.name,
    text: "Looks at this host and its peers; changes nothing. Without options it takes those of the daemon that runs here.\n\
           Ends with 0 when nothing is wrong, 1 when something is.",
    switches: &[Switch { name: JSON, help: "print JSON" }],
};

const JSON: &str = "json";

fn run(words: Vec<OsString>) -> ExitCode {
    let arguments = match arguments(&USAGE, words) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match check(&arguments) {
        Ok(report) => {
            let text = if arguments.has(JSON) { text::json(&report) } else { text::render(&report) };
            print(&text, if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => {
            eprintln!("flanneld check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(arguments: &Arguments) -> anyhow::Result<text::Report> {
    let options = options(arguments);
    let asked = status_socket::ask(&status_socket::path_beside(&options.subnet_file));
    let kernel = LinuxKernel::open(ReceiveBuffers::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let facts = runtime.block_on(gather::gather(&options, asked, kernel))?;
    Ok(text::Report {
        findings: rules::findings(&facts),
        peers: facts.echoes.len(),
        unchecked: facts.unchecked,
    })
}

/// The options that were given, or else those of the only daemon that runs here: nobody types the unit's flags at night.
fn options(arguments: &Arguments) -> Options {
    let configured = &arguments.configured;
    let given = configured.effective.iter().any(|option| option.origin != Origin::Default);
    let daemons = running::daemons();
    match daemons.as_slice() {
        [process] if !given => of_process(*process).unwrap_or_else(|| configured.options.clone()),
        _ => configured.options.clone(),
    }
}

/// The options as a process was started with them.
fn of_process(process: u32) -> Option<Options> {
    let words = |name: &str| {
        let bytes = fs::read(format!("/proc/{process}/{name}")).ok()?;
        let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Some(words.map(|word| OsStr::from_bytes(word).to_owned()).collect::<Vec<_>>())
    };
    let variable = |word: &OsString| {
        let bytes = word.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (bytes.get(..at)?, bytes.get(at + 1..)?);
        Some((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned()))
    };
    let environment: Vec<_> = words("environ")?.iter().filter_map(variable).collect();
    match options::read(words("cmdline")?, environment, &facts_of_host::outside()).ok()? {
        Invocation::Run(configured) => Some(configured.options),
        Invocation::Help(_) | Invocation::Version(_) => None,
    }
}
