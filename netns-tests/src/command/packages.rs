//! The Debian packages the lab and the build need: which are missing, and getting them.
//!
//! `etcd-server`, `podman` and `containerd` are unpacked under `target/` instead of installed: their maintainer scripts
//! would start services and enable them for every boot, and the lab only needs the programs. `busybox-static` is unpacked
//! because installing it would remove a `busybox` that is there.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{binaries, lab};

/// A package and a file that shows it is there: a program looked for in `PATH`, an absolute path, or a path below the
/// folder of unpacked packages.
struct Package {
    name: &'static str,
    shown_by: &'static str,
}

const INSTALLED: [Package; 15] = [
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
    Package { name: "iperf3", shown_by: "iperf3" },
    Package { name: "strace", shown_by: "strace" },
    Package { name: "protobuf-compiler", shown_by: "protoc" },
    Package { name: "libprotobuf-dev", shown_by: "/usr/include/google/protobuf/any.proto" },
    Package { name: "gcc", shown_by: "cc" },
];
const UNPACKED: [Package; 1] = [Package { name: "etcd-server", shown_by: "etcd" }];

/// What only the tests with real container engines need: podman's libraries (their copyright file has no architecture in
/// its path) and the two programs both engines run containers with; and systemd, to boot it in a node. Installing them starts
/// nothing.
const INSTALLED_FOR_TESTS: [Package; 6] = [
    Package { name: "systemd", shown_by: "/lib/systemd/systemd" },
    Package { name: "runc", shown_by: "runc" },
    Package { name: "conmon", shown_by: "conmon" },
    Package { name: "libsubid4", shown_by: "/usr/share/doc/libsubid4/copyright" },
    Package { name: "libgpgme11", shown_by: "/usr/share/doc/libgpgme11/copyright" },
    Package { name: "libdevmapper1.02.1", shown_by: "/usr/share/doc/libdevmapper1.02.1/copyright" },
];
const UNPACKED_FOR_TESTS: [Package; 3] = [
    Package { name: "podman", shown_by: "usr/bin/podman" },
    Package { name: "containerd", shown_by: "usr/bin/containerd" },
    Package { name: "busybox-static", shown_by: "bin/busybox" },
];

/// Makes sure that everything a lab needs is there, and that this is root.
///
/// # Errors
/// When something is missing and this is not root on a Debian; the error says what to type.
pub fn ensure_present() -> Result<()> {
    ensure(INSTALLED.iter(), UNPACKED.iter())
}

/// Like [`ensure_present`], with what the tests need besides.
///
/// # Errors
/// As [`ensure_present`].
pub fn ensure_present_for_tests() -> Result<()> {
    ensure(INSTALLED.iter().chain(&INSTALLED_FOR_TESTS), UNPACKED.iter().chain(&UNPACKED_FOR_TESTS))
}

fn ensure(
    installed: impl Iterator<Item = &'static Package> + Clone,
    unpacked: impl Iterator<Item = &'static Package> + Clone,
) -> Result<()> {
    let to_install = missing(installed.clone());
    let to_unpack = missing(unpacked.clone());
    if to_install.is_empty() && to_unpack.is_empty() {
        return lab::ensure_root();
    }
    ensure_can_install(&[to_install.as_slice(), &to_unpack].concat())?;
    apt(&["update", "-qq"])?;
    if !to_install.is_empty() {
        println!("installing {}", to_install.join(" "));
        let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
        words.extend(to_install);
        apt(&words)?;
    }
    for package in to_unpack {
        unpack(package)?;
    }
    match installed.chain(unpacked).find(|package| !present(package.shown_by)) {
        Some(package) => {
            bail!("package {} was installed, but {} is not there", package.name, package.shown_by)
        }
        None => Ok(()),
    }
}

fn missing(packages: impl Iterator<Item = &'static Package>) -> Vec<&'static str> {
    packages.filter(|package| !present(package.shown_by)).map(|package| package.name).collect()
}

fn ensure_can_install(missing: &[&str]) -> Result<()> {
    let advice = format!("missing: {0}\ninstall with: sudo apt-get install {0}", missing.join(" "));
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
    println!("unpacking {package} into {} (not installed, so that nothing else changes)", folder.display());
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

/// Whether a [`Package::shown_by`] is there.
pub(super) fn present(what: &str) -> bool {
    match what {
        absolute if absolute.starts_with('/') => Path::new(absolute).exists(),
        below if below.contains('/') => binaries::unpacked_packages().join(below).exists(),
        program => binaries::program(program).is_some(),
    }
}
