//! Which firewall holds the rules: decided from facts, with the reason in words.

use std::fmt;
use std::str::FromStr;

use super::iptables::Variant;

/// What the operator asked for (`firewall`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preference {
    /// Decide from what is on the host.
    #[default]
    Auto,
    /// A table of our own.
    Nftables,
    /// Chains in iptables.
    Iptables,
}

/// Not a value of the option `firewall`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a firewall (expected auto, nftables or iptables)")]
pub struct UnknownPreference(String);

impl FromStr for Preference {
    type Err = UnknownPreference;

    fn from_str(text: &str) -> Result<Self, UnknownPreference> {
        match text {
            "auto" => Ok(Self::Auto),
            "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            other => Err(UnknownPreference(other.to_owned())),
        }
    }
}

/// Where the rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The table `ip flannel-ipv4`, over netlink.
    Nftables,
    /// The chains FLANNEL-POSTRTG and FLANNEL-FWD of an iptables variant.
    Iptables(Variant),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables => f.write_str("nftables"),
            Self::Iptables(variant) => variant.fmt(f),
        }
    }
}

/// What is known of one iptables variant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VariantFacts {
    /// Its programs are installed.
    pub installed: bool,
    /// It holds rules, or a policy that is not accept.
    pub in_use: bool,
}

impl VariantFacts {
    const fn usable(self) -> bool {
        self.installed && self.in_use
    }
}

/// What the decision is made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// `EnableNFTables` of the network config.
    pub enable_nftables: bool,
    /// The kernel answers nftables requests.
    pub nftables: bool,
    /// iptables-legacy.
    pub legacy: VariantFacts,
    /// iptables-nft.
    pub nft: VariantFacts,
    /// What plain `iptables` stands for.
    pub default: Option<Variant>,
}

/// A decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Where the rules go.
    pub backend: Backend,
    /// Why there.
    pub reason: &'static str,
}

impl Choice {
    const fn new(backend: Backend, reason: &'static str) -> Self {
        Self { backend, reason }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.backend, self.reason)
    }
}

/// Decides. `None`: neither nftables nor a program of iptables can be used.
#[must_use]
pub fn choose(preference: Preference, facts: &Facts) -> Option<Choice> {
    let nftables = |reason| facts.nftables.then_some(Choice::new(Backend::Nftables, reason));
    match preference {
        Preference::Nftables => nftables("firewall=nftables"),
        Preference::Iptables => any_iptables(facts),
        Preference::Auto if facts.enable_nftables && facts.nftables => {
            nftables("EnableNFTables in the network config")
        }
        Preference::Auto => iptables_in_use(facts)
            .or_else(|| nftables("no rules in iptables"))
            .or_else(|| any_iptables(facts)),
    }
}

fn iptables_in_use(facts: &Facts) -> Option<Choice> {
    if facts.legacy.usable() {
        Some(Choice::new(Backend::Iptables(Variant::Legacy), "the host has rules in iptables-legacy"))
    } else if facts.nft.usable() {
        Some(Choice::new(Backend::Iptables(Variant::Nft), "the host has rules in iptables-nft"))
    } else {
        None
    }
}

fn any_iptables(facts: &Facts) -> Option<Choice> {
    let installed = |variant: &Variant| match variant {
        Variant::Legacy => facts.legacy.installed,
        Variant::Nft => facts.nft.installed,
    };
    let default = facts.default.filter(installed);
    let other = || [Variant::Nft, Variant::Legacy].into_iter().find(installed);
    iptables_in_use(facts)
        .or_else(|| {
            default.map(|variant| Choice::new(Backend::Iptables(variant), "the host's default iptables"))
        })
        .or_else(|| {
            other().map(|variant| Choice::new(Backend::Iptables(variant), "the only iptables installed"))
        })
}
