//! Where the programs under test are, and building them once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// Names a folder that holds ready-built `flanneld` and `flannel`; set by `cargo lab test` after it has built them.
pub const FOLDER_VARIABLE: &str = "LAB_BINARIES";

/// The folder of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The `lab` binary: this program itself, or the one cargo built beside the running test.
///
/// # Errors
/// When it is not there.
pub fn lab() -> Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    let found = own.ancestors().map(|folder| folder.with_file_name("lab")).find(|path| path.is_file());
    found.with_context(|| format!("no `lab` binary beside {}: build package netns-tests", own.display()))
}

/// The daemon under test.
///
/// # Errors
/// When it cannot be built.
pub fn flanneld() -> Result<PathBuf> {
    Ok(built()?.join("flanneld"))
}

/// The folder that holds the CNI plugin `flannel`, for `CNI_PATH`.
///
/// # Errors
/// When it cannot be built.
pub fn cni_folder() -> Result<PathBuf> {
    Ok(built()?.to_path_buf())
}

/// The release binaries, since memory and start-up time are part of what is tested. A plain `cargo test` builds them on
/// first use.
fn built() -> Result<&'static Path> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| match std::env::var_os(FOLDER_VARIABLE) {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => build().map_err(|error| format!("{error:#}")),
    });
    match built {
        Ok(folder) => Ok(folder),
        Err(text) => bail!("{text}"),
    }
}

/// A program of the system: in `PATH`, in root's usual folders, or in a package that `cargo lab demo` unpacked.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin".into(), "/sbin".into(), unpacked_packages().join("usr/bin")];
    let candidates = std::env::split_paths(&path).chain(more).map(|folder| folder.join(name));
    candidates.into_iter().find(|path| {
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// A file of a package that `cargo lab test` unpacks, by its path in the package.
///
/// # Errors
/// When it is not there.
pub fn unpacked(path: &str) -> Result<PathBuf> {
    let file = unpacked_packages().join(path);
    ensure!(file.is_file(), "{} is missing: `cargo lab test` unpacks it", file.display());
    Ok(file)
}

/// Where packages are unpacked that are better not installed.
#[must_use]
pub fn unpacked_packages() -> PathBuf {
    target_folder().join("lab-packages")
}

/// Builds the daemon and the CNI plugin and returns the folder they are in.
///
/// # Errors
/// When the build fails; cargo's messages are on standard error.
pub fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "flanneld", "--package", "flannel-cni"])
        .current_dir(repository())
        .status()
        .context("run cargo build")?;
    ensure!(status.success(), "cargo build ended with {status}");
    Ok(target_folder().join("release"))
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}
