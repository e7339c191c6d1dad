//! Noticing what changes: notifications of links, addresses, neighbours, FDB and routes, as `Change`s in scope.
//!
//! Reports, judges nothing. Of our own changes only those come back whose notification does not say that they are ours. IPv4
//! routes and permanent neighbours that the kernel drops with a link are dropped in silence, which is why every change of a
//! link is reported.

use std::io;

use nix::libc;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::Socket;
use socket2::{SockFilter, SockRef};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use netlink_packet_core::NLM_F_REPLACE;

use super::message::{Message, messages};
use super::parse::{self, Entry};
use super::socket::{self, Read};
use super::{Change, Scope, observe};
use crate::model::IfName;

const GROUPS: [MulticastGroup; 4] =
    [MulticastGroup::Link, MulticastGroup::Neigh, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];

/// The socket for notifications and what was read from it.
#[derive(Debug)]
pub(super) struct Watch {
    socket: AsyncFd<Socket>,
    inbox: Vec<u8>,
    view: View,
    batch: Batch,
    /// The index of our device that the kernel's filter knows.
    filtered_for: Option<u32>,
}

/// Changes in order. "Look at everything again" stands at the end, once.
#[derive(Debug, Default)]
struct Batch {
    entries: Vec<Change>,
    device: bool,
    underlay: bool,
    lost: bool,
}

/// What is ours right now.
#[derive(Debug)]
struct View {
    scope: Scope,
    vtep: Option<u32>,
    parent: Option<u32>,
    /// The socket from which our own changes come.
    own_port: u32,
    /// The socket of somebody else from which the last change of ours came.
    author: Option<u32>,
}

impl Watch {
    /// Subscribes; must be called inside a tokio runtime.
    pub(super) fn open(receive_buffer: usize, scope: &Scope, own_port: u32) -> io::Result<Self> {
        let socket = socket::open(receive_buffer)?;
        attach(&socket, own_port, None);
        for group in GROUPS {
            socket.add_membership(group as u32)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor and gives always the same one; it is moved into the `AsyncFd`, which
        // closes it only after taking it out of the reactor, and it is never taken out or replaced.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        let view = View { scope: scope.clone(), vtep: None, parent: None, own_port, author: None };
        Ok(Self { socket, inbox: Vec::new(), view, batch: Batch::default(), filtered_for: None })
    }

    /// From now on these names have these indexes.
    pub(super) fn follow(&mut self, scope: &Scope, vtep: Option<u32>, parent: Option<u32>) {
        self.view.scope.clone_from(scope);
        (self.view.vtep, self.view.parent) = (vtep, parent);
        self.filter();
    }

    /// Lets the kernel drop what concerns other devices. What happens to a new one before that is seen by whoever then reads it.
    fn filter(&mut self) {
        if self.filtered_for != self.view.vtep {
            attach(self.socket.get_ref(), self.view.own_port, self.view.vtep);
            self.filtered_for = self.view.vtep;
        }
    }

    /// The process that sent the last change that was not ours: a program's first netlink socket has the number of the process.
    pub(super) fn author(&self) -> Option<u32> {
        self.view.author
    }

    /// Waits until there may be something to read.
    pub(super) async fn readable(&self) {
        match self.socket.readable().await {
            // Before reading, so that what arrives meanwhile wakes again.
            Ok(mut guard) => guard.clear_ready(),
            // Only when the runtime is shutting down; nobody will be woken any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Reads what is there and keeps it.
    pub(super) fn drain(&mut self) {
        self.read();
        self.filter();
    }

    fn read(&mut self) {
        loop {
            match socket::read(self.socket.get_ref(), &mut self.inbox) {
                Ok(Read::Datagram) => self.view.read(&self.inbox, &mut self.batch),
                Ok(Read::Overrun) => self.batch.lost = true,
                Ok(Read::Empty) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot read netlink notifications");
                    self.batch.lost = true;
                    return;
                }
            }
        }
    }

    /// Whether something was read that `queued` has not handed out.
    pub(super) fn holds_changes(&self) -> bool {
        let Batch { entries, device, underlay, lost } = &self.batch;
        !entries.is_empty() || *device || *underlay || *lost
    }

    /// Everything noticed since the last call.
    pub(super) fn queued(&mut self) -> Vec<Change> {
        self.drain();
        std::mem::take(&mut self.batch).into_changes()
    }
}

impl Batch {
    /// Deleting a neighbour is notified twice: first as failed, then as deleted.
    fn push(&mut self, change: Change) {
        if self.entries.last() != Some(&change) {
            self.entries.push(change);
        }
    }

    fn into_changes(self) -> Vec<Change> {
        let mut changes = self.entries;
        changes.extend(self.device.then_some(Change::Device));
        changes.extend(self.underlay.then_some(Change::Underlay));
        changes.extend(self.lost.then_some(Change::Lost));
        changes
    }
}

impl View {
    fn read(&mut self, datagram: &[u8], batch: &mut Batch) {
        for message in messages(datagram) {
            match message {
                Ok(message) => self.notice(&message, batch),
                Err(_) => batch.lost = true,
            }
        }
    }

    fn notice(&mut self, message: &Message<'_>, batch: &mut Batch) {
        match message.kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.link(message, batch),
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.address(message, batch),
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => self.station(message, batch),
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => self.route(message, batch),
            _ => {}
        }
    }

    /// Keeps who is behind a change, where the kernel says so.
    fn sign(&mut self, message: &Message<'_>) {
        if message.port != 0 && message.port != self.own_port {
            self.author = Some(message.port);
        }
    }

    /// A name may have moved to another link, and a link may have got another name.
    fn link(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some((index, name)) = parse::link_identity(message.payload) else { return };
        let there = message.kind == libc::RTM_NEWLINK;
        let name = name.as_ref().filter(|_| there);
        if follow(&mut self.vtep, &self.scope.vtep, index, name) {
            batch.device = true;
            self.sign(message);
        }
        let parent = follow(&mut self.parent, &self.scope.parent, index, name);
        batch.underlay |= parent || (!there && Some(index) != self.vtep);
    }

    /// Addresses out of the overlay come and go with pods and are nobody's underlay.
    fn address(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(address) = parse::address(message.payload) else { return };
        if Some(address.index) == self.vtep {
            batch.device = true;
            self.sign(message);
        } else {
            batch.underlay |= !self.scope.network.contains(address.network.ip());
        }
    }

    fn station(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(station) = parse::station(message.payload) else { return };
        if Some(station.index) != self.vtep {
            return;
        }
        self.sign(message);
        let there = message.kind == libc::RTM_NEWNEIGH;
        batch.push(match station.entry {
            Entry::Neighbor(ip, mac) => Change::Neighbor(ip, mac.filter(|_| there)),
            Entry::Fdb(mac, target) => Change::Fdb(mac, target.filter(|_| there)),
        });
    }

    fn route(&mut self, message: &Message<'_>, batch: &mut Batch) {
        let Some(entry) = parse::route(message.payload) else { return };
        let route = entry.route(self.vtep);
        batch.underlay |= entry.main_table && route.dst.prefix() == 0;
        if !entry.main_table || !observe::inside(self.scope.network, &route) {
            return;
        }
        self.sign(message);
        batch.push(if message.kind == libc::RTM_NEWROUTE {
            Change::RouteAdded { route, replaced: message.flags & NLM_F_REPLACE != 0 }
        } else {
            Change::RouteRemoved(route)
        });
    }
}

/// What a datagram says to a watch that knows the indexes of our device and of the one below, or neither.
#[cfg(any(test, fuzzing))]
pub(super) fn noticed(scope: &Scope, known: Option<(u32, u32)>, datagram: &[u8]) -> Vec<Change> {
    let (vtep, parent) = known.unzip();
    let mut view = View { scope: scope.clone(), vtep, parent, own_port: 0, author: None };
    let mut batch = Batch::default();
    view.read(datagram, &mut batch);
    batch.into_changes()
}

/// Without a filter everything comes; the one for a former device would keep away what concerns this one.
fn attach(socket: &Socket, own_port: u32, vtep: Option<u32>) {
    let socket = SockRef::from(socket);
    if let Err(error) = socket.attach_filter(&of_concern(own_port, vtep)) {
        debug!(%error, "what does not concern us comes as a notification, too");
        let _ = socket.detach_filter();
    }
}

/// Lets everything pass but neighbours of other devices than `vtep`, whose states change all the time, and what the socket with `port`
/// did to neighbours and routes: who did it knows it, and a start among thousands of peers would read all its entries once more. (The
/// kernel never says who changed an FDB entry.)
///
/// A classic BPF program on `nlmsghdr`: the type is at byte 4, the port at 12; then `ndmsg` has its device at 20. BPF reads them in
/// network byte order.
fn of_concern(port: u32, vtep: Option<u32>) -> [SockFilter; 13] {
    let load = |size: u32, at: u32| (libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at);
    let jump =
        |value: u32, equal: u8, other: u8| (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, equal, other, value);
    let entry = |kind: u16, equal: u8, other: u8| jump(kind.to_be().into(), equal, other);
    let pass = |length: u32| (libc::BPF_RET | libc::BPF_K, 0, 0, length);
    [
        load(libc::BPF_H, 4),
        entry(libc::RTM_NEWNEIGH, 3, 0),
        entry(libc::RTM_DELNEIGH, 2, 0),
        entry(libc::RTM_NEWROUTE, 5, 0),
        entry(libc::RTM_DELROUTE, 4, 7),
        load(libc::BPF_W, 20),
        // No device has the index 0.
        jump(vtep.unwrap_or(0).to_be(), 0, 4),
        load(libc::BPF_H, 4),
        entry(libc::RTM_DELNEIGH, 3, 0),
        load(libc::BPF_W, 12),
        jump(port.to_be(), 0, 1),
        pass(0),
        pass(u32::MAX),
    ]
    .map(|(code, equal, other, value)| SockFilter::new(u16::try_from(code).unwrap_or(0), equal, other, value))
}

/// Keeps `known`, the index of the link called `wanted`, up to date. `name` is what the link with `index` is called now,
/// or nothing when it is gone. Whether it concerned the link.
fn follow(known: &mut Option<u32>, wanted: &IfName, index: u32, name: Option<&IfName>) -> bool {
    if name == Some(wanted) {
        *known = Some(index);
        return true;
    }
    let was_it = *known == Some(index);
    if was_it {
        *known = None;
    }
    was_it
}

#[cfg(test)]
mod tests;
