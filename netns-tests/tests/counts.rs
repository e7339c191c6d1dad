//! The short version of `cargo lab bench`: what is done is counted, nothing is timed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use anyhow::Result;
use netns_tests::bench::counts::{Counted, Start};

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
    assert!(alone.total() <= 700, "{} system calls", alone.total());
    // Requests go many at a time; each of the three notifications a peer raises is a datagram of its own.
    let sent = |start: &Start| {
        ["sendto", "sendmsg", "writev"].iter().filter_map(|name| start.calls.get(*name)).sum::<usize>()
    };
    assert!(sent(&among) <= sent(&alone) + 5, "{} and {} sends", sent(&alone), sent(&among));
    assert!(
        among.total() <= alone.total() + 3 * 255 + 50,
        "{} and {} system calls",
        alone.total(),
        among.total()
    );
    Ok(())
}

#[test]
fn what_is_right_is_not_written_and_nothing_is_started() -> Result<()> {
    let mut counted = Counted::among(255)?;
    assert_eq!(counted.restart()?, 0, "entries written at a restart");
    let quiet = counted.quiet(Duration::from_secs(3))?;
    assert_eq!(
        (quiet.changes, quiet.started),
        (0, 0),
        "entries written and processes started by unchanged renewals"
    );
    Ok(())
}
