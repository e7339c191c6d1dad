//! The kernel as the benchmark sees it: when each entry appears (`monitor`), and how fast entries can be pushed in at all.
//!
//! Raw netlink by hand, on purpose: the floor must not depend on the code whose distance to the floor is measured.

mod monitor;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::etcd::Peer;
use crate::lab::DEVICE;
use crate::node::Node;
pub(in crate::bench) use monitor::{Monitor, Step};

// linux/rtnetlink.h, linux/netlink.h, linux/neighbour.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTMGRP_NEIGH: u32 = 0x4;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x2;
const RTNH_F_ONLINK: u32 = 4;
const HEADER: usize = 16;
/// The index of the device that is made from a prepared message; no other link of a node has it.
const NEW_INDEX: u32 = 1000;
/// Holds the notifications of 16 000 peers while the reader is not scheduled.
const RECEIVE_BUFFER: usize = 256 << 20;
/// Peers in one send: more than that gains nothing (crates.md, "Bulk programming").
const PEERS_PER_SEND: usize = 300;

fn open(groups: u32) -> Result<OwnedFd> {
    let kind = SockType::Raw;
    let fd = socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
        .context("open a netlink socket")?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).context("bind a netlink socket")?;
    setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("enlarge a netlink socket's buffer")?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
    Ok(fd)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let pair = bytes.get(at..at + 2).and_then(|pair| pair.try_into().ok());
    pair.map_or(0, u16::from_ne_bytes)
}

/// Cuts a datagram into messages.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let head: [u8; 4] = self.0.get(..4)?.try_into().ok()?;
        let length = usize::try_from(u32::from_ne_bytes(head)).ok()?;
        let message = self.0.get(..length).filter(|message| message.len() >= HEADER)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// The metrics of the routes that are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metrics {
    /// All have 0, as flannel's have: the kernel compares each new one with those before it.
    Same,
    /// Each has its own.
    Own,
}

/// How long the kernel needs for the three entries of each peer, prepared beforehand and sent without a pause, in a node
/// that holds none of them. Leaves the node as it was.
pub(super) fn floor(node: &Node, peers: &[Peer], metrics: Metrics) -> Result<Duration> {
    node.run(&format!(
        "ip link add {DEVICE} type vxlan id 1 local 10.8.0.111 dev eth0 dstport 8472 nolearning"
    ))?;
    node.run(&format!("ip address add 100.64.0.0/32 dev {DEVICE}"))?;
    node.run(&format!("ip link set {DEVICE} up"))?;
    let took = node.in_network(|| {
        let index = if_nametoindex(DEVICE).context("index of the device")?;
        let batches: Vec<Vec<u8>> =
            peers.chunks(PEERS_PER_SEND).map(|chunk| batch(chunk, index, metrics)).collect::<Result<_>>()?;
        let fd = open(0)?;
        let start = Instant::now();
        batches.iter().try_for_each(|batch| push(&fd, batch))?;
        Ok(start.elapsed())
    });
    node.run(&format!("ip link delete {DEVICE}"))?;
    took
}

/// The messages that make an overlay device on the node's `eth0`, up and with the address of the subnet that the bare daemon takes
/// (`SUBNET` there). Only the last is acknowledged.
pub(super) fn making_of_device(node: &Node) -> Result<Vec<u8>> {
    // linux/if_link.h: IFLA_INFO_KIND 1, IFLA_INFO_DATA 2; IFLA_VXLAN_ID 1, _LINK 3, _LOCAL 4, _LEARNING 7, _PORT 15
    let local = [10, 8, 0, 111];
    let below = node.in_network(|| if_nametoindex("eth0").context("index of eth0"))?.to_ne_bytes();
    let (mut data, mut info, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    let vxlan: [(u16, &[u8]); 5] =
        [(1, &1_u32.to_ne_bytes()), (3, &below), (4, &local), (7, &[0]), (15, &8472_u16.to_be_bytes())];
    append_attributes(&mut data, &vxlan)?;
    append_attributes(&mut info, &[(1, b"vxlan"), (2, &data)])?;
    // ifinfomsg: index, then IFF_UP as flag and as what is changed; IFLA_IFNAME 3, IFLA_LINKINFO 18
    let up = 1_u32.to_ne_bytes();
    let link: Vec<u8> = [&[0; 4][..], &NEW_INDEX.to_ne_bytes(), &up, &up].concat();
    let name: Vec<u8> = DEVICE.bytes().chain([0]).collect();
    append(&mut bytes, RTM_NEWLINK, NLM_F_CREATE, &link, &[(3, &name), (18, &info)])?;
    // ifaddrmsg: AF_INET, /32, scope universe; IFA_ADDRESS 1, IFA_LOCAL 2
    let address: Vec<u8> = [&[2, 32, 0, 0][..], &NEW_INDEX.to_ne_bytes()].concat();
    let own = [100, 64, 1, 0];
    append(&mut bytes, RTM_NEWADDR, NLM_F_CREATE | NLM_F_ACK, &address, &[(1, &own), (2, &own)])?;
    Ok(bytes)
}

/// What a change of each peer means for a node's kernel, prepared beforehand.
pub(super) struct Prepared {
    fd: OwnedFd,
    batches: Vec<Vec<u8>>,
}

impl Prepared {
    /// Each peer is added, gets another MAC, and goes. The device is there.
    pub(super) fn new(node: &Node, peers: &[Peer]) -> Result<Self> {
        node.in_network(|| {
            let index = if_nametoindex(DEVICE).context("index of the device")?;
            let mut batches = Vec::new();
            for peer in peers {
                let changed = Peer { generation: 1, ..*peer };
                batches.push(batch(std::slice::from_ref(peer), index, Metrics::Same)?);
                batches.push(replacement(*peer, changed, index)?);
                batches.push(removal(changed, index)?);
            }
            Ok(Self { fd: open(0)?, batches })
        })
    }

    /// The same as a file for the bare daemon, which makes no device then.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        write_batches(path, [Vec::new()].iter().chain(&self.batches))
    }

    /// Carries out the change at this position. What fails shows in the kernel's entries, which are waited for.
    pub(super) fn carry_out(&self, position: usize) {
        if let Some(batch) = self.batches.get(position) {
            let _ = push(&self.fd, batch);
        }
    }
}

/// Writes batches as the bare daemon reads them: each after its length.
pub(super) fn write_batches<'a>(path: &Path, batches: impl IntoIterator<Item = &'a Vec<u8>>) -> Result<()> {
    let mut bytes = Vec::new();
    for batch in batches {
        bytes.extend_from_slice(&u32::try_from(batch.len())?.to_ne_bytes());
        bytes.extend_from_slice(batch);
    }
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// How long it takes to read a node's routes, neighbours and FDB entries once each: the floor of whoever wants to know them.
pub(super) fn time_dump(node: &Node) -> Result<Duration> {
    node.in_network(|| {
        let fd = open(0)?;
        // rtmsg of AF_INET; ndmsg of AF_INET 2 and of AF_BRIDGE 7 (linux/rtnetlink.h, linux/neighbour.h)
        let requests = [(RTM_GETROUTE, 2), (RTM_GETNEIGH, 2), (RTM_GETNEIGH, 7)];
        let start = Instant::now();
        for (kind, family) in requests {
            let mut request = Vec::new();
            append(&mut request, kind, NLM_F_DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[])?;
            send(fd.as_raw_fd(), &request, MsgFlags::empty()).context("send to the kernel")?;
            let mut answer = vec![0_u8; 64 << 10];
            let mut done = false;
            while !done {
                let length =
                    recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).context("no end of a dump")?;
                done = Messages(answer.get(..length).unwrap_or_default())
                    .any(|message| matches!(u16_at(message, 4), NLMSG_DONE | NLMSG_ERROR));
            }
        }
        Ok(start.elapsed())
    })
}

/// Sends one batch and reads its one acknowledgement. The kernel has carried it out when send returns.
fn push(fd: &OwnedFd, batch: &[u8]) -> Result<()> {
    send(fd.as_raw_fd(), batch, MsgFlags::empty()).context("send to the kernel")?;
    let mut answer = [0_u8; 8192];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).context("no acknowledgement")?;
    for message in Messages(answer.get(..length).unwrap_or_default()) {
        let errno = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
        let errno = -i32::from_ne_bytes(errno.context("a short answer")?);
        ensure!(u16_at(message, 4) != NLMSG_ERROR || errno == 0, "{}", io::Error::from_raw_os_error(errno));
    }
    Ok(())
}

/// The `ndmsg` of a permanent entry.
fn neighbor(index: u32, family: u8, flags: u8, kind: u8) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    body.extend_from_slice(&[flags, kind]);
    body
}

/// The `rtmsg` of a peer's route: AF_INET, /24, table main, protocol boot, scope universe, unicast.
fn route() -> Vec<u8> {
    [2, 24, 0, 0, 254, 3, 0, 1].into_iter().chain(RTNH_F_ONLINK.to_ne_bytes()).collect()
}

fn removal(peer: Peer, index: u32) -> Result<Vec<u8>> {
    let (mut bytes, gateway) = (Vec::new(), peer.subnet().octets());
    append(
        &mut bytes,
        RTM_DELROUTE,
        0,
        &route(),
        &[(1, &gateway), (5, &gateway), (4, &index.to_ne_bytes())],
    )?;
    append(&mut bytes, RTM_DELNEIGH, 0, &neighbor(index, 2, 0, 1), &[(1, &gateway)])?;
    append_fdb(&mut bytes, RTM_DELNEIGH, NLM_F_ACK, peer, index)?;
    Ok(bytes)
}

fn replacement(before: Peer, after: Peer, index: u32) -> Result<Vec<u8>> {
    let (mut bytes, gateway) = (Vec::new(), after.subnet().octets());
    append_fdb(&mut bytes, RTM_NEWNEIGH, PUT, after, index)?;
    append(&mut bytes, RTM_NEWNEIGH, PUT, &neighbor(index, 2, 0, 1), &[(1, &gateway), (2, &after.mac())])?;
    append_fdb(&mut bytes, RTM_DELNEIGH, NLM_F_ACK, before, index)?;
    Ok(bytes)
}

fn append_fdb(bytes: &mut Vec<u8>, kind: u16, flags: u16, peer: Peer, index: u32) -> Result<()> {
    let (public_ip, mac) = (peer.public_ip().octets(), peer.mac());
    append(bytes, kind, flags, &neighbor(index, 7, NTF_SELF, 0), &[(1, &public_ip), (2, &mac)])
}

fn batch(peers: &[Peer], index: u32, metrics: Metrics) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (position, peer) in peers.iter().enumerate() {
        let last = if position + 1 == peers.len() { NLM_F_ACK } else { 0 };
        let (mac, gateway) = (peer.mac(), peer.subnet().octets());
        // AF_BRIDGE 7, AF_INET 2; NDA_DST 1, NDA_LLADDR 2; RTA_DST 1, RTA_OIF 4, RTA_GATEWAY 5
        let arp = (neighbor(index, 2, 0, 1), [(1, &gateway[..]), (2, &mac)]);
        append_fdb(&mut bytes, RTM_NEWNEIGH, PUT, *peer, index)?;
        append(&mut bytes, RTM_NEWNEIGH, PUT, &arp.0, &arp.1)?;
        // RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PRIORITY
        let (index, metric) = (index.to_ne_bytes(), (peer.number + 1).to_ne_bytes());
        let attributes = [(1, &gateway[..]), (5, &gateway[..]), (4, &index[..]), (6, &metric[..])];
        let attributes = if metrics == Metrics::Own { &attributes[..] } else { &attributes[..3] };
        append(&mut bytes, RTM_NEWROUTE, PUT | last, &route(), attributes)?;
    }
    Ok(bytes)
}

fn append(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    body: &[u8],
    attributes: &[(u16, &[u8])],
) -> Result<()> {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    append_attributes(bytes, attributes)?;
    let length = u32::try_from(bytes.len() - start)?.to_ne_bytes();
    for (byte, value) in bytes.iter_mut().skip(start).zip(length) {
        *byte = value;
    }
    Ok(())
}

fn append_attributes(bytes: &mut Vec<u8>, attributes: &[(u16, &[u8])]) -> Result<()> {
    for (name, value) in attributes {
        bytes.extend_from_slice(&u16::try_from(value.len() + 4)?.to_ne_bytes());
        bytes.extend_from_slice(&name.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    Ok(())
}
