//! Two netfilter sockets: one asks and is answered at once, the other hears of changes.
//!
//! The kernel works while a request is being sent, so answers are there when `send` returns and nothing here waits.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send,
    setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;

use super::decode::{self, Dumped, Subject};

/// Group number 7 (`NFNLGRP_NFTABLES`) as a bit of the bind mask.
const GROUP_NFTABLES: u32 = 1 << 6;
/// Room for notifications while we are busy; when it is not enough we hear of it (`ENOBUFS`).
const RECEIVE_BUFFER: usize = 1 << 20;
/// The kernel writes dumps in pieces of at most 32 KiB.
const PIECE: usize = 1 << 15;

/// Why the kernel did not do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// An errno.
    Errno(Errno),
    /// The answer ended early or could not be read.
    Garbled,
    /// The rules changed while they were being read, again and again.
    Restless,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// A request socket.
#[derive(Debug)]
pub(super) struct Requests {
    socket: OwnedFd,
    /// Notifications of what we do carry it.
    pub(super) port: u32,
    sequence: u32,
    inbox: Vec<u8>,
}

impl Requests {
    pub(super) fn open() -> Result<Self, Errno> {
        let (socket, port) = open(0)?;
        Ok(Self { socket, port, sequence: 0, inbox: vec![0; PIECE] })
    }

    /// Sends a dump request, made for the sequence number it is given, and collects what comes back.
    pub(super) fn dump(&mut self, request: impl Fn(u32) -> Vec<u8>) -> Result<Vec<Dumped>, Refusal> {
        for _ in 0..10 {
            let sequence = self.next(1);
            send(self.socket.as_raw_fd(), &request(sequence), MsgFlags::empty())?;
            if let Some(messages) = self.collect(sequence)? {
                return Ok(messages);
            }
        }
        Err(Refusal::Restless)
    }

    /// `None`: the rules changed in between (`NLM_F_DUMP_INTR`).
    fn collect(&mut self, sequence: u32) -> Result<Option<Vec<Dumped>>, Refusal> {
        let mut found = Vec::new();
        let mut consistent = true;
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.inbox, MsgFlags::MSG_DONTWAIT)?;
            for bytes in messages(self.inbox.get(..length).unwrap_or_default()) {
                let header = NetlinkBuffer::new_checked(bytes).map_err(|_| Refusal::Garbled)?;
                if header.sequence_number() != sequence {
                    continue;
                }
                consistent &= header.flags() & netlink_packet_core::NLM_F_DUMP_INTR == 0;
                match header.message_type() {
                    NLMSG_DONE => return Ok(consistent.then_some(found)),
                    NLMSG_ERROR => match errno(header.payload())? {
                        None => {}
                        Some(Errno::EINTR) => return Ok(None),
                        Some(errno) => return Err(errno.into()),
                    },
                    kind => found.push(Dumped::new(kind, header.payload())),
                }
            }
        }
    }

    /// Sends a batch of `count` requests, made for the sequence number it is given; all of it took effect or nothing.
    pub(super) fn transact(&mut self, count: usize, batch: impl Fn(u32) -> Vec<u8>) -> Result<(), Refusal> {
        let count = u32::try_from(count).map_err(|_| Refusal::Garbled)?;
        let sequence = self.next(count + 2);
        send(self.socket.as_raw_fd(), &batch(sequence), MsgFlags::empty())?;
        let mut confirmed = false;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.inbox, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) if confirmed => return Ok(()),
                Err(Errno::EAGAIN) => return Err(Refusal::Garbled),
                other => other?,
            };
            for bytes in messages(self.inbox.get(..length).unwrap_or_default()) {
                let header = NetlinkBuffer::new_checked(bytes).map_err(|_| Refusal::Garbled)?;
                if header.message_type() != NLMSG_ERROR {
                    continue;
                }
                if let Some(errno) = errno(header.payload())? {
                    self.discard();
                    return Err(errno.into());
                }
                confirmed |= header.sequence_number() == sequence.wrapping_add(count);
            }
        }
    }

    /// Throws away answers nobody waits for any more.
    fn discard(&self) {
        let mut buffer = [0; 1];
        while recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    fn next(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }
}

/// A socket that hears of every change of tables, chains and rules in this network namespace.
#[derive(Debug)]
pub(super) struct Notifications {
    socket: AsyncFd<OwnedFd>,
    /// The socket from which our own changes come.
    own_port: u32,
}

/// What somebody else did.
#[derive(Debug)]
pub(super) enum Notification {
    /// A table, chain or rule was made or deleted.
    Change(Subject),
    /// Something happened that cannot be read, or that was lost.
    Unknown,
}

impl Notifications {
    pub(super) fn open(own_port: u32) -> io::Result<Self> {
        let (socket, _) = open(GROUP_NFTABLES)?;
        // SAFETY: the descriptor is owned by the value it is registered with, which gives it to nobody to close.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket, own_port })
    }

    /// What is queued of others. Never waits.
    pub(super) fn queued(&self) -> Vec<Notification> {
        let mut found = Vec::new();
        let mut buffer = vec![0; PIECE];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    found.push(Notification::Unknown);
                    continue;
                }
                Err(_) => return found,
            };
            found.extend(
                messages(buffer.get(..length).unwrap_or_default())
                    .filter_map(|message| notification(message, self.own_port)),
            );
        }
    }

    /// Waits until something may be queued. Cancel-safe: nothing is taken from the queue.
    pub(super) async fn readable(&self) {
        if let Ok(mut guard) = self.socket.readable().await {
            guard.clear_ready();
        }
    }
}

/// `None`: it is of our own, or of no concern whoever did it.
pub(super) fn notification(bytes: &[u8], own_port: u32) -> Option<Notification> {
    let Ok(message) = NetlinkBuffer::new_checked(bytes) else { return Some(Notification::Unknown) };
    if message.port_number() == own_port {
        return None;
    }
    decode::subject(message.message_type(), message.payload()).map(Notification::Change)
}

fn open(groups: u32) -> Result<(OwnedFd, u32), Errno> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkNetFilter,
    )?;
    // Needs CAP_NET_ADMIN; without it the default has to do, and losses are noticed anyway.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    let address: NetlinkAddr = getsockname(socket.as_raw_fd())?;
    Ok((socket, address.pid()))
}

/// What `NLMSG_ERROR` says (`nlmsgerr`); `None`: that all is well.
fn errno(payload: &[u8]) -> Result<Option<Errno>, Refusal> {
    let code = i32::from_ne_bytes(*payload.first_chunk().ok_or(Refusal::Garbled)?);
    Ok((code != 0).then(|| Errno::from_raw(code.saturating_neg())))
}

/// The messages of a datagram, each with its header.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(NetlinkBuffer::new_checked(datagram).ok()?.length()).ok()?;
        let (message, _) = datagram.split_at_checked(length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
