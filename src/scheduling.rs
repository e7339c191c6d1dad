//! Our time slices: short, so that they come soon.

use std::io;
use std::mem::size_of;

use nix::libc;

/// Nanoseconds: about the CPU that a change of a lease takes (`cargo lab bench --only changes`). The kernel grants 0.1 to 100 ms.
const SLICE: u64 = 300_000;

/// Asks the kernel for slices of 0.3 ms in place of its default of 0.7 to 3 ms, for the calling thread and for the threads and
/// children that it starts. Who asks for little is served sooner when it wakes up, so that a new peer's entries wait less while
/// others want the processor too; the share of CPU stays what it is (`Documentation/scheduler/sched-eevdf.rst`).
///
/// Only under the policy that everybody has (`SCHED_OTHER`), and never for longer ones than there are: the rest is what somebody
/// chose for us (`CPUSchedulingPolicy=`, `chrt(1)`). Linux before 6.12 takes the request and does nothing.
///
/// # Errors
/// When the kernel refuses, as a filter of system calls may have it (seccomp). Nothing depends on it.
pub fn ask_for_short_slices() -> io::Result<()> {
    let mut attributes = get()?;
    if i32::try_from(attributes.sched_policy) != Ok(libc::SCHED_OTHER) {
        return Ok(());
    }
    attributes.sched_runtime = attributes.sched_runtime.min(SLICE);
    set(attributes)
}

/// `sched_getattr(2)` of the calling thread.
fn get() -> io::Result<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let length = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes `length` bytes at most, and `attributes` has as many.
    outcome(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, length, 0) })?;
    Ok(attributes)
}

/// `sched_setattr(2)` for the calling thread. `attributes` are those that [`get`] returned, changed.
fn set(mut attributes: libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `size` says, which it has filled in itself, and at most writes that field.
    outcome(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0) })
}

fn outcome(returned: libc::c_long) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What a thread has that was `prepared` before it asked, before and after, and a thread that it started then.
    fn asked(
        prepared: impl FnOnce(libc::sched_attr) -> libc::sched_attr + Send + 'static,
    ) -> [libc::sched_attr; 3] {
        let asking = thread::spawn(|| {
            set(prepared(get().unwrap())).unwrap();
            let before = get().unwrap();
            ask_for_short_slices().unwrap();
            [before, get().unwrap(), thread::spawn(|| get().unwrap()).join().unwrap()]
        });
        asking.join().unwrap()
    }

    fn policy(number: i32) -> u32 {
        u32::try_from(number).unwrap()
    }

    #[test]
    fn slices_get_short_and_nothing_else_changes() {
        let [before, after, child] = asked(|found| libc::sched_attr {
            sched_policy: policy(libc::SCHED_OTHER),
            sched_nice: 5,
            ..found
        });
        assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, 5));
        // 0: Linux before 6.12.
        let expected = if before.sched_runtime == 0 { 0 } else { 300_000 };
        assert_eq!((after.sched_runtime, child.sched_runtime), (expected, expected), "nanoseconds");
    }

    #[test]
    fn what_somebody_chose_stays() {
        let [before, after, _] =
            asked(|found| libc::sched_attr { sched_policy: policy(libc::SCHED_BATCH), ..found });
        assert_eq!(
            (after.sched_policy, after.sched_runtime),
            (policy(libc::SCHED_BATCH), before.sched_runtime)
        );
        let [before, after, _] = asked(|found| libc::sched_attr {
            sched_policy: policy(libc::SCHED_OTHER),
            sched_runtime: 100_000,
            ..found
        });
        assert_eq!(after.sched_runtime, before.sched_runtime);
    }
}
