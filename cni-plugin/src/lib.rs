//! The flannel CNI plugin as a library: from `CNI_*` variables and the bytes of stdin to one
//! answer. A short-lived process that turns what flanneld wrote into a configuration for another
//! plugin and relays that plugin's answer. It touches no link, address or rule itself, but for the
//! one repair an operator may allow and for what a killed host-local left.
//!
//! ```text
//! CNI_* ─► env ─┐
//!               ├─► run ─► commands ─► delegate_config ◄─ subnet_env
//! stdin ─► netconf ┘          │  ▲          │
//!                             ▼  └ state    ▼
//!                           answer ◄─── delegate
//! ```
//!
//! `env`, `netconf`, `version`, `delegate_config`, `result`, `cidr` and `check_config` decide from
//! values; `subnet_env`, `state`, `stale_bridge` and `host_local` hold a pure part and a thin one;
//! `delegate`, `lock`, `netlink`, `netns` and `log` touch the world. [`delegate_config::from_bytes`]
//! is the whole decision as one total function, for fuzzing.

pub mod about;
pub mod check_config;
pub mod cidr;
pub mod commands;
pub mod delegate;
pub mod delegate_config;
pub mod env;
pub mod error;
pub mod host_local;
pub mod lock;
pub mod log;
pub mod netconf;
pub mod netlink;
pub mod netns;
pub mod panic_report;
pub mod result;
pub mod stale_bridge;
pub mod state;
pub mod subnet_env;
pub mod version;

use env::{Call, PluginPath, Task};
use error::Error;
use netconf::Document;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use version::CniVersion;

/// What the process leaves behind: one document or none on stdout, and whether it succeeded.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// At most one JSON document.
    pub stdout: String,
    /// Exit code 0 or 1.
    pub success: bool,
}

/// Serves one invocation by a container runtime; `None` when there is none, because
/// `CNI_COMMAND` is empty.
///
/// `lookup` reads the environment, which the delegate then inherits from the process.
pub fn run<R>(lookup: impl Fn(&str) -> Option<OsString>, stdin: R) -> Option<Answer>
where
    R: Read + AsFd,
{
    let call = match env::read(lookup) {
        Ok(call) => call?,
        Err(error) => return Some(refusal(&error, CniVersion::NEWEST)),
    };
    Some(answer(call, stdin))
}

fn answer<R: Read + AsFd>(call: Call, stdin: R) -> Answer {
    // Until the config names its version, an error object carries the newest.
    let mut version = CniVersion::NEWEST;
    let served = match call {
        Call::Version => Ok(format!("{}\n", version::answer(&probe(stdin)))),
        Call::Unknown(word) => Err(unknown(&word, stdin)),
        Call::Task(task, path) => serve(&task, &path, stdin, &mut version),
    };
    match served {
        Ok(stdout) => Answer { stdout, success: true },
        Err(error) => refusal(&error, version),
    }
}

/// A command with a configuration, in the contract's order of checks.
fn serve(
    task: &Task,
    path: &PluginPath,
    stdin: impl Read,
    version: &mut CniVersion,
) -> Result<String, Error> {
    let document = document(stdin)?;
    *version = version::negotiate(task.verb(), document.stated_version()?)?;
    commands::run(task, path, &document.into_netconf(*version)?)
}

/// A word that is no command is only reported for a proper document.
fn unknown(word: &OsStr, stdin: impl Read) -> Error {
    let word = || Error::UnknownCommand(word.to_string_lossy().into_owned());
    document(stdin).map_or_else(|error| error, |_| word())
}

fn document(mut stdin: impl Read) -> Result<Document, Error> {
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes).map_err(Error::Stdin)?;
    Document::parse(&bytes)
}

fn refusal(error: &Error, version: CniVersion) -> Answer {
    Answer { stdout: error.to_json(version).to_string(), success: false }
}

/// What a VERSION probe sent, if it sent it soon: a client may leave stdin open for ever.
fn probe(mut stdin: impl Read + AsFd) -> Vec<u8> {
    const PATIENCE: Duration = Duration::from_secs(1);
    const LONGEST: usize = 64 * 1024;
    let start = Instant::now();
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    while bytes.len() < LONGEST && version::asked_in(&bytes).is_none() {
        let left = PATIENCE.saturating_sub(start.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let ready = poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], timeout);
        match ready.map(|count| if count > 0 { stdin.read(&mut buffer) } else { Ok(0) }) {
            Ok(Ok(length @ 1..)) => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            _ => break,
        }
    }
    bytes
}
