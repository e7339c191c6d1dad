//! The Debian packages the lab and the build need: which are missing, and getting them.
//!
//! `etcd-server` is unpacked under `target/` instead of installed: its maintainer script would start a service and enable
//! it for every boot, and the lab only needs the program.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{binaries, lab};

/// A package and a file that shows it is there: a program looked for in `PATH`, or an absolute path.
struct Package {
    name: &'static str,
    shown_by: &'static str,
}

const INSTALLED: [Package; 13] = [
    Package { name: "iproute2", shown_by: "ip" },
    Package { name: "iputils-ping", shown_by: "ping" },
    Package { name: "procps", shown_by: "sysctl" },
    Package { name: "iptables", shown_by: "iptables" },
    Package { name: "nftables", shown_by: "nft" },
    Package { name: "ethtool", shown_by: "ethtool" },
    Package { name: "etcd-client", shown_by: "etcdctl" },
    Package { name: "containernetworking-plugins", shown_by: "/usr/lib/cni/host-local" },
    Package { name: "wireguard-go", shown_by: "wireguard-go" },
    Package { name: "wireguard-tools", shown_by: "wg" },
    Package { name: "protobuf-compiler", shown_by: "protoc" },
    Package { name: "libprotobuf-dev", shown_by: "/usr/include/google/protobuf/any.proto" },
    Package { name: "gcc", shown_by: "cc" },
];
const UNPACKED: Package = Package { name: "etcd-server", shown_by: "etcd" };

/// Makes sure that everything is there, and that this is root.
///
/// # Errors
/// When something is missing and this is not root on a Debian; the error says what to type.
pub fn ensure_present() -> Result<()> {
    let missing: Vec<&str> =
        INSTALLED.iter().filter(|package| !present(package.shown_by)).map(|package| package.name).collect();
    if missing.is_empty() && present(UNPACKED.shown_by) {
        return lab::ensure_root();
    }
    ensure_can_install(&missing)?;
    apt(&["update", "-qq"])?;
    if !missing.is_empty() {
        println!("installing {}", missing.join(" "));
        let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
        words.extend(&missing);
        apt(&words)?;
    }
    if !present(UNPACKED.shown_by) {
        unpack(UNPACKED.name)?;
    }
    let left = INSTALLED.iter().chain([&UNPACKED]).find(|package| !present(package.shown_by));
    match left {
        Some(package) => {
            bail!("package {} was installed, but {} is not there", package.name, package.shown_by)
        }
        None => Ok(()),
    }
}

fn ensure_can_install(missing: &[&str]) -> Result<()> {
    let mut all = missing.to_vec();
    if !present(UNPACKED.shown_by) {
        all.push(UNPACKED.name);
    }
    let advice = format!("missing: {0}\ninstall with: sudo apt-get install {0}", all.join(" "));
    ensure!(present("apt-get"), "this is no Debian; install what these Debian packages hold. {advice}");
    ensure!(nix::unistd::geteuid().is_root(), "not root. {advice}\nthen run this as root");
    Ok(())
}

/// Runs apt-get; what it says is shown only when it fails.
fn apt(words: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(words).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let output = command.output().context("run apt-get")?;
    let said = [output.stdout, output.stderr].concat();
    let (line, status) = (words.join(" "), output.status);
    ensure!(status.success(), "apt-get {line} ended with {status}:\n{}", String::from_utf8_lossy(&said));
    Ok(())
}

/// `apt-get download PACKAGE` and `dpkg-deb --extract`: the files only, no maintainer script.
fn unpack(package: &str) -> Result<()> {
    let folder = binaries::unpacked_packages();
    fs::create_dir_all(&folder)?;
    println!("unpacking {package} into {} (not installed, so that no service starts)", folder.display());
    let download = tempfile::tempdir().context("a folder for the download")?;
    let status = Command::new("apt-get")
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root", package])
        .current_dir(download.path())
        .status()
        .context("run apt-get download")?;
    ensure!(status.success(), "apt-get download {package} ended with {status}");
    let entry = fs::read_dir(download.path())?.next().context("apt-get download left no file")??;
    let status = Command::new("dpkg-deb").arg("--extract").arg(entry.path()).arg(&folder).status()?;
    ensure!(status.success(), "dpkg-deb --extract {package} ended with {status}");
    Ok(())
}

/// Whether a program is found, or an absolute path exists.
pub(super) fn present(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { binaries::program(what).is_some() }
}
