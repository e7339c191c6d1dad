//! Masquerade and forward rules as data, and how to find the rules that the Go daemon v0.16.1 left behind.
//!
//! The verdicts are those of the Go daemon v0.28.9 in its iptables mode. What renders them into a firewall's own
//! language, and what applies them, is in `firewall`.

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

/// The mark, and the mask it is compared under, of packets that kube-proxy masquerades itself.
pub const MASQUERADE_MARK: u32 = 0x4000;

/// Multicast destinations: such packets keep their source.
const MULTICAST: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(224, 0, 0, 0), 4) {
    Some(network) => network,
    None => unreachable!(),
};

/// The overlay network and the part of it that this node leases. Host bits are clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlay {
    /// `Network` of the network config.
    pub network: Ipv4Network,
    /// Our own lease.
    pub subnet: Ipv4Network,
}

/// Which addresses a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Every address.
    Any,
    /// Addresses inside.
    In(Ipv4Network),
    /// Addresses outside.
    NotIn(Ipv4Network),
}

impl Place {
    /// Addresses inside `network`; host bits do not matter, and `0.0.0.0/0` is every address.
    #[must_use]
    pub fn within(network: Ipv4Network) -> Self {
        if network.prefix() == 0 {
            return Self::Any;
        }
        Self::In(Ipv4Network::new(network.network(), network.prefix()).unwrap_or(network))
    }
}

/// What happens to a packet that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be forwarded.
    Accept,
    /// It keeps its source address as far as our rules are concerned.
    Return,
    /// It gets the address of the interface it leaves through.
    Masquerade {
        /// Source ports are drawn at random, which avoids lost packets when many flows start at once.
        fully_random: bool,
    },
}

/// One rule. All conditions have to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Only packets that carry [`MASQUERADE_MARK`], whatever other bits are set.
    pub marked: bool,
    /// Source address.
    pub source: Place,
    /// Destination address.
    pub destination: Place,
    /// What happens then.
    pub verdict: Verdict,
}

impl Rule {
    const fn new(source: Place, destination: Place, verdict: Verdict) -> Self {
        Self { marked: false, source, destination, verdict }
    }
}

/// In the words of `nft`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.marked {
            write!(f, "meta mark & {MASQUERADE_MARK:#010x} == {MASQUERADE_MARK:#010x} ")?;
        }
        for (side, place) in [("saddr", self.source), ("daddr", self.destination)] {
            match place {
                Place::Any => {}
                Place::In(network) => write!(f, "ip {side} {network} ")?,
                Place::NotIn(network) => write!(f, "ip {side} != {network} ")?,
            }
        }
        f.write_str(match self.verdict {
            Verdict::Accept => "accept",
            Verdict::Return => "return",
            Verdict::Masquerade { fully_random: true } => "masquerade fully-random",
            Verdict::Masquerade { fully_random: false } => "masquerade",
        })
    }
}

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOptions {
    /// Masquerade what leaves the overlay, and what enters it from this host (`ip-masq`).
    pub ip_masq: bool,
    /// Accept the overlay's packets in the forward chains (`iptables-forward-rules`).
    pub forward_rules: bool,
    /// Draw source ports at random (off with `ip-masq-fully-random-disable`).
    pub fully_random: bool,
    /// Destinations that see a pod's own address (`ip-masq-exclude`).
    pub exclude: Vec<Ipv4Network>,
}

/// The rules that have to stand on the host, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// What they were made for.
    pub overlay: Overlay,
    /// What they were made for before, where that is known (`subnet.env`): old bare forward rules are recognised by it.
    pub former: Option<Overlay>,
    /// For packets that leave through an interface; empty: none wanted.
    pub masquerade: Vec<Rule>,
    /// For packets that are forwarded; empty: none wanted.
    pub forward: Vec<Rule>,
}

impl RuleSet {
    /// The rules for an overlay.
    #[must_use]
    pub fn new(overlay: Overlay, former: Option<Overlay>, options: &RuleOptions) -> Self {
        let masquerade = if options.ip_masq { masquerade(overlay, options) } else { Vec::new() };
        let forward = if options.forward_rules { forward(overlay.network).to_vec() } else { Vec::new() };
        Self { overlay, former, masquerade, forward }
    }
}

/// The order matters: between pods nothing is rewritten, towards our pods nothing is, and the first rule that
/// matches decides.
fn masquerade(overlay: Overlay, options: &RuleOptions) -> Vec<Rule> {
    let Overlay { network, subnet } = overlay;
    let (inside, outside) = (Place::In(network), Place::NotIn(network));
    let rewrite = Verdict::Masquerade { fully_random: options.fully_random };
    let keep = |source, destination| Rule::new(source, destination, Verdict::Return);
    let mut rules = vec![
        Rule { marked: true, ..keep(Place::Any, Place::Any) },
        keep(Place::In(subnet), inside),
        keep(inside, Place::In(subnet)),
        keep(outside, Place::In(subnet)),
    ];
    rules.extend(options.exclude.iter().map(|excluded| keep(inside, Place::within(*excluded))));
    rules.push(Rule::new(inside, Place::NotIn(MULTICAST), rewrite));
    rules.push(Rule::new(outside, inside, rewrite));
    rules
}

fn forward(network: Ipv4Network) -> [Rule; 2] {
    let inside = Place::In(network);
    [Rule::new(inside, Place::Any, Verdict::Accept), Rule::new(Place::Any, inside, Verdict::Accept)]
}

/// Finds sets of masquerade rules as v0.16.1 puts them straight into the nat POSTROUTING chain.
///
/// `rules` is the whole chain; `None` stands for a rule that no flanneld wrote. The answer has, per set, the overlay
/// it was made for and the places of its four rules. Rules that only look alike but are not part of a complete set
/// in the right order are not in it.
#[must_use]
pub fn find_bare_masquerade(rules: &[Option<Rule>]) -> Vec<(Overlay, [usize; 4])> {
    let mut left = rules.to_vec();
    let mut found = Vec::new();
    for start in 0..left.len() {
        let Some((overlay, places)) = bare_set_from(&left, start) else { continue };
        left.iter_mut().enumerate().filter(|(at, _)| places.contains(at)).for_each(|(_, rule)| *rule = None);
        found.push((overlay, places));
    }
    found
}

/// The set whose first rule stands at `first`: of each further rule the nearest that follows.
fn bare_set_from(rules: &[Option<Rule>], first: usize) -> Option<(Overlay, [usize; 4])> {
    let Rule { marked: false, source: Place::In(network), destination, verdict: Verdict::Return } =
        rules.get(first).copied().flatten()?
    else {
        return None;
    };
    let (inside, outside) = (Place::In(network), Place::NotIn(network));
    if destination != inside {
        return None;
    }
    let after = |at: usize, wanted: &dyn Fn(&Rule) -> bool| {
        let rest = rules.iter().enumerate().skip(at.saturating_add(1));
        rest.filter_map(|(at, rule)| rule.map(|rule| (at, rule))).find(|(_, rule)| wanted(rule))
    };
    let leaves = |rule: &Rule| {
        let expected = Rule::new(inside, Place::NotIn(MULTICAST), rule.verdict);
        matches!(rule.verdict, Verdict::Masquerade { .. }) && *rule == expected
    };
    let (second, Rule { verdict: rewrite, .. }) = after(first, &leaves)?;
    let (third, own) = after(second, &|rule| own_subnet(rule, network).is_some())?;
    let (fourth, _) = after(third, &|rule| *rule == Rule::new(outside, inside, rewrite))?;
    let subnet = own_subnet(&own, network)?;
    Some((Overlay { network, subnet }, [first, second, third, fourth]))
}

/// The subnet of a rule that lets packets from outside `network` to that subnet keep their source.
fn own_subnet(rule: &Rule, network: Ipv4Network) -> Option<Ipv4Network> {
    let Place::In(subnet) = rule.destination else { return None };
    let is_part = subnet.is_subnet_of(network) && subnet != network;
    let expected = Rule::new(Place::NotIn(network), rule.destination, Verdict::Return);
    (is_part && *rule == expected).then_some(subnet)
}

/// Finds the pairs of forward rules that v0.16.1 puts straight into the FORWARD chain, for `networks`.
///
/// Such a pair says little about who wrote it, so the networks have to be known otherwise. The answer is the places
/// of the rules in `rules`, which is the whole chain (`None`: no flanneld wrote it).
#[must_use]
pub fn find_bare_forward(rules: &[Option<Rule>], networks: &[Ipv4Network]) -> Vec<usize> {
    let mut places = Vec::new();
    for network in networks {
        let [from, to] = forward(*network).map(Some);
        let mut firsts = VecDeque::new();
        for (at, rule) in rules.iter().enumerate() {
            if *rule == from {
                firsts.push_back(at);
            } else if *rule == to {
                places.extend(firsts.pop_front().into_iter().flat_map(|first| [first, at]));
            }
        }
    }
    places.sort_unstable();
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn overlay() -> Overlay {
        Overlay { network: network("10.200.0.0/16"), subnet: network("10.200.43.0/24") }
    }

    fn options() -> RuleOptions {
        RuleOptions { ip_masq: true, forward_rules: true, fully_random: true, exclude: Vec::new() }
    }

    fn text(rules: &[Rule]) -> Vec<String> {
        rules.iter().map(ToString::to_string).collect()
    }

    /// What the first rule that matches says; `None`: none does.
    fn verdict(rules: &[Rule], from: &str, to: &str, mark: u32) -> Option<Verdict> {
        let lies = |place: Place, ip: &str| match place {
            Place::Any => true,
            Place::In(network) => network.contains(ip.parse().unwrap()),
            Place::NotIn(network) => !network.contains(ip.parse().unwrap()),
        };
        let matches = |rule: &&Rule| {
            (!rule.marked || mark & MASQUERADE_MARK != 0)
                && lies(rule.source, from)
                && lies(rule.destination, to)
        };
        rules.iter().find(matches).map(|rule| rule.verdict)
    }

    #[test]
    fn rules_of_an_overlay() {
        let rules = RuleSet::new(overlay(), None, &options());
        let expected = [
            "meta mark & 0x00004000 == 0x00004000 return",
            "ip saddr 10.200.43.0/24 ip daddr 10.200.0.0/16 return",
            "ip saddr 10.200.0.0/16 ip daddr 10.200.43.0/24 return",
            "ip saddr != 10.200.0.0/16 ip daddr 10.200.43.0/24 return",
            "ip saddr 10.200.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
            "ip saddr != 10.200.0.0/16 ip daddr 10.200.0.0/16 masquerade fully-random",
        ];
        assert_eq!(text(&rules.masquerade), expected);
        assert_eq!(text(&rules.forward), ["ip saddr 10.200.0.0/16 accept", "ip daddr 10.200.0.0/16 accept"]);
    }

    #[test]
    fn options_leave_rules_out() {
        let off = RuleOptions { ip_masq: false, forward_rules: false, ..options() };
        let rules = RuleSet::new(overlay(), None, &off);
        assert_eq!((rules.masquerade.len(), rules.forward.len()), (0, 0));
        let plain = RuleSet::new(overlay(), None, &RuleOptions { fully_random: false, ..options() });
        assert!(text(&plain.masquerade)[4].ends_with(" masquerade"));
    }

    #[test]
    fn verdicts() {
        let exclude = vec![network("192.168.7.9/24")];
        let rules = RuleSet::new(overlay(), None, &RuleOptions { exclude, ..options() }).masquerade;
        let rewritten = Some(Verdict::Masquerade { fully_random: true });
        let kept = Some(Verdict::Return);
        for (from, to, mark, expected) in [
            ("10.200.43.2", "10.200.43.3", 0, kept),
            ("10.200.43.2", "10.200.16.2", 0, kept),
            ("10.200.43.2", "8.8.8.8", 0, rewritten),
            ("10.200.43.2", "8.8.8.8", 0x4000, kept),
            ("10.200.43.2", "8.8.8.8", 0xc000, kept),
            ("10.200.43.2", "8.8.8.8", 0x8000, rewritten),
            ("10.200.43.2", "239.1.1.1", 0, None),
            ("10.200.43.2", "192.168.7.1", 0, kept),
            ("10.200.16.2", "10.200.43.2", 0, kept),
            ("10.200.16.2", "8.8.8.8", 0, rewritten),
            ("10.200.16.2", "10.200.17.2", 0, rewritten),
            ("8.8.8.8", "10.200.43.2", 0, kept),
            ("8.8.8.8", "10.200.16.2", 0, rewritten),
            ("192.168.7.1", "10.200.16.2", 0, rewritten),
            ("8.8.8.8", "9.9.9.9", 0, None),
        ] {
            assert_eq!(verdict(&rules, from, to, mark), expected, "{from} to {to} mark {mark:#x}");
        }
    }

    #[test]
    fn excluding_everything_is_a_rule_without_a_destination() {
        let exclude = vec![network("0.0.0.0/0")];
        let rules = RuleSet::new(overlay(), None, &RuleOptions { exclude, ..options() }).masquerade;
        assert_eq!(rules[4].to_string(), "ip saddr 10.200.0.0/16 return");
    }

    /// The set v0.16.1 writes.
    fn bare(overlay: Overlay, fully_random: bool) -> [Option<Rule>; 4] {
        let (inside, outside) = (Place::In(overlay.network), Place::NotIn(overlay.network));
        let rewrite = Verdict::Masquerade { fully_random };
        [
            Some(Rule::new(inside, inside, Verdict::Return)),
            Some(Rule::new(inside, Place::NotIn(MULTICAST), rewrite)),
            Some(Rule::new(outside, Place::In(overlay.subnet), Verdict::Return)),
            Some(Rule::new(outside, inside, rewrite)),
        ]
    }

    #[test]
    fn bare_sets_are_found_whole_or_not_at_all() {
        let set = bare(overlay(), true);
        let other = Overlay { network: network("10.100.0.0/16"), subnet: network("10.100.1.0/24") };
        let foreign = [None];
        let lone = [set[0]];
        let both = [&foreign[..], &set, &lone, &bare(other, false)].concat();
        let found = find_bare_masquerade(&both);
        assert_eq!(found, [(overlay(), [1, 2, 3, 4]), (other, [6, 7, 8, 9])]);
        let apart = [&set[..2], &foreign, &set[2..]].concat();
        assert_eq!(find_bare_masquerade(&apart), [(overlay(), [0, 1, 3, 4])]);
        for missing in 0..4 {
            let rules: Vec<_> =
                set.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, rule)| *rule).collect();
            assert_eq!(find_bare_masquerade(&rules), [], "without rule {missing}");
        }
        let mut reversed = set;
        reversed.reverse();
        assert_eq!(find_bare_masquerade(&reversed), []);
        let mixed = [set[0], set[1], set[2], bare(overlay(), false)[3]];
        assert_eq!(find_bare_masquerade(&mixed), [], "both masquerade rules come from one daemon");
        let whole = Overlay { network: network("10.200.0.0/16"), subnet: network("10.200.0.0/16") };
        assert_eq!(find_bare_masquerade(&bare(whole, true)), []);
    }

    #[test]
    fn bare_forward_rules_are_found_for_known_networks_only() {
        let [from, to] = forward(network("10.200.0.0/16")).map(Some);
        let rules = [from, None, to];
        assert_eq!(find_bare_forward(&rules, &[network("10.200.0.0/16"), network("10.200.0.0/16")]), [0, 2]);
        assert_eq!(find_bare_forward(&rules, &[network("10.100.0.0/16")]), [0; 0]);
        let twice = [to, from, from, to, to, from, to];
        assert_eq!(find_bare_forward(&twice, &[network("10.200.0.0/16")]), [1, 2, 3, 4, 5, 6]);
        assert_eq!(find_bare_forward(&[from], &[network("10.200.0.0/16")]), [0; 0]);
        assert_eq!(find_bare_forward(&[to, from], &[network("10.200.0.0/16")]), [0; 0]);
    }
}
