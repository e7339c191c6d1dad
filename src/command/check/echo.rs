//! ICMP echo requests to many addresses at once, on one raw socket. Only sends, receives and counts.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// How often a request is repeated, and how long each round waits for the last answer.
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_millis(700);
/// Headers in front of what an echo request carries: IPv4 without options, ICMP.
const HEADERS: usize = 20 + 8;
/// Requests that are numbered together: the number has 16 bits.
const WAVE: usize = 4096;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    /// Whom to ask.
    pub(super) to: Ipv4Addr,
    /// Length of the whole IPv4 packet in bytes; it is never sent in pieces.
    pub(super) length: usize,
}

/// Which probes were answered, in their order. Ends as soon as all are.
///
/// # Errors
/// When there is no raw socket: not root.
pub(super) fn echo(probes: &[Probe]) -> io::Result<Vec<bool>> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    keep_whole(&socket)?;
    // What does not fit is asked again in the next round.
    let _ = socket.set_recv_buffer_size(4 << 20);
    let mut answered = Vec::new();
    for wave in probes.chunks(WAVE) {
        answered.extend(one_wave(&socket, wave)?);
    }
    Ok(answered)
}

/// Sends with "don't fragment", whatever the kernel believes about the path (`IP_PMTUDISC_PROBE` in `ip(7)`).
fn keep_whole(socket: &Socket) -> io::Result<()> {
    let how = libc::IP_PMTUDISC_PROBE;
    let length = libc::socklen_t::try_from(size_of_val(&how)).unwrap_or_default();
    let fd = socket.as_raw_fd();
    // SAFETY: `how` lives until the call returns, and `length` is its size.
    let result = unsafe {
        libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, (&raw const how).cast(), length)
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

fn one_wave(socket: &Socket, probes: &[Probe]) -> io::Result<Vec<bool>> {
    let identifier = u16::try_from(std::process::id() & 0xffff).unwrap_or(1);
    let mut open: BTreeSet<usize> = (0..probes.len()).collect();
    for _ in 0..ROUNDS {
        for (number, probe) in probes.iter().enumerate().filter(|(number, _)| open.contains(number)) {
            let to = SocketAddrV4::new(probe.to, 0).into();
            let request = request(identifier, u16::try_from(number).unwrap_or(0), probe.length);
            // An address without a route, or a packet larger than the interface takes, is not answered.
            let _ = socket.send_to(&request, &to);
        }
        let end = Instant::now() + ROUND;
        while !open.is_empty() && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let Some((from, number)) = receive(socket, identifier)? else { continue };
            if probes.get(number).is_some_and(|probe| probe.to == from) {
                open.remove(&number);
            }
        }
    }
    Ok((0..probes.len()).map(|number| !open.contains(&number)).collect())
}

/// The sender and number of an answer to one of our requests.
fn receive(socket: &Socket, identifier: u16) -> io::Result<Option<(Ipv4Addr, usize)>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 64];
    match socket.recv_from(&mut buffer) {
        Ok((length, sender)) => {
            // SAFETY: the kernel has written the first `length` bytes.
            let bytes = buffer.iter().take(length).map(|byte| unsafe { byte.assume_init() });
            let packet: Vec<u8> = bytes.collect();
            let from = sender.as_socket_ipv4().map(|sender| *sender.ip());
            Ok(from.zip(number_of(&packet, identifier)))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        },
    }
}

/// An echo request that makes an IPv4 packet of `length` bytes.
fn request(identifier: u16, number: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend(identifier.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.resize(length.saturating_sub(HEADERS) + bytes.len(), 0);
    let checksum = checksum(&bytes).to_be_bytes();
    for (place, byte) in bytes.iter_mut().skip(2).zip(checksum) {
        *place = byte;
    }
    bytes
}

/// The number of an echo reply to `identifier`, out of an IPv4 packet.
fn number_of(packet: &[u8], identifier: u16) -> Option<usize> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let [0, 0, _, _, high, low, number @ ..] = packet.get(header..header + 8)? else { return None };
    let number = u16::from_be_bytes(number.try_into().ok()?);
    (u16::from_be_bytes([*high, *low]) == identifier).then_some(usize::from(number))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(u16::from_be_bytes([high, 0])),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_length_and_a_right_checksum() {
        for length in [28, 64, 1450] {
            let bytes = request(0x1234, 7, length);
            assert_eq!(bytes.len() + 20, length);
            assert_eq!(checksum(&bytes), 0, "a right checksum makes the sum of all come out as zero");
        }
    }

    #[test]
    fn only_answers_to_our_requests_are_heard() {
        let packet = |kind: u8, identifier: u16| {
            let mut packet = vec![0x46; 1];
            packet.resize(24, 0);
            packet.extend([kind, 0, 0xaa, 0xbb]);
            packet.extend(identifier.to_be_bytes());
            packet.extend([1, 2]);
            packet
        };
        assert_eq!(number_of(&packet(0, 7), 7), Some(0x102));
        assert_eq!(number_of(&packet(0, 8), 7), None, "somebody else's ping");
        assert_eq!(number_of(&packet(8, 7), 7), None, "a request");
        assert_eq!(number_of(&packet(0, 7)[..30], 7), None, "cut off");
        assert_eq!(number_of(&[], 7), None);
    }
}
