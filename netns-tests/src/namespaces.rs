//! The outside of a node: starting its holder, and starting processes and threads inside its namespaces.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::binaries;
use crate::holder::{HoldArgs, KEEP};

/// Handles on the namespaces of one process, which stay valid as long as this value lives.
#[derive(Debug)]
pub struct NamespaceFiles {
    network: File,
    mounts: File,
    host_name: File,
    ipc: File,
    processes: File,
}

impl NamespaceFiles {
    fn of(pid: u32) -> Result<Self> {
        let open = |kind: &str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            File::open(&path).with_context(|| format!("open {path}"))
        };
        Ok(Self {
            network: open("net")?,
            mounts: open("mnt")?,
            host_name: open("uts")?,
            ipc: open("ipc")?,
            processes: open("pid")?,
        })
    }
}

/// Where a process starts.
#[derive(Debug, Clone)]
pub enum Entry {
    /// in all of the node's namespaces
    Node,
    /// in the node's, but with the network namespace of one of its pods
    Pod(Arc<File>),
    /// only in the node's network namespace: files and process numbers stay the host's
    NetworkOnly,
}

/// A set of namespaces and the holder that keeps them alive.
#[derive(Debug)]
pub struct Namespaces {
    files: Arc<NamespaceFiles>,
    init: u32,
    holder: Mutex<Option<Child>>,
}

impl Namespaces {
    /// Starts a holder and waits until its mounts are laid out.
    ///
    /// # Errors
    /// When the holder fails, with what it said.
    pub fn create(args: &HoldArgs) -> Result<Self> {
        // Not this process's standard error: a kept lab would hold a pipe behind `cargo lab demo --keep | …` open.
        let log = args.lab.join(format!("{}.holder.log", args.name));
        let mut holder = Command::new(binaries::lab()?)
            .arg("__hold")
            .args(args.words())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).with_context(|| format!("create {}", log.display()))?)
            .process_group(0)
            .spawn()
            .context("start a node's holder")?;
        let said = holder.stdout.take().context("the holder has no standard output")?;
        let last_words = || std::fs::read_to_string(&log).unwrap_or_default();
        let init = await_ready(BufReader::new(said))
            .with_context(|| format!("node {}: {}", args.name, last_words().trim()))?;
        Ok(Self { files: Arc::new(NamespaceFiles::of(init)?), init, holder: Mutex::new(Some(holder)) })
    }

    /// Opens the namespaces of a node that another lab command left running.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn attach(init: u32) -> Result<Self> {
        Ok(Self { files: Arc::new(NamespaceFiles::of(init)?), init, holder: Mutex::new(None) })
    }

    /// The number of the node's init process, as the host counts.
    #[must_use]
    pub fn init(&self) -> u32 {
        self.init
    }

    /// How a path inside the node is reached from the host.
    #[must_use]
    pub fn host_path(&self, inside: &str) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(inside.trim_start_matches('/'))
    }

    /// Tells the holder to outlive this lab.
    ///
    /// # Errors
    /// When the holder is gone.
    pub fn keep(&self) -> Result<()> {
        if let Some(mut holder) = self.holder.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let mut pipe = holder.stdin.take().context("the holder has no standard input")?;
            pipe.write_all(&[KEEP]).context("tell the holder")?;
        }
        Ok(())
    }

    /// Starts `command` inside. The child is a child of this process, with a process number of the host.
    ///
    /// # Errors
    /// When a namespace cannot be entered or the program cannot be started.
    pub fn spawn(&self, command: &mut Command, entry: &Entry) -> Result<Child> {
        let shown = format!("{command:?}");
        let entered = entry.clone();
        let files = Arc::clone(&self.files);
        // SAFETY: between fork and exec the hook makes only setns system calls on open files; it does not allocate
        // or lock.
        unsafe { command.pre_exec(move || enter(&files, &entered)) };
        let child = if matches!(entry, Entry::NetworkOnly) {
            command.spawn().map_err(anyhow::Error::from)
        } else {
            with_children_in(&self.files.processes, || command.spawn())
        };
        child.with_context(|| format!("start {shown}"))
    }

    /// Runs `work` on a thread of this process that is in the node's network namespace (or the pod's).
    ///
    /// # Errors
    /// What `work` returns, or a failure to enter.
    pub fn in_network<T: Send>(&self, entry: &Entry, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let network = match entry {
            Entry::Pod(network) => network.as_ref(),
            Entry::Node | Entry::NetworkOnly => &self.files.network,
        };
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                setns(network.as_fd(), CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
                work()
            });
            match worker.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread inside a node panicked"),
            }
        })
    }
}

impl Drop for Namespaces {
    /// Ends the node and waits for it: when the holder is reaped, every process in the node is gone.
    fn drop(&mut self) {
        if let Some(mut holder) = self.holder.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            drop(holder.stdin.take());
            if let Err(error) = holder.wait() {
                eprintln!("lab: a node's holder could not be waited for: {error}");
            }
        }
    }
}

fn enter(files: &NamespaceFiles, entry: &Entry) -> std::io::Result<()> {
    let network = match entry {
        Entry::Pod(network) => network.as_ref(),
        Entry::Node | Entry::NetworkOnly => &files.network,
    };
    setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
    if !matches!(entry, Entry::NetworkOnly) {
        setns(files.host_name.as_fd(), CloneFlags::CLONE_NEWUTS)?;
        setns(files.ipc.as_fd(), CloneFlags::CLONE_NEWIPC)?;
        setns(files.mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
    }
    Ok(())
}

/// `setns` with CLONE_NEWPID moves only the children made afterwards, and only of this thread: so it is set around one
/// spawn and set back.
fn with_children_in<T>(processes: &File, spawn: impl FnOnce() -> std::io::Result<T>) -> Result<T> {
    let own = File::open("/proc/self/ns/pid").context("open /proc/self/ns/pid")?;
    setns(processes.as_fd(), CloneFlags::CLONE_NEWPID).context("enter the process namespace")?;
    let spawned = spawn();
    setns(own.as_fd(), CloneFlags::CLONE_NEWPID).context("return to the own process namespace")?;
    Ok(spawned?)
}

/// Reads the holder's two lines, `pid N` and `ready`, which come in either order.
fn await_ready(mut lines: impl BufRead) -> Result<u32> {
    let (mut pid, mut ready) = (None, false);
    loop {
        if let (Some(pid), true) = (pid, ready) {
            return Ok(pid);
        }
        let mut line = String::new();
        if lines.read_line(&mut line).context("listen to the holder")? == 0 {
            bail!("the holder ended before it was ready; see its message above");
        }
        match line.trim().split_once(' ') {
            Some(("pid", number)) => pid = Some(number.parse().context("the holder's process number")?),
            _ => ready |= line.trim() == "ready",
        }
    }
}
