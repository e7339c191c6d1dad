//! Finds the delegate's executable, runs it, and sorts what can come of it.
//! Knows nothing about what the configuration means.

use crate::delegate_config::DelegateConfig;
use crate::env::{PluginPath, Verb};
use crate::error::code;
use crate::log;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

/// Why a delegate did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum DelegateError {
    /// The configuration names none.
    #[error("the delegate's configuration has no plugin name in its key type")]
    NoName,
    /// The name would lead out of the plugin directories.
    #[error("delegate {0:?}: a plugin name must not contain '/'")]
    BadName(String),
    /// No such file in any directory of `CNI_PATH`.
    #[error("delegate {name:?} not found in CNI_PATH {directories:?}")]
    NotFound {
        /// The plugin looked for.
        name: String,
        /// Where.
        directories: Vec<PathBuf>,
    },
    /// The system could not start it.
    #[error("cannot run the delegate {path:?}")]
    Start {
        /// The executable.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It answered with an error object; code, message and details are its own.
    #[error("{msg}")]
    Reported {
        /// The delegate's code.
        code: u64,
        /// The delegate's message.
        msg: String,
        /// The delegate's details.
        details: Option<String>,
    },
    /// It failed without an error object.
    #[error("the delegate {path:?} failed ({status}): {output}")]
    Failed {
        /// The executable.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
}

impl DelegateError {
    /// The specification's code.
    pub fn code(&self) -> u64 {
        match self {
            Self::Reported { code, .. } => *code,
            _ => code::INTERNAL,
        }
    }
}

/// A delegate's executable.
#[derive(Debug)]
pub struct Delegate(PathBuf);

/// Variables that differ from the plugin's own environment; everything else is inherited.
pub type Overrides<'a> = &'a [(&'a str, &'a OsStr)];

impl Delegate {
    /// Looks for the plugin a configuration names: the first regular file of that name, executable
    /// or not.
    ///
    /// # Errors
    /// No name, an improper one, or no such file.
    pub fn find(config: &DelegateConfig, path: &PluginPath) -> Result<Self, DelegateError> {
        let name = config.text("type");
        if name.is_empty() {
            return Err(DelegateError::NoName);
        }
        if name.contains('/') {
            return Err(DelegateError::BadName(name.to_owned()));
        }
        let mut candidates = path.directories().iter().map(|directory| directory.join(name));
        candidates.find(|candidate| candidate.is_file()).map(Self).ok_or_else(|| DelegateError::NotFound {
            name: name.to_owned(),
            directories: path.directories().to_vec(),
        })
    }

    /// Runs the delegate to its end and returns what it printed.
    ///
    /// # Errors
    /// It could not be started or ended in anything but success.
    pub fn run(
        &self,
        verb: Verb,
        config: &DelegateConfig,
        overrides: Overrides<'_>,
    ) -> Result<Vec<u8>, DelegateError> {
        let mut command = Command::new(&self.0);
        command.env("CNI_COMMAND", verb.as_str()).envs(overrides.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |source| DelegateError::Start { path: self.0.clone(), source };
        let child = start(&mut command).map_err(failed)?;
        let ended = converse(child, &config.to_bytes()).map_err(failed)?;
        if ended.status.success() { Ok(ended.stdout) } else { Err(self.failure(&ended)) }
    }

    fn failure(&self, ended: &Ended) -> DelegateError {
        reported(&ended.stdout).unwrap_or_else(|| DelegateError::Failed {
            path: self.0.clone(),
            status: ended.status,
            output: quote(ended),
        })
    }
}

/// What is left of a delegate that ran.
struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    /// The end of what it wrote to stderr.
    stderr: Vec<u8>,
}

/// Starts the process; a file that is being replaced right now gets five more chances.
fn start(command: &mut Command) -> io::Result<Child> {
    const CHANCES: u32 = 5;
    const PAUSE: Duration = Duration::from_secs(1);
    for _ in 0..CHANCES {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                log::note("the delegate's file is being written, trying again");
                thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
    command.spawn()
}

/// Feeds stdin and drains stdout and stderr at the same time, so that no full pipe blocks. Threads would do it as well, and
/// cost more than everything else the plugin does.
fn converse(mut child: Child, mut input: &[u8]) -> io::Result<Ended> {
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut collected, mut kept) = (Vec::new(), Vec::new());
    loop {
        // Closed, the delegate sees the end of its input.
        stdin = stdin.filter(|_| !input.is_empty());
        let pipes = [
            stdin.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLOUT)),
            stdout.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLIN)),
            stderr.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLIN)),
        ];
        if pipes.iter().all(Option::is_none) {
            return Ok(Ended { status: child.wait()?, stdout: collected, stderr: kept });
        }
        let [feed, listen, forward] = ready(pipes)?;
        if feed {
            input = stdin.as_mut().map_or(&[], |pipe| fed(pipe, input));
        }
        if listen && stdout.as_mut().is_none_or(|pipe| read_piece(pipe, &mut collected).is_none()) {
            stdout = None;
        }
        if forward && stderr.as_mut().is_none_or(|pipe| forwarded(pipe, &mut kept).is_none()) {
            stderr = None;
        }
    }
}

/// Waits until some of the pipes can be used, and tells which.
fn ready<const N: usize>(pipes: [Option<(BorrowedFd<'_>, PollFlags)>; N]) -> io::Result<[bool; N]> {
    let mut polled: Vec<PollFd<'_>> =
        pipes.iter().flatten().map(|(pipe, events)| PollFd::new(*pipe, *events)).collect();
    while let Err(errno) = poll(&mut polled, PollTimeout::NONE) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    let mut polled = polled.iter().map(|pipe| pipe.any().unwrap_or(true));
    Ok(pipes.map(|pipe| pipe.is_some() && polled.next().unwrap_or(true)))
}

/// What is left of the input. A pipe that is ready takes this much without blocking (`pipe(7)`).
/// A delegate that ends without reading is no error, so a broken pipe is none.
fn fed<'a>(stdin: &mut ChildStdin, input: &'a [u8]) -> &'a [u8] {
    let piece = input.get(..libc::PIPE_BUF).unwrap_or(input);
    stdin.write(piece).ok().and_then(|length| input.get(length..)).unwrap_or_default()
}

/// Appends what has arrived and tells how much that was; `None` at the end.
fn read_piece(pipe: &mut impl Read, to: &mut Vec<u8>) -> Option<usize> {
    let mut buffer = [0; 4096];
    let length = pipe.read(&mut buffer).ok().filter(|length| *length > 0)?;
    to.extend_from_slice(buffer.get(..length)?);
    Some(length)
}

/// Passes stderr on as it comes and keeps its end for the error message; `None` at the end.
fn forwarded(stderr: &mut ChildStderr, kept: &mut Vec<u8>) -> Option<()> {
    const KEPT: usize = 4096;
    let length = read_piece(stderr, kept)?;
    let _ = io::stderr().write_all(kept.get(kept.len() - length..).unwrap_or_default());
    kept.drain(..kept.len().saturating_sub(KEPT));
    Some(())
}

/// The error object on stdout, if there is one: an object with a numeric `code`.
fn reported(stdout: &[u8]) -> Option<DelegateError> {
    let object: Value = serde_json::from_slice(stdout).ok()?;
    let text = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_str().map(|text| Some(text.to_owned())),
    };
    Some(DelegateError::Reported {
        code: object.get("code")?.as_u64()?,
        msg: text("msg")?.unwrap_or_default(),
        details: text("details")?.filter(|details| !details.is_empty()),
    })
}

fn quote(ended: &Ended) -> String {
    const LONGEST: usize = 1000;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().chars().take(LONGEST).collect::<String>();
    match (said(&ended.stdout), said(&ended.stderr)) {
        (stdout, stderr) if stdout.is_empty() && stderr.is_empty() => "it printed nothing".to_owned(),
        (stdout, stderr) if stdout.is_empty() => format!("stderr {stderr:?}"),
        (stdout, stderr) if stderr.is_empty() => format!("stdout {stdout:?}"),
        (stdout, stderr) => format!("stdout {stdout:?}, stderr {stderr:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netconf::Object;

    fn named(name: &str) -> DelegateConfig {
        DelegateConfig::from_object(Object::new()).with("type", name.into())
    }

    #[test]
    fn the_first_regular_file_wins_and_directories_are_skipped() {
        let scratch = tempfile::tempdir().unwrap();
        for directory in ["a/bridge", "b", "c"] {
            std::fs::create_dir_all(scratch.path().join(directory)).unwrap();
        }
        for file in ["b/real", "c/bridge"] {
            std::fs::write(scratch.path().join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("real", scratch.path().join("b/bridge")).unwrap();
        let path: Vec<_> = ["a", "b", "c"].iter().map(|name| scratch.path().join(name)).collect();
        let path = PluginPath::new(&std::env::join_paths(path).unwrap());
        assert_eq!(Delegate::find(&named("bridge"), &path).unwrap().0, scratch.path().join("b/bridge"));
    }

    #[test]
    fn names_that_lead_nowhere() {
        let path = PluginPath::new(OsStr::new("/nonexistent-a::/nonexistent-b"));
        let message = |name: &str| Delegate::find(&named(name), &path).unwrap_err();
        assert!(matches!(message(""), DelegateError::NoName));
        assert!(matches!(message("../bridge"), DelegateError::BadName(_)));
        let error = message("bridge");
        assert_eq!(error.code(), 999);
        let text = error.to_string();
        for part in ["\"bridge\"", "/nonexistent-a", "/nonexistent-b"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn error_objects_keep_code_message_and_details() {
        let Some(DelegateError::Reported { code, msg, details }) =
            reported(br#"{"cniVersion":"0.3.1","code":100,"msg":"m","details":"d"}"#)
        else {
            panic!()
        };
        assert_eq!((code, msg.as_str(), details.as_deref()), (100, "m", Some("d")));
        assert!(matches!(reported(br#"{"code":0}"#), Some(DelegateError::Reported { code: 0, .. })));
    }

    #[test]
    fn what_is_no_error_object() {
        for text in
            ["", "x", "null", "{}", "[]", r#"{"code":"7"}"#, r#"{"code":7,"msg":[]}"#, r#"{"msg":"x"}"#]
        {
            assert!(reported(text.as_bytes()).is_none(), "{text}");
        }
    }
}
