//! Newtypes that can only be made from valid input. After construction nothing re-validates them.

use std::fmt;
use std::str::FromStr;

/// A value that does not fit the newtype it was meant for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// Not six hexadecimal pairs with colons.
    #[error("{0:?} is not a MAC address (expected six hex pairs such as 12:3b:6e:23:53:7b)")]
    Mac(String),
    /// Not a name the kernel would accept for an interface.
    #[error("{0:?} is not an interface name (expected 1 to 15 bytes without blanks, '/' or ':')")]
    IfName(String),
    /// A VXLAN network identifier has 24 bits.
    #[error("VNI {0} is out of range (expected 0 to 16777215)")]
    Vni(u64),
    /// Outside what the kernel accepts for a VXLAN device.
    #[error("MTU {0} is out of range (expected {min} to {max})", min = Mtu::MIN, max = Mtu::MAX)]
    Mtu(u64),
}

/// An Ethernet hardware address. Shown as lower-case hex pairs with colons, as `ip link` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The address from its six octets in wire order.
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The six octets in wire order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// A unicast, locally administered address out of random bytes (multicast bit cleared, local bit set).
    #[must_use]
    pub const fn local_from_random(random: [u8; 6]) -> Self {
        let [first, b, c, d, e, f] = random;
        Self([(first & 0xfe) | 0x02, b, c, d, e, f])
    }

    /// Whether a single station can own the address: not all zero, multicast bit clear.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0 != [0; 6] && self.0.first().is_some_and(|first| first & 1 == 0)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let wrong = || AddrError::Mac(text.to_owned());
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        if text.len() != "02:00:00:00:00:00".len() {
            return Err(wrong());
        }
        let mut octets = [0; 6];
        for (octet, pair) in octets.iter_mut().zip(text.as_bytes().chunks(3)) {
            let ([high, low] | [high, low, b':']) = *pair else { return Err(wrong()) };
            *octet = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
        }
        Ok(Self(octets))
    }
}

/// The name of a network interface, as the kernel's `dev_valid_name` accepts it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name the daemon gives the device of a VNI: `flannel.VNI`. Above 9999999 it is too long for a device; the network config
    /// refuses such a VNI.
    #[must_use]
    pub fn of_vtep(vni: Vni) -> Self {
        Self(format!("flannel.{vni}"))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IfName {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let allowed = |byte: u8| byte != b'/' && byte != b':' && byte != 0 && !byte.is_ascii_whitespace();
        let valid =
            (1..=15).contains(&text.len()) && text != "." && text != ".." && text.bytes().all(allowed);
        if valid { Ok(Self(text.to_owned())) } else { Err(AddrError::IfName(text.to_owned())) }
    }
}

/// A VXLAN network identifier (24 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The VNI used when the network config names none.
    pub const DEFAULT: Self = Self(1);

    /// The identifier as a number below 2^24.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Vni {
    type Error = AddrError;

    fn try_from(number: u64) -> Result<Self, AddrError> {
        match u32::try_from(number) {
            Ok(vni) if vni < 1 << 24 => Ok(Self(vni)),
            _ => Err(AddrError::Vni(number)),
        }
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device MTU in bytes, within what the kernel allows a VXLAN device (`min_mtu` and `max_mtu` of `ip -d link`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtu(u32);

impl Mtu {
    /// Smallest MTU of an IPv4 link (`ETH_MIN_MTU`).
    pub const MIN: u64 = 68;
    /// Largest MTU of a VXLAN device (`ETH_MAX_MTU`).
    pub const MAX: u64 = 65535;
    /// What VXLAN over IPv4 adds to a packet: 20 IPv4 + 8 UDP + 8 VXLAN + 14 inner Ethernet.
    pub const VXLAN_OVERHEAD: u32 = 50;

    /// The MTU in bytes.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// What is left inside the tunnel when `self` is the MTU outside of it.
    ///
    /// # Errors
    /// When nothing usable is left.
    pub fn inside_vxlan(self) -> Result<Self, AddrError> {
        Self::try_from(u64::from(self.0.saturating_sub(Self::VXLAN_OVERHEAD)))
    }
}

impl TryFrom<u64> for Mtu {
    type Error = AddrError;

    fn try_from(bytes: u64) -> Result<Self, AddrError> {
        match u32::try_from(bytes) {
            Ok(mtu) if (Self::MIN..=Self::MAX).contains(&bytes) => Ok(Self(mtu)),
            _ => Err(AddrError::Mtu(bytes)),
        }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_in_any_case_and_shown_in_lower_case() {
        assert_eq!("AA:bb:0C:00:01:ff".parse::<MacAddr>().unwrap().to_string(), "aa:bb:0c:00:01:ff");
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        for text in [
            "",
            "aa",
            "aa:bb:cc:dd:ee",
            "aa:bb:cc:dd:ee:ff:00",
            "aa:bb:cc:dd:ee:g0",
            "aabbccddeeff",
            "+a:bb:cc:dd:ee:ff",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_drawn_mac_is_unicast_and_local() {
        for first in 0..=255 {
            let mac = MacAddr::local_from_random([first, 0, 0, 0, 0, 0]);
            assert!(mac.is_unicast());
            assert_eq!(mac.octets()[0] & 2, 2);
        }
    }

    #[test]
    fn multicast_and_zero_are_not_unicast() {
        assert!(!MacAddr::new([0; 6]).is_unicast());
        assert!(!MacAddr::new([1, 0, 0x5e, 0, 0, 1]).is_unicast());
        assert!(!MacAddr::new([0xff; 6]).is_unicast());
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for name in ["eth0", "flannel.1", "wg0", "a", "exactly15bytes_"] {
            assert!(name.parse::<IfName>().is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "a:b", "sixteen_bytes___"] {
            assert!(name.parse::<IfName>().is_err(), "{name}");
        }
    }

    #[test]
    fn vxlan_takes_fifty_bytes() {
        assert_eq!(Mtu::try_from(1420).unwrap().inside_vxlan().unwrap().get(), 1370);
        assert!(Mtu::try_from(100).unwrap().inside_vxlan().is_err());
        assert!(Mtu::try_from(67).is_err());
        assert!(Mtu::try_from(65536).is_err());
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert!(Vni::try_from(0xff_ffff).is_ok());
        assert_eq!(Vni::try_from(0x100_0000), Err(AddrError::Vni(0x100_0000)));
    }
}
