//! Why the kernel refused a request, in words an operator can act on.
//!
//! Only turns numbers and the kernel's own texts into messages; it neither retries nor decides what is harmless.

use std::io;

use nix::errno::Errno;
use nix::libc;

use super::KernelError;

/// A request that the kernel refused, or an answer that did not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Positive errno; 0 when the failure was not an answer of the kernel.
    pub(super) errno: i32,
    /// The extended acknowledgement, or what went wrong on the way.
    pub(super) words: Option<String>,
}

impl Refusal {
    /// A failure that is no answer of the kernel. It may be retried.
    pub(super) fn without_answer(words: &str) -> Self {
        Self { errno: 0, words: Some(words.to_owned()) }
    }

    /// Adds what was attempted, and a cure where one is known.
    pub(super) fn doing(&self, doing: String) -> KernelError {
        let mut reason = match (self.errno, &self.words) {
            (0, words) => words.clone().unwrap_or_default(),
            (errno, None) => Errno::from_raw(errno).desc().to_owned(),
            (errno, Some(words)) => format!("{} ({words})", Errno::from_raw(errno).desc()),
        };
        if let Some(cure) = self.cure() {
            reason.push_str("; ");
            reason.push_str(cure);
        }
        KernelError { doing, reason, errno: self.errno }
    }

    fn cure(&self) -> Option<&'static str> {
        let says = |text: &str| self.words.as_deref().is_some_and(|words| words.contains(text));
        match self.errno {
            libc::EPERM | libc::EACCES => Some("flanneld needs the capability CAP_NET_ADMIN"),
            libc::EOPNOTSUPP if says("Unknown device type") => {
                Some("the kernel has no VXLAN support: modprobe vxlan")
            }
            // fib_check_nh_v4_gw (net/ipv4/fib_semantics.c)
            _ if says("invalid gateway") => {
                Some("no address of a device that is up covers the gateway, or it is an address of this host")
            }
            libc::ENOBUFS if says("Neighbour table overflow") => {
                Some("raise net.ipv4.neigh.default.gc_thresh3")
            }
            _ => None,
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self { errno, words: None },
            None => Self { errno: 0, words: Some(error.to_string()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_come_with_a_cure() {
        let words = Some("Nexthop has invalid gateway".to_owned());
        let error = Refusal { errno: libc::ENETUNREACH, words }
            .doing("ip route replace 10.200.2.0/24 via 10.8.0.112".to_owned());
        assert_eq!(
            error.to_string(),
            "ip route replace 10.200.2.0/24 via 10.8.0.112: Network is unreachable (Nexthop has invalid gateway); \
             no address of a device that is up covers the gateway, or it is an address of this host"
        );
    }

    #[test]
    fn without_a_text_the_errno_speaks() {
        let error = Refusal { errno: libc::EBUSY, words: None }.doing("ip link del flannel.1".to_owned());
        assert_eq!(error.to_string(), "ip link del flannel.1: Device or resource busy");
        let lost = Refusal::without_answer("the answer was lost").doing("ip addr".to_owned());
        assert_eq!((lost.to_string().as_str(), lost.errno), ("ip addr: the answer was lost", 0));
    }
}
