//! The daemon under test (or any binary with the same command line) as a process in a node.

use std::io::{PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::binaries;
use crate::eventually::eventually;
use crate::http;
use crate::namespaces::Entry;
use crate::node::Node;
use crate::notify::NotifySocket;
use crate::process::{Footprint, Process};

/// Where the daemon listens for health and metrics, on the node's loopback.
pub const HEALTH_PORT: u16 = 10259;
/// Where the daemon writes what the CNI plugin reads.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Generous, so that a loaded machine does not fail a test.
const DEADLINE: Duration = Duration::from_secs(20);

/// How a daemon is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// the program; the one built from this repository if not given
    pub program: Option<PathBuf>,
    flags: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

impl Options {
    /// Lets another program start it, e.g. `strace -f -o FILE`.
    #[must_use]
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Sets `-NAME=VALUE`, replacing an earlier value.
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl Into<String>) -> Self {
        self = self.without(name);
        self.flags.push((name.to_owned(), value.into()));
        self
    }

    /// Leaves a flag out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.flags.retain(|(present, _)| present != name);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The flags as the words of a command line. Sorted and with one dash, as the role's unit has them.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut flags = self.flags.clone();
        flags.sort();
        flags.iter().map(|(name, value)| format!("-{name}={value}")).collect()
    }

    fn command(&self) -> Result<Command> {
        let program = self.program.clone().map_or_else(binaries::flanneld, Ok)?;
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, words)) => {
                let mut command = Command::new(wrapper);
                command.args(words).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(self.words());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}

/// What a command of the daemon's binary (`flanneld status`) printed, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Told {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// When it is none; the error holds everything.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {self:?}"))
    }
}

/// Runs `flanneld WORDS…` in a node to its end.
///
/// # Errors
/// When it cannot be started.
pub fn told<W: AsRef<str>>(node: &Node, words: &[W]) -> Result<Told> {
    told_under(node, Command::new(binaries::flanneld()?), words)
}

/// The same through another program, e.g. `setarch --uname-2.6 PROGRAM`, up to the words.
///
/// # Errors
/// When it cannot be started.
pub fn told_under<W: AsRef<str>>(node: &Node, mut command: Command, words: &[W]) -> Result<Told> {
    command.args(words.iter().map(AsRef::as_ref));
    let output = node.output(&mut command, &Entry::Node)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Told { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) })
}

/// Learns from the child of a `fork(2)` when it was about to call `execve(2)`.
struct Stamp {
    before: Instant,
    told: PipeReader,
}

impl Stamp {
    fn on(command: &mut Command) -> Result<Self> {
        let (told, mut tell) = std::io::pipe()?;
        let before = Instant::now();
        // SAFETY: between fork and exec the hook reads a clock and writes to a pipe; it does not allocate or lock.
        unsafe {
            command.pre_exec(move || {
                let nanoseconds = u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX);
                tell.write_all(&nanoseconds.to_ne_bytes())
            });
        }
        Ok(Self { before, told })
    }

    /// Once the child is running.
    fn read(mut self) -> Result<Instant> {
        let mut bytes = [0; 8];
        self.told.read_exact(&mut bytes).context("when the process was executed")?;
        Ok(self.before + Duration::from_nanos(u64::from_ne_bytes(bytes)))
    }
}

/// A running daemon. It is killed when this value is dropped; the data plane stays.
#[derive(Debug)]
pub struct Flanneld {
    process: Process,
    notify: NotifySocket,
    started: Instant,
}

impl Flanneld {
    /// Starts the daemon without waiting for it.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn start(node: &Arc<Node>, options: &Options) -> Result<Self> {
        let path = node.folder().join(format!("notify-{:08x}", crate::node::random_u64() >> 32));
        let notify = NotifySocket::bind(&path)?;
        let mut command = options.command()?;
        command.env("NOTIFY_SOCKET", notify.path());
        let stamp = Stamp::on(&mut command)?;
        let process = Process::start(node, "flanneld", &mut command)?;
        Ok(Self { process, notify, started: stamp.read()? })
    }

    /// The process behind it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The process behind it, to wait for its end.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        self.process.node()
    }

    /// What it told systemd.
    #[must_use]
    pub fn notify(&self) -> &NotifySocket {
        &self.notify
    }

    /// When it was executed: between `fork(2)`, which takes longer the larger the lab is, and `execve(2)`.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits for `READY=1` and returns how long after the start it came.
    ///
    /// # Errors
    /// When it does not come or the process ends; the error holds the log.
    pub fn wait_ready(&mut self) -> Result<Duration> {
        // The outer result ends the waiting: ready, or gone.
        let waited = eventually(DEADLINE, "READY=1", || match self.notify.first("READY=1") {
            Some(ready) => Ok(Ok(ready)),
            None => match self.process.ensure_running() {
                Ok(()) => bail!("not received"),
                Err(ended) => Ok(Err(ended)),
            },
        });
        let ready = waited
            .with_context(|| format!("{}: log:\n{}", self.node().name(), self.process.log_tail(40)))??;
        Ok(ready.at - self.started)
    }

    /// Waits until the firewall's rules are in force: the daemon is ready without them when they take long.
    ///
    /// # Errors
    /// When it does not tell so.
    pub fn wait_rules(&self) -> Result<()> {
        eventually(DEADLINE, "firewall rules", || {
            let log = self.log_of_this_start();
            ensure!(log.contains("firewall rules are in force"), "not in the log:\n{log}");
            Ok(())
        })
    }

    /// What it logged after saying that it starts; the log of the process holds its predecessors', too.
    #[must_use]
    pub fn log_of_this_start(&self) -> String {
        self.process.log().rsplit("flanneld starts").next().unwrap_or_default().to_owned()
    }

    /// Ends it with a signal and returns its exit status.
    ///
    /// # Errors
    /// When it does not end within the deadline.
    pub fn stop(mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait(DEADLINE)
    }

    /// What it costs now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn footprint(&self) -> Result<Footprint> {
        Footprint::of(self.process.pid())
    }

    /// `GET http://127.0.0.1:10259PATH`: the status and the body.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let address = ([127, 0, 0, 1], HEALTH_PORT).into();
        self.node().in_network(|| http::get(address, path))
    }

    /// The value of one metric, with its labels as written in the Prometheus text, e.g.
    /// `flanneld_peers{state="programmed"}`. A metric that is not listed is 0.
    ///
    /// # Errors
    /// When `/metrics` does not answer or the value is no number.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (status, body) = self.http("/metrics")?;
        ensure!(status == 200, "/metrics answers {status}");
        http::metric(&body, name)
    }
}
