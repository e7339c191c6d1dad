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
            .or_else(|| nftables("no installed iptables has rules"))
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

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: VariantFacts = VariantFacts { installed: false, in_use: false };
    const IDLE: VariantFacts = VariantFacts { installed: true, in_use: false };
    const USED: VariantFacts = VariantFacts { installed: true, in_use: true };
    const GONE: VariantFacts = VariantFacts { installed: false, in_use: true };

    fn facts(legacy: VariantFacts, nft: VariantFacts) -> Facts {
        Facts { enable_nftables: false, nftables: true, legacy, nft, default: Some(Variant::Nft) }
    }

    fn chosen(preference: Preference, facts: &Facts) -> String {
        choose(preference, facts).map_or_else(|| "none".to_owned(), |choice| choice.to_string())
    }

    #[test]
    fn auto_follows_what_is_on_the_host() {
        for (legacy, nft, expected) in [
            (IDLE, IDLE, "nftables (no installed iptables has rules)"),
            (NONE, NONE, "nftables (no installed iptables has rules)"),
            (IDLE, USED, "iptables-nft (the host has rules in iptables-nft)"),
            (USED, IDLE, "iptables-legacy (the host has rules in iptables-legacy)"),
            (USED, USED, "iptables-legacy (the host has rules in iptables-legacy)"),
            (GONE, USED, "iptables-nft (the host has rules in iptables-nft)"),
            (NONE, GONE, "nftables (no installed iptables has rules)"),
        ] {
            assert_eq!(chosen(Preference::Auto, &facts(legacy, nft)), expected);
        }
    }

    #[test]
    fn the_network_config_wins_over_the_host() {
        let facts = Facts { enable_nftables: true, ..facts(USED, USED) };
        assert_eq!(chosen(Preference::Auto, &facts), "nftables (EnableNFTables in the network config)");
        let without = Facts { nftables: false, ..facts };
        assert_eq!(
            chosen(Preference::Auto, &without),
            "iptables-legacy (the host has rules in iptables-legacy)"
        );
    }

    #[test]
    fn an_explicit_wish_wins_over_everything() {
        let config = Facts { enable_nftables: true, ..facts(USED, IDLE) };
        assert_eq!(chosen(Preference::Nftables, &config), "nftables (firewall=nftables)");
        assert_eq!(
            chosen(Preference::Iptables, &config),
            "iptables-legacy (the host has rules in iptables-legacy)"
        );
        assert_eq!(
            chosen(Preference::Iptables, &facts(IDLE, IDLE)),
            "iptables-nft (the host's default iptables)"
        );
        let legacy = Facts { default: Some(Variant::Legacy), ..facts(IDLE, IDLE) };
        assert_eq!(chosen(Preference::Iptables, &legacy), "iptables-legacy (the host's default iptables)");
        let odd = Facts { default: None, ..facts(IDLE, NONE) };
        assert_eq!(chosen(Preference::Iptables, &odd), "iptables-legacy (the only iptables installed)");
    }

    #[test]
    fn what_is_not_there_is_not_chosen() {
        let without = |legacy, nft| Facts { nftables: false, ..facts(legacy, nft) };
        assert_eq!(chosen(Preference::Nftables, &without(IDLE, IDLE)), "none");
        assert_eq!(chosen(Preference::Iptables, &facts(NONE, NONE)), "none");
        assert_eq!(chosen(Preference::Auto, &without(NONE, NONE)), "none");
        assert_eq!(
            chosen(Preference::Auto, &without(IDLE, NONE)),
            "iptables-legacy (the only iptables installed)"
        );
    }

    #[test]
    fn preferences_are_read() {
        assert_eq!("nftables".parse(), Ok(Preference::Nftables));
        assert!("nft".parse::<Preference>().unwrap_err().to_string().contains("auto, nftables or iptables"));
    }
}
