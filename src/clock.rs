//! Time as leases need it: it goes on while the machine sleeps, and nobody can set it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A point on `CLOCK_BOOTTIME`: the time since the machine started, suspend included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// Later by `duration`.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// The time from `earlier` to `self`, zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Tells the time without being able to wait for it. Free to copy into tasks.
#[derive(Debug, Clone, Copy)]
pub enum Now {
    /// `CLOCK_BOOTTIME`
    Boot,
    /// Tokio's clock since this instant.
    Tokio(tokio::time::Instant),
}

impl Now {
    /// The time now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock for everybody")]
    pub fn now(self) -> BootTime {
        match self {
            Self::Boot => {
                BootTime(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from))
            }
            Self::Tokio(start) => BootTime(start.elapsed()),
        }
    }
}

/// Where the time comes from.
#[derive(Debug)]
pub enum Clock {
    /// The kernel's `CLOCK_BOOTTIME`, waited for with one timerfd.
    Boot(AsyncFd<OwnedTimer>),
    /// Tokio's clock, which tests can pause and advance.
    Tokio(tokio::time::Instant),
}

/// A timerfd that can be registered with the runtime.
#[derive(Debug)]
pub struct OwnedTimer {
    timer: TimerFd,
    /// When it goes off: who waits for the same time again need not set it.
    armed: Option<BootTime>,
}

impl AsRawFd for OwnedTimer {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_fd().as_raw_fd()
    }
}

impl OwnedTimer {
    fn arm(&mut self, due: BootTime) -> nix::Result<()> {
        if self.armed.replace(due) == Some(due) {
            return Ok(());
        }
        // Zero would disarm the timer.
        let at = TimeSpec::from(due.0.max(Duration::from_nanos(1)));
        let set = self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME);
        set.inspect_err(|_| self.armed = None)
    }

    /// Takes the expiration out; `EAGAIN` as long as there is none.
    fn expired(&self) -> io::Result<()> {
        nix::unistd::read(&self.timer, &mut [0; 8])?;
        Ok(())
    }
}

impl Clock {
    /// The kernel's clock.
    ///
    /// # Errors
    /// When the kernel gives no timer (out of file descriptors).
    pub fn boot() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(TimerClock::CLOCK_BOOTTIME, flags)?;
        let timer = OwnedTimer { timer, armed: None };
        // SAFETY: the timer owns its descriptor and always gives the same one; it is moved into the `AsyncFd`.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self::Boot(timer))
    }

    /// For what somebody does every now and then: the kernel's clock, or tokio's if there is no timer to be had. Tokio is woken up to
    /// three times for one timer of half a minute, as it sorts its timers by how soon they are due.
    #[must_use]
    pub fn boot_or_tokio() -> Self {
        Self::boot().unwrap_or_else(|_| Self::tokio())
    }

    /// Tokio's clock, starting now.
    #[must_use]
    pub fn tokio() -> Self {
        Self::Tokio(tokio::time::Instant::now())
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> BootTime {
        self.teller().now()
    }

    /// The same clock for tasks that only look.
    #[must_use]
    pub fn teller(&self) -> Now {
        match self {
            Self::Boot(_) => Now::Boot,
            Self::Tokio(start) => Now::Tokio(*start),
        }
    }

    /// Waits for `duration`. Cancel-safe, but then it begins anew.
    pub async fn sleep(&mut self, duration: Duration) {
        self.sleep_until(Some(self.now().after(duration))).await;
    }

    /// Waits until `due`; for ever when there is no due time. Cancel-safe.
    pub async fn sleep_until(&mut self, due: Option<BootTime>) {
        let Some(due) = due else { return std::future::pending().await };
        match self {
            Self::Tokio(start) => tokio::time::sleep_until(*start + due.0).await,
            Self::Boot(timer) => wait(timer, due).await,
        }
    }
}

/// An error of a timer that exists leaves nothing to wait for; a short pause keeps the caller from spinning.
async fn wait(timer: &mut AsyncFd<OwnedTimer>, due: BootTime) {
    if timer.get_mut().arm(due).is_err() {
        return tokio::time::sleep(Duration::from_millis(100)).await;
    }
    while let Ok(mut ready) = timer.readable().await {
        if ready.try_io(|timer| timer.get_ref().expired()).is_ok() {
            break;
        }
    }
    timer.get_mut().armed = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_due_time_in_the_past_or_at_zero_is_over_at_once() {
        runtime().block_on(async {
            let mut clock = Clock::boot().unwrap();
            clock.sleep_until(Some(BootTime::default())).await;
            clock.sleep_until(Some(clock.now())).await;
        });
    }

    #[test]
    fn waiting_ends_at_the_due_time_and_can_be_cancelled_and_repeated() {
        runtime().block_on(async {
            let mut clock = Clock::boot().unwrap();
            let due = clock.now().after(Duration::from_millis(20));
            tokio::select! {
                () = clock.sleep_until(Some(due)) => panic!("too early"),
                () = std::future::ready(()) => {}
            }
            clock.sleep_until(Some(due)).await;
            assert!(clock.now() >= due);
            // A due time that is over is not waited for as one that is still armed.
            clock.sleep_until(Some(due)).await;
        });
    }

    #[tokio::test(start_paused = true)]
    async fn tests_can_move_time() {
        let mut clock = Clock::tokio();
        clock.sleep_until(Some(clock.now().after(Duration::from_secs(86_400)))).await;
        assert_eq!(clock.now().0, Duration::from_secs(86_400));
    }
}
