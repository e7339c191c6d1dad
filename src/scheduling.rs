//! Our turns on the processor: short, so that they come soon.

use std::io;
use std::mem::{size_of, zeroed};
use std::time::Duration;

use nix::libc;

/// What a change of a lease takes from wake-up to sleep (`cargo lab bench --only changes`). The kernel grants 0.1 to 100 ms.
const SLICE: Duration = Duration::from_micros(300);

/// Asks the kernel for short turns in place of its default of some milliseconds, for the calling thread and those it starts. Who
/// asks for little is served sooner when it wakes up, so that a new peer's entries wait less while others want the processor too;
/// the share of CPU stays what it is (`Documentation/scheduler/sched-eevdf.rst`).
///
/// Linux before 6.12 takes the request and does nothing. A policy that somebody chose for us (`CPUSchedulingPolicy=`) stays.
///
/// # Errors
/// When the kernel refuses, as a container's seccomp profile may have it. All works without.
pub fn ask_for_short_turns() -> io::Result<()> {
    let mut attributes = attributes()?;
    if i32::try_from(attributes.sched_policy) != Ok(libc::SCHED_OTHER) {
        return Ok(());
    }
    attributes.sched_runtime = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel only reads `attributes`, whose own field says how long they are.
    outcome(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// Those of the calling thread.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: all zeros is a valid `sched_attr`: numbers.
    let mut attributes: libc::sched_attr = unsafe { zeroed() };
    let length = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes no more than `length` bytes, and `attributes` has as many.
    outcome(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, length, 0) })?;
    Ok(attributes)
}

fn outcome(returned: libc::c_long) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn policy_and_nice(attributes: &libc::sched_attr) -> (u32, i32) {
        (attributes.sched_policy, attributes.sched_nice)
    }

    #[test]
    fn turns_get_short_and_nothing_else_changes() {
        let (before, after, of_a_child) = thread::spawn(|| {
            let before = attributes().unwrap();
            ask_for_short_turns().unwrap();
            (before, attributes().unwrap(), thread::spawn(|| attributes().unwrap()).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(policy_and_nice(&after), policy_and_nice(&before));
        // 0: Linux before 6.12.
        let expected = if before.sched_runtime == 0 { 0 } else { 300_000 };
        assert_eq!((after.sched_runtime, of_a_child.sched_runtime), (expected, expected), "nanoseconds");
    }

    #[test]
    fn a_policy_that_somebody_chose_stays() {
        let (before, after) = thread::spawn(|| {
            let idle = libc::sched_param { sched_priority: 0 };
            // SAFETY: the kernel reads `idle`, which outlives the call.
            assert_eq!(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const idle) }, 0);
            let before = attributes().unwrap();
            ask_for_short_turns().unwrap();
            (before, attributes().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(i32::try_from(after.sched_policy), Ok(libc::SCHED_IDLE));
        assert_eq!(after.sched_runtime, before.sched_runtime);
    }
}
