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

/// Where [`build`] puts the binaries that users run.
#[must_use]
pub fn folder() -> PathBuf {
    target_folder().join("lab-binaries")
}

/// Builds what users run, and returns the folder: the daemon, and the CNI plugin as a static binary, which starts sooner and
/// needs half of the memory (`cargo lab bench --only plugin`).
///
/// # Errors
/// When the build fails; cargo's messages are on standard error.
pub fn build() -> Result<PathBuf> {
    let release = ["build", "--locked", "--release", "--package"];
    cargo_build(&[&release[..], &["flanneld"]].concat(), None)?;
    let (target, flags) = static_target()?;
    cargo_build(&[&release[..], &["flannel-cni", "--target", &target]].concat(), flags)?;
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for (from, name) in
        [(PathBuf::from("release"), "flanneld"), (Path::new(&target).join("release"), "flannel")]
    {
        let (from, to) = (target_folder().join(from).join(name), folder.join(name));
        // A file of its own, put in place by a rename: the former one may be running.
        let fresh = folder.join(format!("{name}.{}", std::process::id()));
        fs::copy(&from, &fresh).with_context(|| format!("copy {}", from.display()))?;
        fs::rename(&fresh, &to).with_context(|| format!("put {} in place", to.display()))?;
    }
    Ok(folder)
}

/// Builds the benchmark's floor (`benches/bare`) from this tree, together with its daemon so that both get the same libraries.
///
/// # Errors
/// When the build fails; cargo's messages are on standard error.
pub fn build_bare() -> Result<PathBuf> {
    cargo_build(&["build", "--locked", "--release", "--package", "flanneld", "--package", "bare"], None)?;
    Ok(target_folder().join("release/bare"))
}

/// Builds `lab` itself as users' programs are built: what measures them shall not be what is slow.
///
/// # Errors
/// When the build fails; cargo's messages are on standard error.
pub fn build_lab() -> Result<PathBuf> {
    cargo_build(&["build", "--locked", "--release", "--package", "netns-tests", "--bin", "lab"], None)?;
    Ok(target_folder().join("release/lab"))
}

fn cargo_build(words: &[&str], flags: Option<&str>) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(repository());
    if let Some(flags) = flags {
        command.env("RUSTFLAGS", flags);
    }
    let status = command.status().context("run cargo build")?;
    ensure!(status.success(), "cargo build ended with {status}");
    Ok(())
}

/// A target whose binaries are static, and the flags it takes: musl where the toolchain has it, else glibc.
pub(crate) fn static_target() -> Result<(String, Option<&'static str>)> {
    let of = |libc: &str| format!("{}-unknown-linux-{libc}", std::env::consts::ARCH);
    let musl = of("musl");
    let words = ["--print", "target-libdir", "--target", &musl];
    let output = Command::new("rustc").args(words).output().context("run rustc")?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if libraries.is_dir() {
        return Ok((musl, None));
    }
    Ok((of("gnu"), Some("-C target-feature=+crt-static -C relocation-model=static")))
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}
