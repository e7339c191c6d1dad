//! What can go wrong with a firewall, in words an operator can act on.

use super::Variant;

/// Why the rules could not be put into force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// The kernel refused a request.
    #[error("cannot {doing}: {reason}")]
    Nftables {
        /// The request, in the words of `nft`.
        doing: String,
        /// The kernel's answer and, where one is known, the cure.
        reason: String,
        /// Another try can succeed.
        retry: bool,
    },
    /// A program of iptables failed.
    #[error("{program} failed: {reason}")]
    Iptables {
        /// The command line.
        program: String,
        /// Its last words, or why it could not be run.
        reason: String,
    },
    /// Somebody holds the lock of iptables.
    #[error(
        "the rules in {variant} wait for the lock /run/xtables.lock, which another program holds: {reason}"
    )]
    Locked {
        /// The variant.
        variant: Variant,
        /// The program's words.
        reason: String,
    },
    /// Rules were written and do not stand as written: another program changes them, or prints them in another way.
    #[error("the rules written to iptables are not those that stand there now: {changes}")]
    NotKept {
        /// What differs.
        changes: String,
    },
    /// A variant has tables, or is to get rules, and its programs are not there.
    #[error(
        "the rules of {0} cannot be read or written: {0}-save is not installed (install the package iptables)"
    )]
    NotInstalled(Variant),
    /// Nothing that could hold the rules.
    #[error("no firewall can be used: {0} (install iptables, or load the kernel module nf_tables)")]
    NoBackend(&'static str),
}

impl FirewallError {
    /// Whether the same call can succeed later without anybody's doing.
    #[must_use]
    pub fn retry(&self) -> bool {
        match self {
            Self::Nftables { retry, .. } => *retry,
            Self::Iptables { .. } | Self::Locked { .. } | Self::NotKept { .. } => true,
            Self::NotInstalled(_) | Self::NoBackend(_) => false,
        }
    }
}
