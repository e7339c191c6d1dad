//! A long-running process of the lab: signals, exit, log file, and what it costs.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::eventually::eventually;
use crate::namespaces::Entry;
use crate::node::Node;

/// A process that logs to a file in its node's folder and is killed when this value is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    node: Arc<Node>,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command in `node`; standard output and error are appended to `NODE-FOLDER/NAME.log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(node: &Arc<Node>, name: &str, command: &mut Command) -> Result<Self> {
        Self::start_in(node, &Entry::Node, name, command)
    }

    /// Like [`Process::start`], in a pod of the node.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_in(node: &Arc<Node>, entry: &Entry, name: &str, command: &mut Command) -> Result<Self> {
        let log = node.folder().join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).context("open a log file")?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = node.spawn(command, entry)?;
        Ok(Self { name: name.to_owned(), node: Arc::clone(node), child, log })
    }

    /// The node it runs in.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its number as the host counts.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log file.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it and its predecessors under this name logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let skipped = log.lines().count().saturating_sub(lines);
        log.lines().skip(skipped).collect::<Vec<_>>().join("\n")
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).context("process number")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Its exit status, when it has ended.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it is still there after `within`; the error holds the end of its log.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let waited = eventually(within, &format!("the end of {}", self.name), || {
            self.child.try_wait()?.context("it still runs")
        });
        waited.with_context(|| format!("its log:\n{}", self.log_tail(30)))
    }

    /// SIGKILL, then waits.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).with_context(|| format!("kill {}", self.name))?;
        Ok(())
    }

    /// Fails when the process has ended, with its status and the end of its log.
    ///
    /// # Errors
    /// When it has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        let status = self.try_wait()?;
        ensure!(
            status.is_none(),
            "{} on {} ended with {}; its log:\n{}",
            self.name,
            self.node.name(),
            status.map(describe).unwrap_or_default(),
            self.log_tail(30)
        );
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn describe(status: ExitStatus) -> String {
    status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"))
}

/// What a process costs at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// `Rss` of `/proc/PID/smaps_rollup`, in KiB
    pub resident_kib: u64,
    /// `Anonymous` of `/proc/PID/smaps_rollup`, in KiB
    pub anonymous_kib: u64,
    /// number of threads
    pub threads: usize,
    /// voluntary and involuntary context switches of all threads since they began
    pub context_switches: u64,
    /// the voluntary ones among them: how often a thread had nothing left to do, whatever else the machine does
    pub voluntary_switches: u64,
}

impl Footprint {
    /// Reads it for a process, by the host's number.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read smaps_rollup")?;
        let (mut threads, mut context_switches, mut voluntary_switches) = (0, 0, 0);
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("list the threads")? {
            let status = fs::read_to_string(task?.path().join("status")).context("read a thread's status")?;
            threads += 1;
            let voluntary = field(&status, "voluntary_ctxt_switches")?;
            voluntary_switches += voluntary;
            context_switches += voluntary + field(&status, "nonvoluntary_ctxt_switches")?;
        }
        Ok(Self {
            resident_kib: field(&rollup, "Rss")?,
            anonymous_kib: field(&rollup, "Anonymous")?,
            threads,
            context_switches,
            voluntary_switches,
        })
    }
}

/// How long all threads of a process have run on a processor, also those that have ended (`clock_getcpuclockid(3)`).
///
/// # Errors
/// When the process is gone.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let time = ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now).context("read a process's CPU clock")?;
    Ok(time.into())
}

/// The number behind `NAME:` at the start of a line.
fn field(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = value.and_then(|value| value.split_whitespace().next());
    number.with_context(|| format!("no field {name}"))?.parse().with_context(|| format!("field {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Rss:            1234 kB\nPss_Anon: 7 kB\nAnonymous:  56 kB\n";
        assert_eq!(field(text, "Rss").unwrap(), 1234);
        assert_eq!(field(text, "Anonymous").unwrap(), 56);
        assert!(field(text, "Pss").is_err());
    }
}
