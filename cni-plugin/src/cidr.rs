//! An address with a prefix length, as `subnet.env` and routes spell it. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address and a prefix length that fits its family; host bits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Text that is no CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a CIDR such as 10.200.17.1/24")]
pub struct NotACidr(String);

impl Cidr {
    /// The pair, unless the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= width(address)).then_some(Self { address, prefix })
    }

    /// The address as written, host bits included.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the address is an IPv4 one.
    pub fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// The same network with all host bits zero: `10.200.17.1/24` is `10.200.17.0/24`.
    pub fn network(self) -> Self {
        self.with_bits(self.bits() & self.mask())
    }

    /// The network's first address after the network address, which host-local uses as gateway.
    pub fn first_host(self) -> Self {
        self.with_bits((self.bits() & self.mask()).saturating_add(1))
    }

    /// Whether one network holds the other; networks of different families never do.
    pub fn overlaps(self, other: Self) -> bool {
        let mask = if self.prefix < other.prefix { self.mask() } else { other.mask() };
        self.is_ipv4() == other.is_ipv4() && self.bits() & mask == other.bits() & mask
    }

    fn bits(self) -> u128 {
        match self.address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        }
    }

    fn mask(self) -> u128 {
        let host_bits = u32::from(width(self.address) - self.prefix);
        u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }

    fn with_bits(self, bits: u128) -> Self {
        let address = match self.address {
            // The low 32 bits are the address; the mask above leaves nothing else.
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        };
        Self { address, prefix: self.prefix }
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            // u8's own parser would accept a plus sign.
            let digits = prefix.bytes().all(|byte| byte.is_ascii_digit());
            let prefix = digits.then(|| prefix.parse().ok()).flatten()?;
            Self::new(address.parse().ok()?, prefix)
        };
        parse().ok_or_else(|| NotACidr(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_prints_both_families() {
        for text in ["10.200.17.1/24", "0.0.0.0/0", "fc00::1/64", "::/0", "10.0.0.1/32"] {
            assert_eq!(cidr(text).to_string(), text);
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "/24",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.01/8",
            "10.0.0.0/8 ",
            " 10.0.0.0/8",
            "fc00::/129",
            "fe80::1%eth0/64",
            "a/8",
            "10.0.0.0/8/8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn masks_to_the_network() {
        for (text, network, first) in [
            ("10.200.17.9/24", "10.200.17.0/24", "10.200.17.1/24"),
            ("10.96.0.1/12", "10.96.0.0/12", "10.96.0.1/12"),
            ("1.2.3.4/0", "0.0.0.0/0", "0.0.0.1/0"),
            ("255.255.255.255/32", "255.255.255.255/32", "255.255.255.255/32"),
            ("fc00::7/64", "fc00::/64", "fc00::1/64"),
            ("fc00::7/0", "::/0", "::1/0"),
        ] {
            assert_eq!(cidr(text).network().to_string(), network);
            assert_eq!(cidr(text).first_host().to_string(), first);
        }
    }

    #[test]
    fn overlap_is_containment_either_way() {
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.200.17.0/24")));
        assert!(cidr("10.200.17.0/24").overlaps(cidr("10.0.0.0/8")));
        assert!(!cidr("10.200.16.0/24").overlaps(cidr("10.200.17.0/24")));
        assert!(!cidr("0.0.0.0/0").overlaps(cidr("::/0")));
        assert!(cidr("fc00::/48").overlaps(cidr("fc00::1/64")));
    }
}
