//! What the CNI plugin itself costs: the whole call with a delegate that answers at once, less the delegate's own call. The floor
//! beside it is a program that does nothing but start the delegate.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::report::Results;
use super::sample::ms;
use crate::binaries;

pub(super) const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.17.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
/// Calls of each kind; they are short.
const CALLS: usize = 100;

/// Measures ADD and DEL of each plugin: name and path.
pub(super) fn measure(plugins: &[(String, PathBuf)], results: &mut Results) -> Result<()> {
    // In memory, as etcd's data: how long a disk takes to confirm a state file is measured apart.
    let folder = tempfile::tempdir_in("/dev/shm").context("a folder for the plugin's state")?;
    let (disk, stub) = (tempfile::tempdir()?, compile(folder.path(), "stub", STUB_SOURCE)?);
    let bare = compile(folder.path(), "bare", BARE_SOURCE)?;
    for (name, program) in plugins {
        results.add("CNI plugin, binary", "MB", name, super::bed::megabytes(program)?);
    }
    results.add("CNI plugin, binary", "MB", BARE, super::bed::megabytes(&bare)?);
    let empty = compile_empty(folder.path())?;
    results.add("an empty Rust program, built as the plugin is", "MB", BARE, super::bed::megabytes(&empty)?);
    std::fs::write(folder.path().join("subnet.env"), SUBNET_ENV)?;
    let shown = folder.path().display();
    let config = |data: &Path| {
        let data = data.display();
        format!(
            r#"{{"cniVersion":"0.3.1","name":"bench","type":"flannel","subnetFile":"{shown}/subnet.env","dataDir":"{data}/state","delegate":{{"type":"stub"}}}}"#
        )
    };
    let (in_memory, on_disk) = (config(folder.path()), config(disk.path()));
    let call_with = |config: &str, program: &Path, verb: &str| call(program, verb, folder.path(), config);
    let call = |program: &Path, verb: &str| call_with(&in_memory, program, verb);
    for _ in 0..CALLS {
        for verb in ["ADD", "DEL"] {
            let alone = call(&stub, verb)?;
            for (name, program) in plugins {
                let whole = call(program, verb)?;
                let own = ms(whole) - ms(alone);
                results.add(&format!("CNI {verb}, the plugin's own time"), "ms", name, own);
                let own = ms(call_with(&on_disk, program, verb)?) - ms(alone);
                results.add(&format!("CNI {verb}, the same with its state on a disk"), "ms", name, own);
            }
            let own = ms(call(&bare, verb)?) - ms(alone);
            results.add(&format!("CNI {verb}, the plugin's own time"), "ms", BARE, own);
        }
    }
    // From here on the delegate looks at who called it.
    std::fs::write(folder.path().join(LOOK), "")?;
    for (name, program) in plugins {
        for verb in ["ADD", "DEL"] {
            call(program, verb)?;
            let peak = peak_kib(&std::fs::read_to_string(folder.path().join(LOOK))?)?;
            results.add(&format!("CNI {verb}, largest resident memory"), "MiB", name, peak / 1024.0);
        }
    }
    Ok(())
}

/// If this file is there, the delegate writes its caller's `/proc/PID/status` into it.
const LOOK: &str = "caller";

/// `VmHWM` of a `/proc/PID/status`, which a parent's memory does not count into as it does into `ru_maxrss`.
fn peak_kib(status: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    line.trim().trim_end_matches(" kB").parse().context("VmHWM")
}

/// A delegate that reads nothing, prints an empty result, and looks at its caller if it is told to ([`LOOK`]).
const STUB_SOURCE: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void) {
    char path[4096], text[8192];
    snprintf(path, sizeof path, "%s/caller", getenv("CNI_PATH"));
    int file = open(path, O_WRONLY | O_TRUNC);
    if (file >= 0) {
        snprintf(path, sizeof path, "/proc/%d/status", getppid());
        ssize_t length = read(open(path, O_RDONLY), text, sizeof text);
        if (length < 0 || write(file, text, length) != length) return 1;
    }
    return write(1, "{\"cniVersion\":\"0.3.1\"}", 22) == 22 ? 0 : 1;
}
"#;

/// Starts the delegate with its own streams and environment, and waits.
const BARE_SOURCE: &str = r#"
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

extern char **environ;

int main(void) {
    char path[4096] = "";
    char *arguments[] = {path, 0};
    pid_t child;
    int status;
    strncat(strncat(path, getenv("CNI_PATH"), 4000), "/stub", 6);
    if (posix_spawn(&child, path, 0, 0, arguments, environ)) return 1;
    return waitpid(child, &status, 0) == child && status == 0 ? 0 : 1;
}
"#;

/// The column of a program that does nothing but start the delegate.
pub(super) const BARE: &str = "floor: a process";

fn call(program: &Path, verb: &str, folder: &Path, config: &str) -> Result<Duration> {
    let start = Instant::now();
    let mut child = Command::new(program)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "bench")
        .env("CNI_NETNS", "/proc/1/ns/none")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    // A delegate that does not read is no failure.
    let _ = child.stdin.take().context("no standard input")?.write_all(config.as_bytes());
    let status = child.wait().with_context(|| format!("wait for {}", program.display()))?;
    let took = start.elapsed();
    ensure!(status.success(), "{} {verb} ended with {status}", program.display());
    Ok(took)
}

/// A program of a few system calls, compiled here, so that it is as small and starts as fast as one can with glibc in it.
fn compile(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let source = folder.join(name).with_extension("c");
    let program = folder.join(name);
    std::fs::write(&source, text)?;
    let compiler = binaries::program("cc").context("no C compiler; `cargo lab test` gets what is missing")?;
    let flags = ["-Os", "-static", "-s", "-o"];
    let status = Command::new(compiler).args(flags).arg(&program).arg(&source).status()?;
    ensure!(status.success(), "{name}.c does not compile");
    Ok(program)
}

/// `fn main() {}` with the target of the plugin and what `profile.release` in Cargo.toml says: the least that a program with Rust's
/// standard library has.
fn compile_empty(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("empty.rs"), folder.join("empty"));
    std::fs::write(&source, "fn main() {}")?;
    let (target, flags) = binaries::static_target()?;
    let profile = "-C opt-level=s -C lto=fat -C codegen-units=1 -C panic=abort -C strip=symbols";
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--target", &target])
        .args(profile.split(' '))
        .args(flags.unwrap_or_default().split_whitespace());
    let status = rustc.arg("-o").arg(&program).arg(&source).status().context("run rustc")?;
    ensure!(status.success(), "an empty program does not compile");
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_and_del_of_each_plugin_are_measured_beside_a_bare_process() {
        let plugin = vec![("ours".to_owned(), binaries::cni_folder().unwrap().join("flannel"))];
        let mut results = Results::default();
        measure(&plugin, &mut results).unwrap();
        let text = results.markdown(&["ours".to_owned(), BARE.to_owned()]);
        assert_eq!(text.lines().count(), 10, "{text}");
        assert!(text.contains("| CNI ADD, largest resident memory | MiB | "), "{text}");
        assert!(text.contains("| CNI DEL, the plugin's own time | ms | "), "{text}");
    }
}
