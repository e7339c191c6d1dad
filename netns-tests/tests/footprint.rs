//! What a daemon with one peer costs while nothing happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::{Lab, Spec, eventually};

#[test]
fn a_daemon_with_one_peer_is_small_and_idle() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    // Start-up is over when a second passes without a context switch.
    let mut last = (daemons[0].footprint()?.voluntary_switches, Instant::now());
    eventually(Duration::from_secs(30), "the daemon comes to rest", || {
        let now = daemons[0].footprint()?.voluntary_switches;
        if now != last.0 {
            last = (now, Instant::now());
        }
        ensure!(last.1.elapsed() > Duration::from_secs(1), "{now} context switches");
        Ok(())
    })?;
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
