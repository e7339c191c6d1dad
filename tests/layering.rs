//! Keeps the direction of the code: the model touches nothing, the daemon knows no netlink, no etcd types and no clock that
//! jumps, and only the firewall starts programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

use std::fs;
use std::path::{Path, PathBuf};

/// Rust files below a folder, tests inside of them cut off.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
                found.push((path, code));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// Lines of code (not of comments) that mention one of `words`.
fn mentions(folder: &str, words: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, code) in sources(folder) {
        for line in code.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                lines.push(format!("{}: {word} in {line:?}", path.display()));
            }
        }
    }
    lines
}

#[test]
fn the_model_touches_nothing() {
    let world = [
        "std::fs",
        "std::process",
        "std::env",
        "std::time::Instant",
        "std::time::SystemTime",
        "std::thread",
        "UdpSocket",
        "TcpStream",
        "tokio",
        "tracing",
        "getrandom",
        "nix::",
        "rtnetlink",
        "netlink_packet",
        "etcd_client",
        "crate::kernel",
        "crate::store",
        "crate::daemon",
        "crate::options",
        "crate::subnet_env",
        "crate::firewall",
    ];
    assert_eq!(mentions("src/model", &world), Vec::<String>::new());
}

#[test]
fn the_daemon_knows_no_netlink_and_no_etcd() {
    let foreign = ["rtnetlink", "netlink_packet", "etcd_client", "socket2", "hyper", "tonic"];
    assert_eq!(mentions("src/daemon", &foreign), Vec::<String>::new());
}

#[test]
fn store_and_kernel_do_not_know_each_other() {
    assert_eq!(
        mentions("src/store", &["crate::kernel", "crate::firewall", "crate::daemon"]),
        Vec::<String>::new()
    );
    assert_eq!(
        mentions("src/kernel", &["crate::store", "crate::firewall", "crate::daemon"]),
        Vec::<String>::new()
    );
}

#[test]
fn the_daemon_asks_no_clock_that_jumps() {
    assert_eq!(mentions("src/daemon", &["SystemTime"]), Vec::<String>::new());
}

#[test]
fn programs_are_started_only_for_iptables() {
    let mut starts = mentions("src", &["process::"]);
    starts.retain(|line| line.contains("Command") && !line.contains("/src/firewall/iptables/"));
    assert_eq!(starts, Vec::<String>::new());
}
