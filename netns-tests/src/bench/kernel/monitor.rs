//! When each entry appears, changes or goes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::{Pid, gettid};

use super::{
    HEADER, Messages, NUD_PERMANENT, RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWNEIGH, RTM_NEWROUTE,
    RTMGRP_IPV4_ROUTE, RTMGRP_NEIGH, open, u16_at,
};
use crate::eventually::eventually;
use crate::node::Node;

/// What has changed, with the times.
#[derive(Debug, Default)]
struct Seen {
    /// When each /24 route appeared last.
    routes: BTreeMap<Ipv4Addr, Instant>,
    /// When each /24 route went last.
    gone: BTreeMap<Ipv4Addr, Instant>,
    /// When each permanent neighbour appeared or changed last.
    neighbours: BTreeMap<Ipv4Addr, Instant>,
    /// Every notification about routes, neighbours and FDB entries of the overlay device.
    changes: usize,
    /// The socket overflowed: nothing can be said.
    lost: bool,
}

/// What can happen to one peer's lease, and the entry that tells that the kernel has followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Step {
    /// its route appears
    Added,
    /// its neighbour entry has another MAC
    Changed,
    /// its route goes
    Removed,
}

/// Listens to a node's kernel in a thread of its own.
pub(in crate::bench) struct Monitor {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Pid,
    reader: Option<JoinHandle<()>>,
}

impl Monitor {
    pub(in crate::bench) fn start(node: &Node) -> Result<Self> {
        let fd = node.in_network(|| open(RTMGRP_NEIGH | RTMGRP_IPV4_ROUTE))?;
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (list, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let (told, heard) = mpsc::channel();
        let reader = thread::spawn(move || {
            let _ = told.send(gettid());
            listen(&fd, &list, &stopped);
        });
        let thread = heard.recv().context("the listener ended")?;
        Ok(Self { seen, stop, thread, reader: Some(reader) })
    }

    /// Real-time priority for the listener, so that it does not wait until the daemon has finished with everything else. Not for
    /// bursts: with thousands of notifications it would take the processor from the daemon that is measured.
    pub(in crate::bench) fn take_precedence(&self) -> Result<()> {
        let thread = self.thread.to_string();
        let status = Command::new("chrt").args(["--fifo", "--pid", "1", &thread]).status().context("chrt")?;
        ensure!(status.success(), "chrt gave the listener no real-time priority");
        Ok(())
    }

    fn look<T>(&self, at: impl FnOnce(&mut Seen) -> T) -> T {
        at(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets everything seen so far.
    pub(in crate::bench) fn reset(&self) {
        self.look(|seen| *seen = Seen::default());
    }

    /// How many notifications about our kinds of entries came since the last reset.
    pub(in crate::bench) fn changes(&self) -> usize {
        self.look(|seen| seen.changes)
    }

    /// Waits until `count` different routes have appeared since the last reset; when the last of them did.
    pub(in crate::bench) fn wait_added(&self, count: usize, within: Duration) -> Result<Instant> {
        self.wait(within, |seen| (&seen.routes, count))
    }

    /// Waits until `count` different routes have gone since the last reset; when the last of them did.
    pub(in crate::bench) fn wait_removed(&self, count: usize, within: Duration) -> Result<Instant> {
        self.wait(within, |seen| (&seen.gone, count))
    }

    fn wait(
        &self,
        within: Duration,
        of: impl Fn(&Seen) -> (&BTreeMap<Ipv4Addr, Instant>, usize),
    ) -> Result<Instant> {
        let start = Instant::now();
        loop {
            let (last, have, wanted, lost) = self.look(|seen| {
                let (times, wanted) = of(seen);
                (times.values().max().copied(), times.len(), wanted, seen.lost)
            });
            ensure!(!lost, "notifications were lost; the measurement is void");
            match last {
                Some(last) if have >= wanted => return Ok(last),
                _ if start.elapsed() > within => bail!("{have} of {wanted} routes after {within:?}"),
                _ => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Waits until one peer's entry is as the step leaves it; when it became so. Counts from the last reset.
    pub(in crate::bench) fn wait_step(
        &self,
        step: Step,
        subnet: Ipv4Addr,
        within: Duration,
    ) -> Result<Instant> {
        let find = |seen: &Seen| {
            let times = match step {
                Step::Added => &seen.routes,
                Step::Changed => &seen.neighbours,
                Step::Removed => &seen.gone,
            };
            times.get(&subnet).copied()
        };
        eventually(within, "one peer's entry", || {
            self.look(|seen| {
                ensure!(!seen.lost, "notifications were lost; the measurement is void");
                find(seen).context("not seen")
            })
        })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn listen(fd: &OwnedFd, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let mut buffer = vec![0_u8; 256 << 10];
    while !stop.load(Ordering::Relaxed) {
        match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                let at = Instant::now();
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                for message in Messages(buffer.get(..length).unwrap_or_default()) {
                    seen.note(message, at);
                }
            }
            Err(nix::Error::ENOBUFS) => seen.lock().unwrap_or_else(PoisonError::into_inner).lost = true,
            Err(_) => {}
        }
    }
}

impl Seen {
    fn note(&mut self, message: &[u8], at: Instant) {
        let kind = u16_at(message, 4);
        match kind {
            // ndmsg: only permanent entries; the kernel's own learning is none of our business.
            RTM_NEWNEIGH | RTM_DELNEIGH if u16_at(message, HEADER + 8) & NUD_PERMANENT != 0 => {
                self.changes += 1;
                if let (RTM_NEWNEIGH, Some(2), Some(ip)) = (kind, message.get(HEADER), destination(message)) {
                    self.neighbours.insert(ip, at);
                }
            }
            // rtmsg: byte 1 is the destination's length
            RTM_NEWROUTE | RTM_DELROUTE if message.get(HEADER + 1) == Some(&24) => {
                self.changes += 1;
                let Some(subnet) = destination(message) else { return };
                let times = if kind == RTM_NEWROUTE { &mut self.routes } else { &mut self.gone };
                times.insert(subnet, at);
            }
            _ => {}
        }
    }
}

/// `RTA_DST` of a route message, `NDA_DST` of a neighbour message: both have the number 1 and a header of 12 bytes.
fn destination(message: &[u8]) -> Option<Ipv4Addr> {
    let mut rest = message.get(HEADER + 12..)?;
    loop {
        let length = usize::from(u16_at(rest, 0));
        let attribute = rest.get(..length).filter(|attribute| attribute.len() >= 4)?;
        if u16_at(attribute, 2) == 1 {
            let address: [u8; 4] = attribute.get(4..8)?.try_into().ok()?;
            return Some(address.into());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Metrics, Peer, batch};
    use super::*;

    #[test]
    fn what_is_sent_is_recognised_when_it_comes_back() {
        let bytes = batch(&[Peer::new(0), Peer::new(1)], 7, Metrics::Same).unwrap();
        let mut seen = Seen::default();
        for message in Messages(&bytes) {
            seen.note(message, Instant::now());
        }
        assert_eq!(seen.changes, 6);
        assert_eq!(
            seen.routes.into_keys().collect::<Vec<_>>(),
            [Peer::new(1).subnet(), Peer::new(0).subnet()]
        );
    }
}
