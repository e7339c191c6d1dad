//! Which packets a table sees.

use nix::libc;

/// An address family of netfilter (`NFPROTO_…`), as the first byte of `nfgenmsg` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Family(pub(super) u8);

impl Family {
    /// Any: in requests that list everything.
    pub(super) const UNSPEC: Self = Self::new(libc::NFPROTO_UNSPEC);
    /// IPv4 and IPv6 (`inet`).
    pub(super) const INET: Self = Self::new(libc::NFPROTO_INET);
    /// `ip`
    pub(super) const IPV4: Self = Self::new(libc::NFPROTO_IPV4);
    /// `ip6`
    pub(super) const IPV6: Self = Self::new(libc::NFPROTO_IPV6);

    const fn new(number: libc::c_int) -> Self {
        assert!(number >= 0 && number < 256);
        let [.., byte] = number.to_be_bytes();
        Self(byte)
    }
}
