//! The inside of a node: the two processes that hold its namespaces, and the janitor that removes a lab's folder and
//! control groups.
//!
//! They run from the `lab` binary's hidden verbs. A holder lives as long as its standard input stays open, which is a
//! pipe from the lab: however the lab ends (return, panic, Ctrl-C, SIGKILL), the kernel closes the pipe, the holder's
//! init process exits, and the kernel kills everything in its process namespace and drops its mounts and links.
//! One byte [`KEEP`] on the pipe asks them to stay (`cargo lab demo --keep`).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

use crate::{cgroups, systemd};

/// The byte that tells a holder or the janitor to outlive the lab.
pub const KEEP: u8 = b'k';
/// The file in a lab's folder that everything belonging to the lab holds a shared lock on.
pub const LOCK_FILE: &str = "lock";

/// What a holder needs to know about the node it becomes.
#[derive(Args, Debug, Clone)]
pub struct HoldArgs {
    /// the lab's folder
    #[arg(long)]
    pub lab: PathBuf,
    /// the node's host name, also the name of its folder in the lab's folder
    #[arg(long)]
    pub name: String,
    /// what `/etc/machine-id` says in the node
    #[arg(long)]
    pub machine_id: String,
    /// process 1 becomes systemd
    #[arg(long)]
    pub systemd: bool,
}

impl HoldArgs {
    /// The same arguments as words for another hidden verb.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("--lab={}", self.lab.display()),
            format!("--name={}", self.name),
            format!("--machine-id={}", self.machine_id),
        ];
        words.extend(self.systemd.then(|| "--systemd".to_owned()));
        words
    }
}

/// Makes the namespaces and starts the node's init process in them (`unshare -nmupi --fork`).
///
/// # Errors
/// When a namespace cannot be made, or the init process ends with an error.
pub fn hold(args: &HoldArgs) -> Result<()> {
    let program = std::env::current_exe().context("own path")?;
    let _belongs = hold_lock(&args.lab)?;
    // Before the namespaces: afterwards the kernel gives this process no more threads.
    let kill_with_the_lab = args.systemd.then(killer);
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID,
    )
    .context("unshare (is this root, with CAP_SYS_ADMIN?)")?;
    let mut init = Command::new(program)
        .arg("__init")
        .args(args.words())
        .stdin(if args.systemd { Stdio::null() } else { Stdio::inherit() })
        .process_group(0)
        .spawn()
        .context("start the node's init process")?;
    say(&format!("pid {}", init.id()))?;
    if let Some(told) = kill_with_the_lab {
        told.send(init.id()).context("tell who ends the node")?;
    }
    let status = init.wait().context("wait for the node's init process")?;
    // SIGKILL is how `cargo lab down` ends a node.
    let killed = status.signal() == Some(Signal::SIGKILL as i32);
    ensure!(status.success() || killed, "the node's init process ended with {status}");
    Ok(())
}

/// Process 1 of a node: lays out its mounts, says `ready`, and waits for the lab to end.
///
/// # Errors
/// When a mount fails; the lab reads the message from the log of the holder.
pub fn init(args: &HoldArgs) -> Result<()> {
    if args.systemd {
        return systemd::become_systemd(args);
    }
    let _belongs = hold_lock(&args.lab)?;
    become_node(args)?;
    // SAFETY: no handler function is installed, and this process has one thread. Ignoring SIGCHLD lets the kernel
    // reap the orphans that land on process 1.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.context("ignore SIGCHLD")?;
    say("ready")?;
    if wait_for_end()? == End::Keep {
        loop {
            nix::unistd::pause();
        }
    }
    Ok(())
}

/// Makes this process's namespaces a node: mounts, host name, loopback.
pub(crate) fn become_node(args: &HoldArgs) -> Result<()> {
    lay_out_mounts(&args.lab.join(&args.name), &args.machine_id)?;
    nix::unistd::sethostname(&args.name).context("set the host name")?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    ensure!(up.success(), "ip link set lo up failed: {up}");
    Ok(())
}

/// Does for a process 1 that listens to nobody what others do themselves: ends it with the lab. It has to be told which.
fn killer() -> mpsc::Sender<u32> {
    let (told, init) = mpsc::channel::<u32>();
    std::thread::spawn(move || {
        let Some(init) = init.recv().ok().and_then(|init| i32::try_from(init).ok()) else { return };
        if !matches!(wait_for_end(), Ok(End::Keep)) {
            // Its parent waits for it until it ends, so the number is still its own.
            let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
        }
    });
    told
}

/// Waits until the lab and all its nodes are gone, then removes the lab's control groups and folder.
///
/// # Errors
/// When the lock, a group or the folder cannot be handled.
pub fn janitor(folder: &Path) -> Result<()> {
    let lock = File::open(folder.join(LOCK_FILE)).context("open the lab's lock")?;
    if wait_for_end()? == End::Keep {
        return Ok(());
    }
    let _all_gone = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    cgroups::remove(folder)?;
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}

/// Takes the shared lock that says "something of this lab is alive".
///
/// # Errors
/// When the folder is gone or locking fails.
pub fn hold_lock(folder: &Path) -> Result<Flock<File>> {
    let path = folder.join(LOCK_FILE);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockShared).map_err(|(_, errno)| errno).context("lock the lab's folder")
}

#[derive(PartialEq, Eq)]
enum End {
    LabIsGone,
    Keep,
}

fn wait_for_end() -> Result<End> {
    let mut byte = [0_u8];
    loop {
        match io::stdin().read(&mut byte) {
            Ok(0) => return Ok(End::LabIsGone),
            Ok(_) if byte == [KEEP] => return Ok(End::Keep),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read standard input"),
        }
    }
}

pub(crate) fn say(line: &str) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write to the lab")
}

pub(crate) const NONE: Option<&str> = None;

/// Gives the node its own `/run`, `/dev/shm`, `/proc`, `/sys`, and writable layers over `/etc` and `/var/lib`, so that nothing a
/// node writes there reaches the host. Mounts vanish with the namespace.
fn lay_out_mounts(folder: &Path, machine_id: &str) -> Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make mounts private")?;
    let scratch = folder.join("private");
    fs::create_dir_all(&scratch)?;
    let scratch = fs::canonicalize(scratch)?;
    mount_tmpfs(&scratch)?;
    mount_layer(Path::new("/etc"), &scratch.join("etc"))?;
    mount_layer(Path::new("/var/lib"), &scratch.join("var-lib"))?;
    mount_tmpfs(Path::new("/run"))?;
    // podman's locks lie there under a fixed name.
    mount_tmpfs(Path::new("/dev/shm"))?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).context("mount /proc")?;
    mount_sys(&scratch.join("cgroup"))?;
    for folder in ["/run/netns", "/run/lock", "/etc/cni/net.d", "/var/lib/cni"] {
        fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    }
    fs::write("/etc/machine-id", format!("{machine_id}\n")).context("write /etc/machine-id")
}

pub(crate) fn mount_tmpfs(target: &Path) -> Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("mount a tmpfs on {}", target.display()))
}

/// `mount -t overlay -o lowerdir=TARGET,upperdir=…,workdir=… overlay TARGET`
pub(crate) fn mount_layer(target: &Path, scratch: &Path) -> Result<()> {
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let data =
        format!("lowerdir={},upperdir={},workdir={}", target.display(), upper.display(), work.display());
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .with_context(|| format!("mount an overlay on {}", target.display()))
}

/// A `/sys` that shows this namespace's links. The cgroup mounts below the host's `/sys` are carried over: container
/// engines run inside nodes need them.
fn mount_sys(parking: &Path) -> Result<()> {
    let cgroup = Path::new("/sys/fs/cgroup");
    let carry = cgroup.is_dir();
    if carry {
        fs::create_dir_all(parking)?;
        mount(Some(cgroup), parking, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
            .context("bind cgroup")?;
    }
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), NONE).context("mount /sys")?;
    if carry {
        mount(Some(parking), cgroup, NONE, MsFlags::MS_MOVE, NONE).context("move cgroup")?;
    }
    Ok(())
}
