//! Two netlink sockets: one for requests and their answers, one for notifications.
//!
//! Moves bytes and matches answers to requests by sequence number. What the messages mean is not known here.
//!
//! The kernel works off requests inside `send`, so every answer (of a dump: each next part) is already there when it
//! is read: nothing here waits, and an answer that is missing is lost.

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLMSG_DONE, NLMSG_ERROR};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tracing::debug;

use super::message::{Message, messages};
use super::refusal::Refusal;
use super::wire::Stamp;

/// The kernel fills at most 32 KiB per part of a dump (`netlink_recvmsg`); single answers are smaller.
const INBOX: usize = 64 << 10;

/// How often a dump is taken again when the table changed under it (`NLM_F_DUMP_INTR`).
const DUMP_ATTEMPTS: usize = 10;

/// What a read from a socket gave.
pub(super) enum Read {
    /// A datagram lies in the buffer.
    Datagram,
    /// Nothing more for now.
    Empty,
    /// The receive buffer was full and something was dropped (`ENOBUFS`).
    Overrun,
}

/// Reads one datagram of the kernel without waiting.
pub(super) fn read(socket: &Socket, inbox: &mut Vec<u8>) -> io::Result<Read> {
    loop {
        inbox.clear();
        inbox.reserve(INBOX);
        match socket.recv_from(inbox, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
            // Other processes may write to a netlink socket too; only the kernel has port 0.
            Ok((_, sender)) if sender.port_number() != 0 => {}
            Ok((length, _)) if length > inbox.len() => return Ok(Read::Overrun),
            Ok(_) => return Ok(Read::Datagram),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(Read::Empty),
                Some(libc::ENOBUFS) => return Ok(Read::Overrun),
                _ => return Err(error),
            },
        }
    }
}

/// Opens a route socket whose receive buffer holds `receive_buffer` bytes, if we may set that.
pub(super) fn open(receive_buffer: usize) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    if setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &receive_buffer)?;
    }
    Ok(socket)
}

/// Appends a request for each item, numbered from `first` on, of which only the last one is acknowledged. Returns its number.
pub(super) fn append_batch<T>(
    outbox: &mut Vec<u8>,
    first: u32,
    items: &[T],
    encode: impl Fn(&mut Vec<u8>, Stamp, &T),
) -> Option<u32> {
    let (last, before) = items.split_last()?;
    let mut sequence = first;
    for item in before {
        encode(outbox, Stamp { sequence, acknowledge: false }, item);
        sequence = sequence.wrapping_add(1);
    }
    encode(outbox, Stamp { sequence, acknowledge: true }, last);
    Some(sequence)
}

/// The socket for requests.
#[derive(Debug)]
pub(super) struct Requests {
    socket: Socket,
    port: u32,
    sequence: u32,
    outbox: Vec<u8>,
    inbox: Vec<u8>,
}

/// How far reading the answers got.
#[derive(PartialEq, Eq)]
enum Progress {
    /// The last request of the batch is answered.
    Complete,
    /// There is nothing more to read.
    Silent,
    /// Answers were dropped.
    Overrun,
}

impl Requests {
    /// Opens the socket.
    pub(super) fn open(receive_buffer: usize) -> io::Result<Self> {
        let socket = open(receive_buffer)?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // Without it the kernel ignores the filters of a dump. Kernels before 4.20 have no such option: then the
        // answers are filtered here only, which is done in any case.
        if let Err(error) = socket.set_netlink_get_strict_chk(true) {
            debug!(%error, "no strict checking of dump requests");
        }
        let mut address = SocketAddr::new(0, 0);
        socket.get_address(&mut address)?;
        Ok(Self { socket, port: address.port_number(), sequence: 0, outbox: Vec::new(), inbox: Vec::new() })
    }

    /// The number that changes of ours carry in notifications.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// One request that is answered with an acknowledgement only.
    pub(super) fn acknowledged(&mut self, encode: impl FnOnce(&mut Vec<u8>, Stamp)) -> Result<(), Refusal> {
        let mut acknowledged = None;
        self.exchange(true, encode, |message| {
            if message.kind == NLMSG_ERROR {
                acknowledged = Some(message.outcome());
            }
        })?;
        acknowledged.unwrap_or_else(|| Err(Refusal::without_answer("the kernel did not answer")))
    }

    /// One request that is answered with one message, which `parse` reads.
    pub(super) fn one<T>(
        &mut self,
        encode: impl FnOnce(&mut Vec<u8>, Stamp),
        parse: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<T, Refusal> {
        let mut answer = Err(Refusal::without_answer("the kernel did not answer"));
        self.exchange(false, encode, |message| {
            answer = match message.kind {
                NLMSG_ERROR => message.outcome().and(Err(Refusal::without_answer("the answer is empty"))),
                _ => parse(message).ok_or_else(|| Refusal::without_answer("the answer is not understood")),
            };
        })?;
        answer
    }

    /// A dump. What `parse` passes over is left out.
    pub(super) fn dump<T>(
        &mut self,
        encode: impl Fn(&mut Vec<u8>, Stamp),
        parse: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        for _ in 0..DUMP_ATTEMPTS {
            let (mut entries, mut interrupted, mut end) = (Vec::new(), false, None);
            self.exchange(false, &encode, |message| {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => end = Some(message.outcome()),
                    _ => entries.extend(parse(message)),
                }
            })?;
            end.unwrap_or_else(|| Err(Refusal::without_answer("the dump has no end")))?;
            if !interrupted {
                return Ok(entries);
            }
        }
        Err(Refusal::without_answer("the table keeps changing while it is read"))
    }

    /// A dump up to the message with which `each` has enough. It has a socket of its own, since closing that is the only way to end
    /// a dump: the kernel does not go through the rest of the table.
    pub(super) fn beginning_of_dump(
        encode: impl FnOnce(&mut Vec<u8>, Stamp),
        mut each: impl FnMut(&Message<'_>) -> ControlFlow<()>,
    ) -> Result<(), Refusal> {
        let mut own = Self::open(INBOX)?;
        encode(&mut own.outbox, Stamp { sequence: own.sequence, acknowledge: false });
        own.socket.send_to(&own.outbox, &SocketAddr::new(0, 0), 0)?;
        while let Read::Datagram = read(&own.socket, &mut own.inbox)? {
            if messages(&own.inbox).flatten().any(|message| each(&message).is_break()) {
                return Ok(());
            }
        }
        Err(Refusal::without_answer("the kernel's answer was lost"))
    }

    /// Many requests in one send. `failed` gets the position and reason of each that was refused; only the last one is
    /// acknowledged, so silence about the others is success.
    pub(super) fn batch<T>(
        &mut self,
        items: &[T],
        encode: impl Fn(&mut Vec<u8>, Stamp, &T),
        mut failed: impl FnMut(usize, Refusal),
    ) {
        let first = self.sequence.wrapping_add(1);
        self.outbox.clear();
        self.sequence = append_batch(&mut self.outbox, first, items, encode).unwrap_or(self.sequence);
        let result = self.send_and_read(first, |message| {
            if let (NLMSG_ERROR, Err(refusal)) = (message.kind, message.outcome()) {
                let position = usize::try_from(message.sequence.wrapping_sub(first));
                position.into_iter().for_each(|position| failed(position, refusal.clone()));
            }
        });
        let lost = match result {
            Ok(Progress::Complete) => return,
            Ok(Progress::Silent | Progress::Overrun) => {
                Refusal::without_answer("the kernel's answer was lost")
            }
            Err(error) => error.into(),
        };
        (0..items.len()).for_each(|position| failed(position, lost.clone()));
    }

    fn exchange(
        &mut self,
        acknowledge: bool,
        encode: impl FnOnce(&mut Vec<u8>, Stamp),
        each: impl FnMut(&Message<'_>),
    ) -> Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        self.outbox.clear();
        encode(&mut self.outbox, Stamp { sequence: self.sequence, acknowledge });
        match self.send_and_read(self.sequence, each)? {
            Progress::Complete | Progress::Silent => Ok(()),
            Progress::Overrun => Err(Refusal::without_answer("the kernel's answer was lost")),
        }
    }

    /// Sends the outbox, whose first request has the number `first`, and hands on every message that answers it.
    fn send_and_read(&mut self, first: u32, mut each: impl FnMut(&Message<'_>)) -> io::Result<Progress> {
        debug!(bytes = self.outbox.len(), first, last = self.sequence, "netlink request");
        let expected = self.sequence.wrapping_sub(first);
        self.socket.send_to(&self.outbox, &SocketAddr::new(0, 0), 0)?;
        let (mut progress, mut complete) = (Progress::Silent, false);
        while !complete {
            match read(&self.socket, &mut self.inbox)? {
                Read::Empty => return Ok(progress),
                Read::Overrun => progress = Progress::Overrun,
                Read::Datagram => {
                    let answers = messages(&self.inbox).flatten();
                    // Numbers outside the batch belong to an earlier one whose answers were given up.
                    for message in answers.filter(|message| message.sequence.wrapping_sub(first) <= expected)
                    {
                        each(&message);
                        let last = message.kind == NLMSG_DONE || message.flags & NLM_F_MULTIPART == 0;
                        complete |= message.sequence == self.sequence && last;
                    }
                }
            }
        }
        Ok(if progress == Progress::Overrun { progress } else { Progress::Complete })
    }
}
