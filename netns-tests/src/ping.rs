//! `ping` running in a pod, or from node to node, while something is done to the overlay, and what it lost.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::eventually::eventually;
use crate::namespaces::Entry;
use crate::node::Node;
use crate::pod::Pod;

/// Generous, so that a repair on a loaded machine does not fail a test.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a ping saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PingReport {
    /// number of the last request that was answered
    pub last: u64,
    /// answers received, not counting duplicates
    pub received: u64,
}

impl PingReport {
    /// Requests that were not answered although a later one was. Requests still on their way are not counted.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.last.saturating_sub(self.received)
    }

    /// Takes one line of ping's output.
    fn read(&mut self, line: &str) {
        if line.contains("(DUP!)") || !line.contains(" bytes from ") {
            return;
        }
        let after = line.split_once("icmp_seq=").map(|(_, rest)| rest);
        let sequence = after.and_then(|rest| rest.split_whitespace().next()?.parse::<u16>().ok());
        let Some(sequence) = sequence else { return };
        self.received += 1;
        // ping prints 16 bits: the number meant is the one nearest to the last.
        let last = u16::try_from(self.last & 0xffff).unwrap_or_default();
        let ahead = sequence.wrapping_sub(last);
        if ahead < 0x8000 {
            self.last += u64::from(ahead);
        }
    }
}

/// When the last answer came, and the longest time without one.
#[derive(Debug)]
struct Silence {
    last: Instant,
    longest: Duration,
}

impl Silence {
    fn new() -> Self {
        Self { last: Instant::now(), longest: Duration::ZERO }
    }

    fn answered(&mut self, now: Instant) {
        self.longest = self.longest.max(now.saturating_duration_since(self.last));
        self.last = now;
    }
}

/// A running ping. It is killed when this value is dropped.
#[derive(Debug)]
pub struct Ping {
    child: Child,
    report: Arc<Mutex<PingReport>>,
    silence: Arc<Mutex<Silence>>,
    reader: Option<JoinHandle<()>>,
}

impl Ping {
    /// Starts a ping that sends every `interval` seconds, e.g. `0.002`, and waits for its first answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn start(from: &Pod, to: Ipv4Addr, interval: &str) -> Result<Self> {
        Self::start_with(to, interval, |command| from.spawn(command))
    }

    /// The same from a node, outside of the overlay.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn start_below(from: &Node, to: Ipv4Addr, interval: &str) -> Result<Self> {
        Self::start_with(to, interval, |command| from.spawn(command, &Entry::Node))
    }

    fn start_with(
        to: Ipv4Addr,
        interval: &str,
        spawn: impl FnOnce(&mut Command) -> Result<Child>,
    ) -> Result<Self> {
        let mut command = Command::new("ping");
        command.args(["-n", "-i", interval, &to.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = spawn(&mut command)?;
        let output = child.stdout.take().context("ping has no standard output")?;
        let report = Arc::<Mutex<PingReport>>::default();
        let silence = Arc::new(Mutex::new(Silence::new()));
        let shared = (Arc::clone(&report), Arc::clone(&silence));
        let reader = thread::spawn(move || read(output, &shared.0, &shared.1));
        let ping = Self { child, report, silence, reader: Some(reader) };
        ping.wait_answers(1)?;
        Ok(ping)
    }

    /// What was seen up to now.
    #[must_use]
    pub fn report(&self) -> PingReport {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest time between two answers since the last [`Ping::forget_silence`].
    #[must_use]
    pub fn longest_silence(&self) -> Duration {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner).longest
    }

    /// Measures silence from now on.
    pub fn forget_silence(&self) {
        *self.silence.lock().unwrap_or_else(PoisonError::into_inner) = Silence::new();
    }

    /// Waits for `more` further answers.
    ///
    /// # Errors
    /// When they do not come within 20 seconds.
    pub fn wait_answers(&self, more: u64) -> Result<()> {
        let start = self.report().received;
        eventually(DEADLINE, "answers to ping", || {
            let now = self.report();
            ensure!(now.received >= start + more, "{now:?}");
            Ok(())
        })
    }

    /// Waits until the path works (20 further answers); nothing may have been lost since the start.
    ///
    /// # Errors
    /// When something was, or there are no answers any more.
    pub fn ensure_none_lost(&self) -> Result<()> {
        self.wait_answers(20)?;
        let report = self.report();
        ensure!(report.lost() == 0, "{} of {} pings were lost", report.lost(), report.last);
        Ok(())
    }

    /// Waits until the path works (20 further answers), ends the ping and returns what it saw.
    ///
    /// # Errors
    /// When there are no answers any more.
    pub fn finish(mut self) -> Result<PingReport> {
        self.wait_answers(20)?;
        self.end();
        Ok(self.report())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        self.end();
    }
}

fn read(output: ChildStdout, report: &Mutex<PingReport>, silence: &Mutex<Silence>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        let before = report.received;
        report.read(&line);
        if report.received > before {
            silence.lock().unwrap_or_else(PoisonError::into_inner).answered(Instant::now());
        }
    }
}

/// One ping with a deadline: its round trip time in milliseconds.
///
/// # Errors
/// When there is no answer within 2 seconds.
pub fn ping_once(from: &Pod, to: Ipv4Addr) -> Result<f64> {
    let shown = from.run(&format!("ping -n -c 1 -W 2 {to}"))?;
    let time = shown.split_once("time=").and_then(|(_, rest)| rest.split_whitespace().next());
    time.context("ping names no time")?.parse().context("the time ping names")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(sequences: &[u16]) -> PingReport {
        let mut report = PingReport::default();
        for sequence in sequences {
            report.read(&format!("64 bytes from 10.200.1.2: icmp_seq={sequence} ttl=62 time=0.04 ms"));
        }
        report
    }

    #[test]
    fn a_gap_is_a_loss_and_an_open_end_is_none() {
        assert_eq!(read_all(&[1, 2, 4]).lost(), 1);
        assert_eq!(read_all(&[1, 2, 3]).lost(), 0);
        assert_eq!(read_all(&[1, 3, 2]).lost(), 0);
    }

    #[test]
    fn numbers_go_on_after_the_16_bit_turn() {
        let mut report = PingReport { last: 0xffff, received: 0xffff };
        report.read("64 bytes from 10.200.1.2: icmp_seq=0 ttl=62 time=0.04 ms");
        report.read("64 bytes from 10.200.1.2: icmp_seq=2 ttl=62 time=0.04 ms");
        assert_eq!((report.last, report.lost()), (0x1_0002, 1));
    }

    #[test]
    fn the_longest_silence_is_kept() {
        let mut silence = Silence::new();
        let start = silence.last;
        for ms in [1, 51, 53] {
            silence.answered(start + Duration::from_millis(ms));
        }
        assert_eq!(silence.longest, Duration::from_millis(50));
    }

    #[test]
    fn other_lines_do_not_count() {
        let mut report = PingReport::default();
        report.read("From 10.200.1.1 icmp_seq=1 Destination Host Unreachable");
        report.read("64 bytes from 10.200.1.2: icmp_seq=1 ttl=62 time=0.04 ms (DUP!)");
        assert_eq!(report, PingReport::default());
    }
}
