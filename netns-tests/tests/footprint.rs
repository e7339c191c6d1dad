//! What a daemon costs while nothing happens, or nothing that concerns it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::flanneld::Flanneld;
use netns_tests::{Lab, Spec, eventually};

#[test]
fn a_daemon_with_one_peer_is_small_and_idle() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    come_to_rest(&daemons[0])?;
    let before = daemons[0].footprint()?;
    println!("{before:?}");
    // The minute itself is what is measured; nothing is waited for.
    std::thread::sleep(Duration::from_secs(60));
    let after = daemons[0].footprint()?;
    daemons[0].process_mut().ensure_running()?;
    let switches = after.voluntary_switches - before.voluntary_switches;
    println!("{after:?}, {switches} voluntary context switches in a minute");
    // Not the involuntary ones: they tell how many tests run beside this one.
    assert!(switches <= 20, "{switches} voluntary context switches in a minute");
    assert!(after.resident_kib < 8 * 1024, "resident {} KiB", after.resident_kib);
    assert!(after.anonymous_kib < 1536, "anonymous {} KiB", after.anonymous_kib);
    assert!(after.threads <= 2, "{} threads", after.threads);
    Ok(())
}

/// The states of a busy node's other neighbours change all the time.
#[test]
fn neighbours_of_other_devices_wake_nobody() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 1, ..Spec::default() })?;
    let daemon = &lab.flanneld_everywhere()?[0];
    come_to_rest(daemon)?;
    let before = daemon.footprint()?.voluntary_switches;
    // 203.0.113.0/24 is nobody's (RFC 5737).
    for last in 1..=100 {
        let neighbour = format!("ip neigh add 203.0.113.{last} lladdr 02:00:00:00:00:01 dev eth0");
        lab.node(1)?.run(&neighbour)?;
    }
    let woken = daemon.footprint()?.voluntary_switches - before;
    assert!(woken < 20, "{woken} context switches for 100 neighbours");
    Ok(())
}

/// Waits until a second passes without a context switch: a start is over then.
fn come_to_rest(daemon: &Flanneld) -> Result<()> {
    let mut last = (daemon.footprint()?.voluntary_switches, Instant::now());
    eventually(Duration::from_secs(30), "the daemon comes to rest", || {
        let now = daemon.footprint()?.voluntary_switches;
        if now != last.0 {
            last = (now, Instant::now());
        }
        ensure!(last.1.elapsed() > Duration::from_secs(1), "{now} context switches");
        Ok(())
    })
}
