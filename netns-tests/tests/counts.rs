//! The short version of `cargo lab bench`: what is done is counted, nothing is timed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use netns_tests::bench::counts::{Counted, Start};
use netns_tests::binaries;

#[test]
fn what_a_start_costs_does_not_grow_with_every_peer() -> Result<()> {
    let (alone, among) = (Counted::among(0)?.start()?, Counted::among(255)?.start()?);
    println!("alone: {} system calls, {} requests: {:?}", alone.total(), alone.requests, alone.calls);
    println!(
        "among 255 peers: {} system calls, {} requests: {:?}",
        among.total(),
        among.requests,
        among.calls
    );
    // config, list, grant, put, watch
    assert!(alone.requests <= 5 && among.requests <= 5, "{} and {} requests", alone.requests, among.requests);
    assert_eq!(among.calls.get("execve"), Some(&1), "only the daemon itself is executed");
    assert!(alone.total() <= 560, "{} system calls", alone.total());
    // Requests go many at a time. Of the three notifications a peer raises, that of the FDB entry comes back to us: the kernel
    // does not say whose it is.
    let sent = |start: &Start| {
        ["sendto", "sendmsg", "writev"].iter().filter_map(|name| start.calls.get(*name)).sum::<usize>()
    };
    assert!(sent(&among) <= sent(&alone) + 5, "{} and {} sends", sent(&alone), sent(&among));
    assert!(
        among.total() <= alone.total() + 255 + 50,
        "{} and {} system calls",
        alone.total(),
        among.total()
    );
    Ok(())
}

/// To hear of it: sleep, read. To carry it out: one send and its answer. To know what else happened: the FDB entry, which comes back
/// to us, and that there is nothing more.
#[test]
fn a_new_peer_costs_six_system_calls() -> Result<()> {
    const PEERS: usize = 100;
    let (calls, took) = Counted::among(3)?.additions(PEERS.try_into()?)?;
    let total: usize = calls.values().sum();
    println!("{PEERS} peers: {total} system calls in {took:?}: {calls:?}");
    // Beside these: the log's lines, sleeps that ended for another reason; and once a second, for systemd's status line, a timer, its
    // read, a look at what came meanwhile, and the datagram.
    let beside = 65 + 5 * usize::try_from(took.as_secs())?;
    assert!(total <= PEERS * 6 + beside, "{total} system calls, {beside} allowed beside: {calls:?}");
    Ok(())
}

#[test]
fn what_is_right_is_not_written_and_nothing_is_started() -> Result<()> {
    let mut counted = Counted::among(255)?;
    let restart = counted.restart()?;
    assert_eq!(restart.changes, 0, "entries written at a restart");
    // config, list, how long the lease lives, keepalive, watch
    assert!(restart.requests <= 5, "{} requests at a restart", restart.requests);
    let quiet = counted.quiet(Duration::from_secs(3))?;
    assert_eq!(
        (quiet.changes, quiet.started),
        (0, 0),
        "entries written and processes started by unchanged renewals"
    );
    Ok(())
}

/// Any daemon can stand behind `--against`, also ours.
#[test]
fn the_benchmark_measures_our_own_binary_as_an_opponent() -> Result<()> {
    let out = tempfile::tempdir()?;
    let output = Command::new(binaries::lab()?)
        .args(["bench", "--only", "size,start", "--runs", "1", "--peers", "3", "--against"])
        .arg(binaries::flanneld()?)
        .arg("--out")
        .arg(out.path())
        .env(binaries::FOLDER_VARIABLE, binaries::cni_folder()?)
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = std::fs::read_to_string(out.path().join("bench.md"))?;
    let row = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(&format!("| {name}"))).unwrap_or_default();
        line.split(" | ").skip(2).map(|cell| cell.trim_end_matches(" |").to_owned()).collect::<Vec<_>>()
    };
    let median = |cell: &String| {
        cell.split(' ').next().and_then(|median| median.parse::<f64>().ok()).is_some_and(|value| value > 0.0)
    };
    assert_eq!(row("measured")[..2], ["ours", "flanneld #1"], "{table}");
    assert_eq!(row("binary")[0], row("binary")[1], "the same file");
    for measured in ["exec → READY", "exec → all routes", "CPU of the start", "resident memory"] {
        let cells = row(measured);
        assert!(cells[..2].iter().all(median), "{table}");
    }
    assert!(median(&row("exec → all routes")[2]), "the kernel's floor: {table}");
    assert!(std::fs::read_to_string(out.path().join("bench.svg"))?.contains("flanneld #1"));
    Ok(())
}
