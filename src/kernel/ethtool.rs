//! `ethtool -k` and `ethtool -K` for one feature, TX checksum offload: an ioctl, no process.
//!
//! Reads and writes what it is told; what the device shall have is decided in `model`.

use std::ffi::c_int;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use socket2::{Domain, Socket, Type};

use crate::model::IfName;

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM` (`linux/ethtool.h`).
const GET: u32 = 0x16;
const SET: u32 = 0x17;

/// `struct ethtool_value`
#[repr(C)]
struct Order {
    command: u32,
    value: u32,
}

/// Whether the device called `name` lets the one that sends compute checksums of packets. True if any kind of checksum is
/// offloaded, as for `tx-checksumming` in `ethtool -k`.
pub(super) fn tx_checksum(name: &IfName) -> io::Result<bool> {
    call(name, Order { command: GET, value: 0 }).map(|value| value != 0)
}

/// `ethtool -K NAME tx on|off`. What builds upon checksum offload (segmentation) goes and comes with it.
pub(super) fn set_tx_checksum(name: &IfName, on: bool) -> io::Result<()> {
    call(name, Order { command: SET, value: u32::from(on) }).map(|_| ())
}

fn call(name: &IfName, mut order: Order) -> io::Result<u32> {
    // Any socket will do: it only says which network namespace is meant.
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: all zeros is a valid `ifreq`: numbers and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // An `IfName` is shorter than the field, so a zero stays behind it.
    for (place, byte) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_data = (&raw mut order).cast();
    // SAFETY: the name ends with a zero, and the kernel reads and writes `ifru_data` as the `ethtool_value` that both commands
    // name; `request` and `order` outlive the call.
    let result: c_int = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(order.value) }
}
