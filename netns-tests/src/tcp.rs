//! TCP between pods, every byte checked: what arrives is compared with what must arrive at that place.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::pod::Pod;

const BLOCK: usize = 64 * 1024;
/// A connection on which nothing moves for this long has failed.
const STALL: Duration = Duration::from_secs(20);

/// A finished transfer.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// checked bytes, both directions together
    pub bytes: u64,
    /// time from the first byte to the last
    pub elapsed: Duration,
}

impl Transfer {
    /// Bits a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn rate(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Blocks of pseudo-random bytes, each marked with its stream and number, so that loss, repetition, exchange and
/// corruption all show.
struct Blocks {
    block: Vec<u8>,
    seed: u64,
    next: u64,
}

impl Blocks {
    fn new(seed: u64) -> Self {
        let mut state = seed | 1;
        let block = std::iter::repeat_with(|| {
            // xorshift64, Marsaglia 2003
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Self { block: block.take(BLOCK / 8).flatten().collect(), seed, next: 0 }
    }

    /// The next block; valid until the call after.
    fn advance(&mut self) -> &[u8] {
        let mark = [self.seed.to_le_bytes(), self.next.to_le_bytes()].concat();
        for (byte, mark) in self.block.iter_mut().zip(mark) {
            *byte = mark;
        }
        self.next += 1;
        &self.block
    }
}

/// Connects two pods: the client's socket in `from` and the server's in `to`. A socket stays in the network namespace it
/// was made in, whichever thread uses it afterwards.
fn connect(from: &Pod, to: &Pod) -> Result<(TcpStream, TcpStream)> {
    let listener = to.in_network(|| TcpListener::bind((to.address(), 0)).context("listen in a pod"))?;
    let address = listener.local_addr()?;
    let client = from.in_network(|| {
        TcpStream::connect_timeout(&address, STALL).with_context(|| format!("connect to {address}"))
    })?;
    let (server, _) = listener.accept().context("accept in a pod")?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(STALL))?;
        socket.set_write_timeout(Some(STALL))?;
    }
    Ok((client, server))
}

/// When a sender stops.
enum Limit<'a> {
    Blocks(u64),
    Until(Instant),
    /// 64 KiB every 2 ms until the flag is set
    Paced(&'a AtomicBool),
}

fn send(mut socket: &TcpStream, seed: u64, limit: &Limit) -> Result<()> {
    let mut blocks = Blocks::new(seed);
    while !match limit {
        Limit::Blocks(count) => blocks.next >= *count,
        Limit::Until(end) => Instant::now() >= *end,
        Limit::Paced(stop) => stop.load(Ordering::Relaxed),
    } {
        socket.write_all(blocks.advance()).with_context(|| format!("send block {}", blocks.next))?;
        if matches!(limit, Limit::Paced(_)) {
            thread::sleep(Duration::from_millis(2));
        }
    }
    socket.shutdown(Shutdown::Write).context("close the sending side")
}

/// Reads to the end of the stream and returns the number of bytes, all as they must be.
fn receive(mut socket: &TcpStream, seed: u64, longest_gap_us: &AtomicU64) -> Result<u64> {
    let (mut blocks, mut buffer) = (Blocks::new(seed), vec![0_u8; BLOCK]);
    let mut bytes = 0_u64;
    loop {
        let since = Instant::now();
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match socket.read(rest) {
                Ok(0) if filled == 0 => return Ok(bytes),
                Ok(0) => bail!("the stream ended inside block {}", blocks.next),
                Ok(length) => filled += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("receive block {}", blocks.next)),
            }
        }
        let number = blocks.next;
        ensure!(buffer == blocks.advance(), "block {number} arrived with other bytes than were sent");
        bytes += u64::try_from(filled)?;
        let gap = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        longest_gap_us.fetch_max(gap, Ordering::Relaxed);
    }
}

/// Sends `bytes` (rounded up to whole blocks) in both directions at once and checks every one.
///
/// # Errors
/// When the connection fails or a byte is wrong.
pub fn exchange(from: &Pod, to: &Pod, bytes: u64) -> Result<Transfer> {
    let (client, server) = connect(from, to)?;
    let blocks = bytes.div_ceil(u64::try_from(BLOCK)?);
    let (there, back, gap) = (bytes | 1, bytes.rotate_left(32) | 2, AtomicU64::new(0));
    let start = Instant::now();
    let received = thread::scope(|scope| -> Result<u64> {
        let senders = [
            scope.spawn(|| send(&client, there, &Limit::Blocks(blocks))),
            scope.spawn(|| send(&server, back, &Limit::Blocks(blocks))),
        ];
        let receivers =
            [scope.spawn(|| receive(&server, there, &gap)), scope.spawn(|| receive(&client, back, &gap))];
        let mut total = 0;
        for receiver in receivers {
            total += receiver.join().map_err(|_| anyhow!("a receiver panicked"))??;
        }
        for sender in senders {
            sender.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        Ok(total)
    })?;
    let expected = 2 * blocks * u64::try_from(BLOCK)?;
    ensure!(received == expected, "{received} bytes arrived of {expected}");
    Ok(Transfer { bytes: received, elapsed: start.elapsed() })
}

/// Sends checked bytes one way for `time`.
///
/// # Errors
/// When the connection fails or a byte is wrong.
pub fn throughput(from: &Pod, to: &Pod, time: Duration) -> Result<Transfer> {
    let (client, server) = connect(from, to)?;
    let (gap, start) = (AtomicU64::new(0), Instant::now());
    let bytes = thread::scope(|scope| -> Result<u64> {
        let sender = scope.spawn(|| send(&client, 7, &Limit::Until(start + time)));
        let bytes = receive(&server, 7, &gap)?;
        sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        Ok(bytes)
    })?;
    Ok(Transfer { bytes, elapsed: start.elapsed() })
}

/// A paced stream (about 30 MB/s) that runs while something is done to the overlay.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    longest_gap_us: Arc<AtomicU64>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<u64>>,
}

/// How a [`Stream`] went.
#[derive(Debug, Clone, Copy)]
pub struct StreamReport {
    /// checked bytes
    pub bytes: u64,
    /// longest time a block of 64 KiB needed to arrive
    pub longest_gap: Duration,
}

impl Stream {
    /// Connects two pods and starts sending.
    ///
    /// # Errors
    /// When they cannot be connected.
    pub fn start(from: &Pod, to: &Pod) -> Result<Self> {
        let (client, server) = connect(from, to)?;
        let (stop, gap) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, measured) = (Arc::clone(&stop), Arc::clone(&gap));
        let sender = thread::spawn(move || send(&client, 11, &Limit::Paced(&stopped)));
        let receiver = thread::spawn(move || receive(&server, 11, &measured));
        Ok(Self { stop, longest_gap_us: gap, sender, receiver })
    }

    /// Ends the stream and checks that all of it arrived.
    ///
    /// # Errors
    /// When the connection broke or a byte is wrong.
    pub fn finish(self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().map_err(|_| anyhow!("the sender panicked"))?.context("the sending side")?;
        let bytes = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        let longest_gap = Duration::from_micros(self.longest_gap_us.load(Ordering::Relaxed));
        Ok(StreamReport { bytes, longest_gap })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_differ_by_stream_and_number_and_repeat_by_seed() {
        let (mut one, mut same, mut other) = (Blocks::new(1), Blocks::new(1), Blocks::new(2));
        let first = one.advance().to_vec();
        assert_eq!(first.len(), BLOCK);
        assert_eq!(first, same.advance());
        assert_ne!(first, other.advance());
        assert_ne!(first, one.advance());
    }
}
