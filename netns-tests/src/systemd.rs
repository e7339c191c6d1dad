//! A node whose process 1 is a real systemd, to run units as a host does: notification, watchdog, sandbox, journal.
//!
//! systemd finds what a container manager would give it: its own cgroup v2 hierarchy, a small `/dev`, and only the units named
//! here, so that nothing the host would start at boot is started. It cannot set the clock, load modules or change what the
//! kernel has only once, and it is killed with its holder.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::cgroups;
use crate::eventually::eventually;
use crate::holder::{self, HoldArgs, NONE, mount_layer, mount_tmpfs};
use crate::node::Node;

const SYSTEMD: &str = "/lib/systemd/systemd";
/// What systemd starts, and when it counts as booted.
const TARGET: &str = "lab.target";
const TARGET_UNIT: &str = "[Unit]\nDescription=A node of the lab\nRequires=systemd-journald.service\nAfter=systemd-journald.service\nAllowIsolate=yes\n";
/// Where the system's units are; those of them that a lab needs.
const UNITS: &str = "/usr/lib/systemd/system";
const NEEDED: [&str; 17] = [
    "basic.target",
    "final.target",
    "local-fs.target",
    "multi-user.target",
    "network-online.target",
    "network.target",
    "paths.target",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "sysinit.target",
    "systemd-journald-audit.socket",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "timers.target",
    "umount.target",
];
/// `CAP_SYS_MODULE`, `CAP_SYS_BOOT` and `CAP_SYS_TIME` (`linux/capability.h`).
const LOST_CAPABILITIES: [libc::c_ulong; 3] = [16, 22, 25];
/// A boot takes about a second; a loaded machine takes longer.
const BOOT: Duration = Duration::from_secs(30);

/// Makes this process, process 1 of its namespaces, systemd. Returns only if that fails.
///
/// # Errors
/// When a mount or the start fails.
pub fn become_systemd(args: &HoldArgs) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("die with the holder")?;
    cgroups::join(&args.lab, &args.name)?;
    unshare(CloneFlags::CLONE_NEWCGROUP).context("a cgroup namespace")?;
    holder::become_node(args)?;
    lay_out_mounts(&args.lab, &args.lab.join(&args.name).join("private"))?;
    for capability in LOST_CAPABILITIES {
        // SAFETY: takes numbers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        ensure!(dropped == 0, "cannot drop capability {capability}");
    }
    holder::say("ready")?;
    let error = Command::new(SYSTEMD)
        .args(["--system", "--log-target=journal", "--show-status=no"])
        .arg(format!("--unit={TARGET}"))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("container", "flannel-lab")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .exec();
    Err(error).with_context(|| format!("start {SYSTEMD}"))
}

fn lay_out_mounts(lab: &Path, scratch: &Path) -> Result<()> {
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), NONE)
        .context("mount cgroup2")?;
    mount_layer(Path::new("/usr/local"), &scratch.join("usr-local"))?;
    mount_layer(Path::new("/opt"), &scratch.join("opt"))?;
    replace_units(&scratch.join("units"))?;
    make_devices(&scratch.join("dev"))?;
    // What the kernel has only once is nothing that a node may change.
    for once in ["/proc/sys/fs", "/proc/sys/kernel", "/proc/sys/vm"] {
        bind(Path::new(once), Path::new(once))?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, once, NONE, flags, NONE).with_context(|| format!("make {once} read-only"))?;
    }
    for folder in ["/var/log", "/var/tmp"] {
        mount_tmpfs(Path::new(folder))?;
    }
    // PrivateTmp makes its folders in /tmp, where the lab's own folder usually is.
    let parked = Path::new("/run/lab");
    fs::create_dir_all(parked)?;
    bind(lab, parked)?;
    mount_tmpfs(Path::new("/tmp"))?;
    if !lab.exists() {
        fs::create_dir_all(lab)?;
        mount(Some(parked), lab, NONE, MsFlags::MS_MOVE, NONE).context("put the lab's folder back")?;
    }
    Ok(())
}

/// Only the units a lab needs, and no generator that would make more of the host's configuration.
fn replace_units(parking: &Path) -> Result<()> {
    fs::create_dir_all(parking)?;
    for unit in NEEDED {
        fs::copy(Path::new(UNITS).join(unit), parking.join(unit))
            .with_context(|| format!("copy {unit}; is the Debian package systemd installed?"))?;
    }
    bind(parking, Path::new(UNITS))?;
    for folder in ["/etc/systemd", "/usr/lib/systemd/system-generators"] {
        mount_tmpfs(Path::new(folder))?;
    }
    fs::create_dir_all("/etc/systemd/system")?;
    fs::write(format!("/etc/systemd/system/{TARGET}"), TARGET_UNIT).context("write the target")
}

fn make_devices(scratch: &Path) -> Result<()> {
    fs::create_dir_all(scratch)?;
    mount_tmpfs(scratch)?;
    // systemd talks to a console if there is one: to nobody here.
    let devices = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
        ("console", 1, 3),
    ];
    for (name, major, minor) in devices {
        mknod(&scratch.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .with_context(|| format!("make /dev/{name}"))?;
    }
    for folder in ["shm", "pts", "mqueue"] {
        fs::create_dir(scratch.join(folder))?;
    }
    std::os::unix::fs::symlink("pts/ptmx", scratch.join("ptmx"))?;
    mount(Some(scratch), "/dev", NONE, MsFlags::MS_MOVE, NONE).context("move /dev")?;
    mount_tmpfs(Path::new("/dev/shm"))?;
    mount(Some("devpts"), "/dev/pts", Some("devpts"), MsFlags::empty(), Some("newinstance,ptmxmode=0666"))
        .context("mount /dev/pts")
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).with_context(|| format!("bind {}", to.display()))
}

/// Waits until systemd in `node` has booted.
///
/// # Errors
/// When it does not within the deadline.
pub fn wait_booted(node: &Node) -> Result<()> {
    eventually(BOOT, "systemd has booted", || node.run(&format!("systemctl is-active {TARGET}")).map(drop))
}

/// One property of a unit, e.g. `NRestarts`.
///
/// # Errors
/// When systemd does not answer.
pub fn property(node: &Node, unit: &str, name: &str) -> Result<String> {
    let shown = node.run(&format!("systemctl show --property={name} --value {unit}"))?;
    Ok(shown.trim().to_owned())
}
