//! Waiting for others by `flock(2)`, with an end to the patience.
//!
//! A runtime that loses patience kills the plugin and nothing else: the delegate goes on, and a DEL beside it would find
//! nothing to undo yet. So every delegate that works on an attachment inherits a lock on the attachment's state file.
//! The kernel gives it back when the last process that has it is gone, however that came.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// A locked file; given back when dropped, also for processes that inherited it.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock on an existing file and waits at most `patience` for whoever has it; `before_waiting` is called
    /// once, if at all. `None` when there is no such file or it is still locked.
    pub fn acquire(path: &Path, patience: Duration, before_waiting: impl FnOnce()) -> Option<Self> {
        const PAUSE: Duration = Duration::from_millis(5);
        let start = Instant::now();
        let mut before_waiting = Some(before_waiting);
        let file = File::open(path).ok()?;
        loop {
            match file.try_lock() {
                Ok(()) => return Some(Self(file)),
                Err(TryLockError::WouldBlock) if start.elapsed() < patience => {}
                Err(_) => return None,
            }
            if let Some(announce) = before_waiting.take() {
                announce();
            }
            thread::sleep(PAUSE);
        }
    }

    /// From now on every process that this one starts has the lock too, and so have those that they start.
    #[must_use]
    pub fn bequeathed(self) -> Self {
        // Failing costs only the protection against a kill.
        let _ = fcntl(&self.0, FcntlArg::F_SETFD(FdFlag::empty()));
        self
    }
}

impl Drop for Lock {
    /// Closing alone would leave it to a daemon that a delegate started.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_free_file_is_locked_at_once_and_a_missing_one_never() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        let acquire = |patience| Lock::acquire(&path, patience, || panic!("waited"));
        assert!(acquire(Duration::from_secs(60)).is_none());
        File::create(&path).unwrap();
        let held = acquire(Duration::from_secs(60)).unwrap();
        assert!(acquire(Duration::ZERO).is_none());
        drop(held);
        assert!(acquire(Duration::ZERO).is_some());
    }

    #[test]
    fn patience_ends_and_waiting_is_announced_once() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let _held = Lock::acquire(scratch.path(), Duration::ZERO, || ()).unwrap();
        let announced = Cell::new(0);
        let announce = || announced.set(announced.get() + 1);
        assert!(Lock::acquire(scratch.path(), Duration::from_millis(30), announce).is_none());
        assert_eq!(announced.get(), 1);
    }
}
