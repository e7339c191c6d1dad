//! TX checksum offload of the VXLAN device: what the operator chose, and what that means on this host's kernel.

use std::str::FromStr;

/// The first kernel series that is free of the bug.
///
/// When the UDP packet of a tunnel without outer checksum goes through NAT (kube-proxy's masquerading did that to node-to-service
/// traffic), older kernels "correct" the checksum that is not there and spoil the inner one, whose computation the offload had left
/// for later. The receiver drops the packet. Fixed by "netfilter: nat: never update the UDP checksum when it's 0" (Guillaume Nault,
/// `udp_manip_pkt` in `net/netfilter/nf_nat_proto.c`), which entered Linux between two release candidates of 5.7 and, later, the
/// stable kernels 5.6.13, 5.4.41, 4.19.123 and 4.14.181. A distribution's version number does not tell whether it has the
/// fix, so all of these count as old. The story is in kubernetes/kubernetes#88986 and flannel-io/flannel#1279.
const FIXED: KernelVersion = KernelVersion(5, 8);

/// Series of a kernel: the first two numbers of `uname -r`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl KernelVersion {
    /// Reads a release such as `5.4.0-150-generic`; `None` when it does not begin with two numbers.
    #[must_use]
    pub fn from_release(release: &str) -> Option<Self> {
        let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// What shall be done about the offload (`vxlan-tx-checksum`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TxChecksum {
    /// Off where the kernel has the bug, else as it is: off halves the throughput of TCP.
    #[default]
    Auto,
    /// As it is.
    Keep,
    /// On.
    On,
    /// Off.
    Off,
}

/// Not a value of the option `vxlan-tx-checksum`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", TxChecksum::EXPECTED)]
pub struct UnknownTxChecksum;

impl TxChecksum {
    /// What can be written.
    pub const EXPECTED: &str = "auto, keep, on or off";

    /// On or off as the device shall have it; `None` leaves it as it is.
    #[must_use]
    pub fn wanted(self, kernel: Option<KernelVersion>) -> Option<bool> {
        match self {
            Self::Auto => kernel.filter(|kernel| *kernel < FIXED).map(|_| false),
            Self::Keep => None,
            Self::On => Some(true),
            Self::Off => Some(false),
        }
    }
}

impl FromStr for TxChecksum {
    type Err = UnknownTxChecksum;

    fn from_str(text: &str) -> Result<Self, UnknownTxChecksum> {
        match text {
            "auto" => Ok(Self::Auto),
            "keep" => Ok(Self::Keep),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(UnknownTxChecksum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_off_where_the_bug_lives() {
        for (release, wanted) in [
            ("2.6.32-754.el6.x86_64", Some(false)),
            ("3.10.0-1127.8.2.el7.x86_64", Some(false)),
            ("4.15.0-213-generic", Some(false)),
            ("5.4.0-150-generic", Some(false)),
            ("5.7.19", Some(false)),
            ("5.8.0-63-generic", None),
            ("5.10.0-28-amd64", None),
            ("5.15.167.4-microsoft-standard-WSL2", None),
            ("6.1.0-13-amd64", None),
            ("6.18-rc1", None),
            ("10.0.1", None),
            ("", None),
            ("linux", None),
            ("5", None),
        ] {
            assert_eq!(TxChecksum::Auto.wanted(KernelVersion::from_release(release)), wanted, "{release:?}");
        }
    }

    #[test]
    fn an_order_is_an_order_on_every_kernel() {
        for kernel in [None, Some(KernelVersion(4, 19)), Some(KernelVersion(6, 1))] {
            let wanted = ["keep", "on", "off"].map(|text| text.parse::<TxChecksum>().unwrap().wanted(kernel));
            assert_eq!(wanted, [None, Some(true), Some(false)]);
        }
        assert_eq!("auto".parse(), Ok(TxChecksum::default()));
        assert_eq!("On".parse::<TxChecksum>().unwrap_err().to_string(), "expected auto, keep, on or off");
    }
}
