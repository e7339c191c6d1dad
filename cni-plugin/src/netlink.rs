//! The three things `stale_bridge` asks of the kernel, over one route netlink socket: the addresses
//! of a bridge, the number of its ports, and the removal of an address. Building and reading the
//! messages is pure; a socket lives for one question.

use crate::cidr::Cidr;
use crate::env::IfName;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const IFLA_MASTER: u16 = 10;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Length of `struct nlmsghdr`, of `struct ifaddrmsg`, of `struct ifinfomsg`, of `struct rtattr`.
const HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const LINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// The addresses of an interface, in the kernel's order: `ip addr show dev <name>`. None when there
/// is no such interface.
///
/// # Errors
/// The kernel refused the question.
pub fn addresses(name: &IfName) -> io::Result<Vec<Cidr>> {
    let Some(index) = index_of(name)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    ask(&request(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_HEADER]), |kind, body| {
        if kind == RTM_NEWADDR {
            found.extend(address_on(index, body));
        }
    })?;
    Ok(found)
}

/// How many interfaces are plugged into a bridge: `ip link show master <name>`.
///
/// # Errors
/// The kernel refused the question.
pub fn ports(name: &IfName) -> io::Result<usize> {
    let Some(index) = index_of(name)? else { return Ok(0) };
    let mut count = 0_usize;
    ask(&request(RTM_GETLINK, NLM_F_DUMP, &[0; LINK_HEADER]), |kind, body| {
        if kind == RTM_NEWLINK && attribute(body, LINK_HEADER, IFLA_MASTER).and_then(number) == Some(index) {
            count = count.saturating_add(1);
        }
    })?;
    Ok(count)
}

/// `ip addr del <address> dev <name>`; an address that is already gone is a success.
///
/// # Errors
/// The kernel refused.
pub fn remove_address(name: &IfName, address: Cidr) -> io::Result<()> {
    let Some(index) = index_of(name)? else { return Ok(()) };
    match ask(&request(RTM_DELADDR, NLM_F_ACK, &removal(index, address)), |_, _| {}) {
        Err(error) if error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32) => Ok(()),
        outcome => outcome,
    }
}

fn index_of(name: &IfName) -> io::Result<Option<u32>> {
    match if_nametoindex(name.as_os_str()) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends one request and shows every message of the answer to `each`, until the kernel says done.
fn ask(request: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    socket::sendto(socket.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    // The kernel fills at most 32 KiB a message.
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = receive(&socket, &mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, body, next)) = split(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return verdict(body),
                other => each(other, body),
            }
            rest = next;
        }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket::recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            outcome => return Ok(outcome?),
        }
    }
}

/// One message: `struct nlmsghdr` and its body.
fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER.saturating_add(body.len())).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one socket, one question
    message.extend(body);
    message
}

/// `struct ifaddrmsg` and the address as IFA_LOCAL and IFA_ADDRESS, which `ip addr del` sends too.
fn removal(index: u32, address: Cidr) -> Vec<u8> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let (family, octets) = match address.address() {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let mut body = vec![family, address.prefix(), 0, 0];
    body.extend(index.to_ne_bytes());
    let length = u16::try_from(ATTRIBUTE_HEADER.saturating_add(octets.len())).unwrap_or(u16::MAX);
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(&octets);
    }
    body
}

/// Splits the first message off: its type, its body, and what follows (aligned to four bytes).
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(number(bytes)?).ok()?;
    let kind = short(bytes.get(4..)?)?;
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The outcome in an NLMSG_ERROR: zero is the acknowledgement, else a negative errno.
fn verdict(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().copied().map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The address in an RTM_NEWADDR, if it is on the interface `index`.
fn address_on(index: u32, body: &[u8]) -> Option<Cidr> {
    let prefix = *body.get(1)?;
    if number(body.get(4..)?)? != index {
        return None;
    }
    // On a point-to-point link IFA_ADDRESS is the peer's.
    let octets = attribute(body, ADDRESS_HEADER, IFA_LOCAL)
        .or_else(|| attribute(body, ADDRESS_HEADER, IFA_ADDRESS))?;
    let address = match octets.len() {
        4 => IpAddr::from(*octets.first_chunk::<4>()?),
        _ => IpAddr::from(*octets.first_chunk::<16>()?),
    };
    Cidr::new(address, prefix)
}

/// The value of the first attribute of type `wanted` after the fixed part of a body.
fn attribute(body: &[u8], fixed: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(fixed..)?;
    loop {
        let length = usize::from(short(rest)?);
        let kind = short(rest.get(2..)?)?;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

fn short(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;

    /// The body of the RTM_NEWADDR for `127.0.0.1/8 dev lo`, as the kernel sends it.
    fn loopback() -> Vec<u8> {
        let mut body = vec![2, 8, 0x80, 254, 1, 0, 0, 0];
        body.extend([8, 0, 1, 0, 127, 0, 0, 1, 8, 0, 2, 0, 127, 0, 0, 1, 7, 0, 3, 0, b'l', b'o', 0, 0]);
        body
    }

    #[test]
    fn reads_an_address_of_the_right_interface_only() {
        assert_eq!(address_on(1, &loopback()).unwrap().to_string(), "127.0.0.1/8");
        assert_eq!(address_on(2, &loopback()), None);
    }

    #[test]
    fn a_removal_is_what_ip_addr_del_sends() {
        // ip addr del 10.200.5.1/24 dev <index 7>
        let bytes = request(RTM_DELADDR, NLM_F_ACK, &removal(7, "10.200.5.1/24".parse().unwrap()));
        let mut expected = vec![40, 0, 0, 0, 21, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([2, 24, 0, 0, 7, 0, 0, 0]);
        expected.extend([8, 0, 2, 0, 10, 200, 5, 1, 8, 0, 1, 0, 10, 200, 5, 1]);
        assert_eq!(bytes, expected);
        assert_eq!(removal(1, "fc00::1/64".parse().unwrap()).len(), 8 + 20 + 20);
    }

    #[test]
    fn messages_are_split_at_four_byte_borders() {
        let mut bytes = request(RTM_NEWLINK, 0, &[1, 2, 3]);
        bytes.push(0);
        bytes.extend(request(NLMSG_DONE, 0, &[]));
        let (kind, body, rest) = split(&bytes).unwrap();
        assert_eq!((kind, body), (RTM_NEWLINK, &[1, 2, 3][..]));
        let (kind, body, rest) = split(rest).unwrap();
        assert_eq!((kind, body, rest), (NLMSG_DONE, &[][..], &[][..]));
        assert!(split(rest).is_none());
    }

    #[test]
    fn an_error_carries_a_negative_errno() {
        assert!(verdict(&0_i32.to_ne_bytes()).is_ok());
        assert_eq!(verdict(&(-1_i32).to_ne_bytes()).unwrap_err().raw_os_error(), Some(1));
        assert!(verdict(&[]).is_err());
    }

    #[test]
    fn the_kernel_answers() {
        let name = |text: &str| IfName::new(OsStr::new(text)).unwrap();
        assert!(addresses(&name("lo")).is_ok());
        assert_eq!(ports(&name("lo")).unwrap(), 0);
        assert_eq!(addresses(&name("no-such-device")).unwrap(), []);
        assert_eq!(ports(&name("no-such-device")).unwrap(), 0);
        assert!(remove_address(&name("no-such-device"), "10.0.0.1/8".parse().unwrap()).is_ok());
    }

    proptest! {
        #[test]
        fn never_panics_on_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some((_, body, _)) = split(&bytes) {
                let _ = (verdict(body), address_on(1, body), attribute(body, LINK_HEADER, IFLA_MASTER));
            }
            let _ = (address_on(1, &bytes), attribute(&bytes, 0, 1));
        }
    }
}
