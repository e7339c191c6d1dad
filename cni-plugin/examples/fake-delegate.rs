//! A delegate for the black-box tests. A test links it as `<bin>/bridge` or under another name and
//! puts beside it `<name>.json`, a table from command to behaviour (`*` stands for the others):
//!
//! | key | effect |
//! | --- | --- |
//! | `stdout`, `stderr` | texts to print; without `stdout` ADD prints a result of the asked version |
//! | `exit`, `signal` | how to end |
//! | `deaf` | do not read stdin |
//! | `flood` | write so many bytes to stderr, and as many to stdout as a string in the result |
//! | `wait` | after the start was logged, wait until the file `<name>.go` is there |
//! | `leases` | keep one file per attachment in `<name>.leases`, as host-local keeps addresses |
//! | `panic` | panic under the plugin's own panic hook |
//!
//! Every run appends one line to `<name>.log`: command, argv, environment, stdin.

use nix::sys::signal::{Signal, raise};
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let me = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let command = std::env::var("CNI_COMMAND").unwrap_or_default();
    let behaviour = behaviour(&me, &command);
    let stdin = if is(&behaviour, "deaf") { String::new() } else { read_stdin() };
    log(&me, &command, &stdin);
    if is(&behaviour, "wait") {
        wait_for(&beside(&me, "go"));
    }
    if is(&behaviour, "leases") {
        keep_leases(&beside(&me, "leases"), &command);
    }
    if is(&behaviour, "panic") {
        flannel_cni::panic_report::install();
        let nothing: Option<u8> = None;
        assert!(nothing.is_some(), "asked to panic");
    }
    say(&behaviour, &command, &stdin);
    end(&behaviour)
}

fn behaviour(me: &Path, command: &str) -> Value {
    let text = fs::read(beside(me, "json")).unwrap_or_else(|_| b"{}".to_vec());
    let table: Value = serde_json::from_slice(&text).unwrap_or_default();
    table.get(command).or_else(|| table.get("*")).cloned().unwrap_or_default()
}

fn beside(me: &Path, ending: &str) -> PathBuf {
    let mut path = me.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    path.into()
}

fn is(behaviour: &Value, key: &str) -> bool {
    behaviour.get(key) == Some(&Value::Bool(true))
}

fn read_stdin() -> String {
    let mut bytes = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn log(me: &Path, command: &str, stdin: &str) {
    let text = |value: &std::ffi::OsStr| value.as_bytes().escape_ascii().to_string();
    let env: serde_json::Map<String, Value> =
        std::env::vars_os().map(|(key, value)| (text(&key), text(&value).into())).collect();
    let argv: Vec<String> = std::env::args_os().map(|word| text(&word)).collect();
    let line = json!({"command": command, "argv": argv, "env": env, "stdin": stdin});
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(beside(me, "log")) {
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// Ends as well when the test is over and its directory gone, so that no process outlives it.
fn wait_for(path: &Path) {
    while !path.exists() && path.parent().is_some_and(Path::exists) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn keep_leases(directory: &Path, command: &str) {
    let id = std::env::var("CNI_CONTAINERID").unwrap_or_default();
    let ifname = std::env::var("CNI_IFNAME").unwrap_or_default();
    let lease = directory.join(format!("{id}:{ifname}"));
    if command == "ADD" {
        let _ = File::create(&lease);
    } else if command == "DEL" {
        let _ = fs::remove_file(&lease);
    }
}

fn say(behaviour: &Value, command: &str, stdin: &str) {
    let text = |key: &str| behaviour.get(key).and_then(Value::as_str);
    let flood =
        behaviour.get("flood").and_then(Value::as_u64).and_then(|length| usize::try_from(length).ok());
    let filler = "x".repeat(flood.unwrap_or_default());
    let _ = std::io::stderr().write_all(text("stderr").unwrap_or(&filler).as_bytes());
    let stdout = match text("stdout") {
        Some(text) => text.to_owned(),
        None if command == "ADD" => result(stdin, &filler),
        None => String::new(),
    };
    let _ = std::io::stdout().write_all(stdout.as_bytes());
}

/// A result in the form of the version that was asked for.
fn result(stdin: &str, filler: &str) -> String {
    let config: Value = serde_json::from_str(stdin).unwrap_or_default();
    let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    let mut result = match version {
        "0.1.0" | "0.2.0" => json!({"ip4": {"ip": "10.1.17.2/24", "gateway": "10.1.17.1"}}),
        "0.3.0" | "0.3.1" | "0.4.0" => json!({"ips": [{"version": "4", "address": "10.1.17.2/24"}]}),
        _ => json!({"ips": [{"address": "10.1.17.2/24"}]}),
    };
    if let Some(fields) = result.as_object_mut() {
        fields.insert("cniVersion".to_owned(), version.into());
        fields.insert("filler".to_owned(), filler.into());
    }
    result.to_string()
}

fn end(behaviour: &Value) -> ExitCode {
    let number = |key: &str| behaviour.get(key).and_then(Value::as_i64);
    if let Some(signal) = number("signal").and_then(|signal| i32::try_from(signal).ok()) {
        let _ = Signal::try_from(signal).map(raise);
    }
    ExitCode::from(number("exit").and_then(|code| u8::try_from(code).ok()).unwrap_or(0))
}
