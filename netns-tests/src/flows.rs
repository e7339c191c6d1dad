//! New flows out of a pod, a thousand a second, and with which source address they arrive outside of the overlay.
//!
//! Masquerading is decided once per flow, so only new flows show whether the rules are whole.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::eventually::eventually;
use crate::node::Node;
use crate::pod::Pod;

const PERIOD: Duration = Duration::from_millis(1);
/// Source ports used one after the other. The kernel has to forget a flow before its port comes again.
const PORTS: std::ops::Range<u16> = 5_000..60_000;
/// Generous, so that a repair on a loaded machine does not fail a test.
const DEADLINE: Duration = Duration::from_secs(20);

/// The running flows.
#[derive(Debug)]
pub struct Flows {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

/// What has arrived since somebody began to look.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// flows with the expected source address
    pub right: u64,
    /// flows with another one
    pub wrong: u64,
    /// the longest time between two right ones
    pub longest_gap: Duration,
    last: Instant,
}

impl Seen {
    fn new() -> Self {
        Self { right: 0, wrong: 0, longest_gap: Duration::ZERO, last: Instant::now() }
    }

    fn arrived(&mut self, right: bool, now: Instant) {
        if right {
            self.right += 1;
            self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last));
            self.last = now;
        } else {
            self.wrong += 1;
        }
    }
}

/// Sends flows from a pod to an address of `to` while `work` runs. Right are those that arrive from `source`.
///
/// # Errors
/// When none arrives, and what `work` returns.
pub fn with_flows<T>(
    from: &Pod,
    (to, target): (&Node, Ipv4Addr),
    source: Ipv4Addr,
    work: impl FnOnce(&Flows) -> Result<T>,
) -> Result<T> {
    let receiver = to.in_network(|| UdpSocket::bind((target, 0)).context("listen outside"))?;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let port = receiver.local_addr()?.port();
    let flows = Flows { stop: AtomicBool::new(false), seen: Mutex::new(Seen::new()) };
    thread::scope(|scope| {
        let sender = scope.spawn(|| from.in_network(|| flows.send(SocketAddrV4::new(target, port))));
        let reader = scope.spawn(|| flows.receive(&receiver, source));
        let result = {
            let _stop = StopOnDrop(&flows.stop);
            flows.wait_right(100).and_then(|()| work(&flows))
        };
        sender.join().map_err(|_| anyhow!("the sender panicked"))?.context("the sender of flows")?;
        reader.join().map_err(|_| anyhow!("the receiver panicked"))?;
        result
    })
}

/// Ends the threads even when a test panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Flows {
    fn send(&self, target: SocketAddrV4) -> Result<()> {
        let mut ports = PORTS.cycle();
        while !self.stop.load(Ordering::Relaxed) {
            let port = ports.next().unwrap_or(PORTS.start);
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("open a flow")?;
            socket.send_to(b"flow", target).context("send a flow")?;
            thread::sleep(PERIOD);
        }
        Ok(())
    }

    fn receive(&self, receiver: &UdpSocket, source: Ipv4Addr) {
        let mut buffer = [0; 16];
        while !self.stop.load(Ordering::Relaxed) {
            // Only the time limit ends a call without a datagram.
            if let Ok((_, from)) = receiver.recv_from(&mut buffer) {
                let right = from.ip() == IpAddr::V4(source);
                self.lock().arrived(right, Instant::now());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has arrived so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        *self.lock()
    }

    /// Counts anew from here.
    pub fn forget(&self) {
        *self.lock() = Seen::new();
    }

    /// Waits until `more` further flows have arrived as they should.
    ///
    /// # Errors
    /// When they do not come within 20 seconds.
    pub fn wait_right(&self, more: u64) -> Result<()> {
        let start = self.seen().right;
        eventually(DEADLINE, "flows with the right source address", || {
            let seen = self.seen();
            ensure!(seen.right >= start + more, "{seen:?}");
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_right_flows_end_a_gap() {
        let mut seen = Seen::new();
        let start = seen.last;
        for (ms, right) in [(1, true), (5, false), (31, true), (33, true)] {
            seen.arrived(right, start + Duration::from_millis(ms));
        }
        assert_eq!((seen.right, seen.wrong, seen.longest_gap), (3, 1, Duration::from_millis(30)));
    }
}
