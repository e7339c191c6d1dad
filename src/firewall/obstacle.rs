//! What drops pods' forwarded packets although our rules accept them, in words an operator can act on.
//!
//! An accept ends a packet's way through one chain only: every other chain on its way can still drop it. Nothing here is
//! fought over; it is named.

use std::fmt;

use ipnetwork::Ipv4Network;

use super::Variant;

/// Something that no rule of ours can overrule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// A forward chain of another program's nftables table, as `FAMILY TABLE CHAIN`: it ends with a drop or reject for
    /// everything, be it by its policy or by a rule.
    Chain(String),
    /// A rule of FORWARD that drops everything and stands before our jump, as `iptables-save` prints it.
    RuleAhead(Variant, String),
    /// The policy of FORWARD, while no chain of ours accepts before.
    Policy(Variant),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(chain) => {
                write!(f, "chain {chain} drops forwarded packets that no rule of its own accepts")
            }
            Self::RuleAhead(variant, rule) => {
                write!(
                    f,
                    "rule \"{rule}\" of {variant} drops forwarded packets before FORWARD comes to our jump"
                )
            }
            Self::Policy(variant) => {
                write!(
                    f,
                    "the policy of FORWARD in {variant} drops forwarded packets and no rule of ours accepts them"
                )
            }
        }
    }
}

impl Obstacle {
    /// What to do so that packets of `network` pass.
    #[must_use]
    pub fn cure(&self, network: Ipv4Network) -> String {
        match self {
            Self::Chain(chain) => format!(
                "if pods are not reached: nft insert rule {chain} ip saddr {network} accept && \
                 nft insert rule {chain} ip daddr {network} accept"
            ),
            Self::RuleAhead(variant, rule) => {
                format!(
                    "put the rule behind ours, where it stays: {variant} -D FORWARD {rule} && {variant} -A FORWARD {rule}"
                )
            }
            Self::Policy(variant) => format!(
                "let flanneld accept them (-iptables-forward-rules=true), or: {variant} -A FORWARD -s {network} -j ACCEPT && \
                 {variant} -A FORWARD -d {network} -j ACCEPT"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_with_its_cure() {
        let network = "10.200.0.0/16".parse().unwrap();
        let chain = Obstacle::Chain("inet guard gate".to_owned());
        assert_eq!(
            chain.to_string(),
            "chain inet guard gate drops forwarded packets that no rule of its own accepts"
        );
        assert_eq!(
            chain.cure(network),
            "if pods are not reached: nft insert rule inet guard gate ip saddr 10.200.0.0/16 accept && \
             nft insert rule inet guard gate ip daddr 10.200.0.0/16 accept"
        );
        let rule = Obstacle::RuleAhead(Variant::Legacy, "-j DROP".to_owned());
        assert_eq!(
            rule.to_string(),
            "rule \"-j DROP\" of iptables-legacy drops forwarded packets before FORWARD comes to our jump"
        );
        assert_eq!(
            rule.cure(network),
            "put the rule behind ours, where it stays: iptables-legacy -D FORWARD -j DROP && \
             iptables-legacy -A FORWARD -j DROP"
        );
        let policy = Obstacle::Policy(Variant::Nft);
        assert_eq!(
            policy.to_string(),
            "the policy of FORWARD in iptables-nft drops forwarded packets and no rule of ours accepts them"
        );
        assert_eq!(
            policy.cure(network),
            "let flanneld accept them (-iptables-forward-rules=true), or: iptables-nft -A FORWARD -s 10.200.0.0/16 -j ACCEPT && \
             iptables-nft -A FORWARD -d 10.200.0.0/16 -j ACCEPT"
        );
    }
}
