//! Compares what `iptables-save` printed with what is wanted and writes the input of one `iptables-restore`.
//!
//! Inside our chains content and order are ours. In the built-in chains only our jumps are, wherever they stand, and the
//! bare rules that the Go daemon v0.16.1 wrote.

use super::save::{Saved, SavedRule, SavedTable, bare_rule, line, rule_words};
use crate::model::masquerade::{Rule, RuleSet, find_bare_forward, find_bare_masquerade};

/// What one iptables variant should hold of ours. No rules: no chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    pub(super) masquerade: &'a [Rule],
    pub(super) forward: &'a [Rule],
    /// Rules of the Go daemon v0.16.1 for the overlays of this set are removed; `None`: they stay.
    pub(super) replaces: Option<&'a RuleSet>,
}

/// The way from what is there to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// For `iptables-restore --noflush`.
    pub(super) input: String,
    /// What was wrong, for the log.
    pub(super) changes: Vec<String>,
}

/// One chain of ours and the built-in chain that leads to it.
pub(super) struct Place {
    table: &'static str,
    hook: &'static str,
    pub(super) chain: &'static str,
    comment: &'static str,
}

const MASQUERADE: Place =
    Place { table: "nat", hook: "POSTROUTING", chain: "FLANNEL-POSTRTG", comment: "flanneld masq" };
pub(super) const FORWARD: Place =
    Place { table: "filter", hook: "FORWARD", chain: "FLANNEL-FWD", comment: "flanneld forward" };

/// Whether a table holds our chain for forwarded packets.
pub(super) fn holds_forward(table: &SavedTable) -> bool {
    table.chains.contains_key(FORWARD.chain)
}

/// `None`: everything is as wanted.
pub(super) fn plan(saved: &Saved, wanted: &Wanted<'_>) -> Option<Plan> {
    let none = SavedTable::default();
    let mut plan = Plan { input: String::new(), changes: Vec::new() };
    let bare = bare_rules(saved, wanted.replaces);
    let tables =
        [(&MASQUERADE, wanted.masquerade, &bare.masquerade), (&FORWARD, wanted.forward, &bare.forward)];
    for (place, rules, bare) in tables {
        let table = saved.tables.get(place.table).unwrap_or(&none);
        let mut lines = chain_lines(table, place, rules, &mut plan.changes);
        if !bare.is_empty() {
            plan.changes.push(format!("removed rules of flanneld v0.16.1 from {}", place.hook));
            lines.extend(bare.iter().map(|words| format!("-D {} {}", place.hook, line(words))));
        }
        if !lines.is_empty() {
            plan.input.push_str(&format!("*{}\n{}\nCOMMIT\n", place.table, lines.join("\n")));
        }
    }
    (!plan.input.is_empty()).then_some(plan)
}

fn chain_lines(table: &SavedTable, place: &Place, rules: &[Rule], changes: &mut Vec<String>) -> Vec<String> {
    let Place { chain, hook, comment, .. } = place;
    let jump = line(&jump_words(place));
    let is_jump = |words: &Vec<String>| *words == jump_words(place);
    let jumps = table.rules_in(hook).filter(|rule| is_jump(&rule.words)).count();
    let exists = table.chains.contains_key(*chain);
    let wanted: Vec<Vec<String>> = rules.iter().map(|rule| rule_words(rule, comment)).collect();
    let keep = usize::from(!rules.is_empty());
    let mut lines = Vec::new();
    if keep == 1 && !table.rules_in(chain).map(|rule| &rule.words).eq(wanted.iter()) {
        changes.push(if exists {
            format!("chain {chain} had other rules")
        } else {
            format!("chain {chain} was missing")
        });
        lines.push(format!(":{chain} - [0:0]"));
        lines.extend(wanted.iter().map(|words| format!("-A {chain} {}", line(words))));
    }
    if jumps < keep {
        changes.push(format!("the jump from {hook} to {chain} was missing"));
        lines.push(format!("-A {hook} {jump}"));
    }
    if jumps > keep {
        lines.extend(std::iter::repeat_n(format!("-D {hook} {jump}"), jumps - keep));
    }
    if jumps > keep && keep == 1 {
        changes.push(format!("{hook} had more than one jump to {chain}"));
    }
    if keep == 0 && exists {
        remove(table, place, jumps, (&mut lines, changes));
    }
    lines
}

/// A chain that other rules lead to cannot be deleted; then it is only emptied, once.
fn remove(
    table: &SavedTable,
    place: &Place,
    jumps: usize,
    (lines, changes): (&mut Vec<String>, &mut Vec<String>),
) {
    let chain = place.chain;
    let leads_here = |rule: &&SavedRule| rule.chain != chain && rule.target() == Some(chain);
    let references = table.rules.iter().filter(leads_here).count();
    if references == jumps {
        lines.extend([format!(":{chain} - [0:0]"), format!("-X {chain}")]);
        changes.push(format!("removed chain {chain}"));
    } else if table.rules_in(chain).next().is_some() {
        lines.push(format!(":{chain} - [0:0]"));
        changes.push(format!("emptied chain {chain}, to which rules of others lead"));
    }
}

fn jump_words(place: &Place) -> Vec<String> {
    ["-m", "comment", "--comment", place.comment, "-j", place.chain].map(str::to_owned).to_vec()
}

#[derive(Default)]
struct Bare {
    masquerade: Vec<Vec<String>>,
    forward: Vec<Vec<String>>,
}

/// An operator who wants no forward rules from us may have written such a pair; it goes only together with a
/// masquerade set of the same network.
fn bare_rules(saved: &Saved, replaces: Option<&RuleSet>) -> Bare {
    let Some(replaces) = replaces else { return Bare::default() };
    let (postrouting, rules) = bare_chain(saved, &MASQUERADE);
    let sets = find_bare_masquerade(&rules);
    let mut networks: Vec<_> = sets.iter().map(|(overlay, _)| overlay.network).collect();
    if !replaces.forward.is_empty() {
        networks.push(replaces.overlay.network);
        networks.extend(replaces.former.map(|former| former.network));
    }
    let (forward, rules) = bare_chain(saved, &FORWARD);
    let pick = |chain: &[Vec<String>], places: &[usize]| {
        places.iter().filter_map(|place| chain.get(*place).cloned()).collect::<Vec<_>>()
    };
    let masquerade = sets.iter().flat_map(|(_, places)| pick(&postrouting, places)).collect();
    Bare { masquerade, forward: pick(&forward, &find_bare_forward(&rules, &networks)) }
}

/// The rules of a built-in chain, as words and, where they can be, as rules without comment.
fn bare_chain(saved: &Saved, place: &Place) -> (Vec<Vec<String>>, Vec<Option<Rule>>) {
    let table = saved.tables.get(place.table);
    let words: Vec<_> = table
        .into_iter()
        .flat_map(|table| table.rules_in(place.hook))
        .map(|rule| rule.words.clone())
        .collect();
    let rules = words.iter().map(|words| bare_rule(words)).collect();
    (words, rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::masquerade::{Overlay, RuleOptions};

    const GO_016: &str = include_str!("../../../tests/fixtures/firewall/v0.16.1-nft.save");
    const GO_020: &str = include_str!("../../../tests/fixtures/firewall/v0.20.2-nft.save");
    const GO_028: &str = include_str!("../../../tests/fixtures/firewall/v0.28.9-nft.save");

    fn rules(subnet: &str) -> RuleSet {
        let overlay = Overlay { network: "10.200.0.0/16".parse().unwrap(), subnet: subnet.parse().unwrap() };
        let options =
            RuleOptions { ip_masq: true, forward_rules: true, fully_random: true, exclude: Vec::new() };
        RuleSet::new(overlay, None, &options)
    }

    fn to(rules: &RuleSet) -> Wanted<'_> {
        Wanted { masquerade: &rules.masquerade, forward: &rules.forward, replaces: Some(rules) }
    }

    fn input(saved: &str, wanted: &Wanted<'_>) -> Option<String> {
        plan(&Saved::parse(saved), wanted).map(|plan| plan.input)
    }

    #[test]
    fn what_go_v0_28_9_wrote_is_left_as_it_is() {
        assert_eq!(input(GO_028, &to(&rules("10.200.43.0/24"))), None);
    }

    #[test]
    fn an_empty_host_gets_everything() {
        let expected = "\
*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.200.43.0/24 -d 10.200.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.200.0.0/16 -d 10.200.43.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.200.0.0/16 -d 10.200.43.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.200.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.200.0.0/16 -d 10.200.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FLANNEL-FWD -s 10.200.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.200.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
COMMIT
";
        assert_eq!(input("", &to(&rules("10.200.43.0/24"))).unwrap(), expected);
    }

    #[test]
    fn the_chain_of_go_v0_20_is_rewritten_and_its_jump_kept() {
        let input = input(GO_020, &to(&rules("10.200.72.0/24"))).unwrap();
        assert!(input.starts_with("*nat\n:FLANNEL-POSTRTG - [0:0]\n-A FLANNEL-POSTRTG -m mark"));
        assert!(!input.contains("-A POSTROUTING") && !input.contains("*filter"), "{input}");
    }

    #[test]
    fn the_bare_rules_of_go_v0_16_go_in_the_same_transaction() {
        let rules = rules("10.200.93.0/24");
        let plan = plan(&Saved::parse(GO_016), &to(&rules)).unwrap();
        let removed: Vec<_> = plan.input.lines().filter(|line| line.starts_with("-D")).collect();
        let expected = [
            "-D POSTROUTING -s 10.200.0.0/16 -d 10.200.0.0/16 -j RETURN",
            "-D POSTROUTING -s 10.200.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
            "-D POSTROUTING ! -s 10.200.0.0/16 -d 10.200.93.0/24 -j RETURN",
            "-D POSTROUTING ! -s 10.200.0.0/16 -d 10.200.0.0/16 -j MASQUERADE --random-fully",
            "-D FORWARD -s 10.200.0.0/16 -j ACCEPT",
            "-D FORWARD -d 10.200.0.0/16 -j ACCEPT",
        ];
        assert_eq!(removed, expected);
        assert!(plan.input.find("-A POSTROUTING").unwrap() < plan.input.find("-D POSTROUTING").unwrap());
        assert_eq!(plan.changes.len(), 6, "{:?}", plan.changes);
    }

    #[test]
    fn without_forward_rules_an_operators_pair_stays() {
        let mut rules = rules("10.200.43.0/24");
        rules.forward.clear();
        let saved =
            "*filter\n-A FORWARD -s 10.200.0.0/16 -j ACCEPT\n-A FORWARD -d 10.200.0.0/16 -j ACCEPT\nCOMMIT\n";
        assert!(!input(saved, &to(&rules)).unwrap().contains("-D"));
        let former =
            Overlay { network: "10.7.0.0/16".parse().unwrap(), subnet: "10.7.1.0/24".parse().unwrap() };
        let forward = RuleSet { former: Some(former), ..self::rules("10.200.43.0/24") };
        let saved = saved.replace("10.200.", "10.7.");
        assert_eq!(input(&saved, &to(&forward)).unwrap().matches("-D FORWARD").count(), 2);
    }

    #[test]
    fn a_jump_is_put_back_and_a_second_one_taken_away() {
        let rules = rules("10.200.43.0/24");
        let jump = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n";
        let without = GO_028.replace(jump, "");
        assert_eq!(input(&without, &to(&rules)).unwrap(), format!("*nat\n{jump}COMMIT\n"));
        let twice = GO_028.replace(jump, &jump.repeat(3));
        let delete = jump.replace("-A ", "-D ");
        assert_eq!(input(&twice, &to(&rules)).unwrap(), format!("*nat\n{delete}{delete}COMMIT\n"));
        let behind =
            GO_028.replace(jump, &format!("-A POSTROUTING -j OTHER\n{jump}-A POSTROUTING -j LAST\n"));
        assert_eq!(input(&behind, &to(&rules)), None, "where the jump stands is not fought over");
    }

    #[test]
    fn order_and_strangers_inside_our_chain_count() {
        let rules = rules("10.200.43.0/24");
        let stranger = "-A FLANNEL-FWD -s 1.2.3.4/32 -j DROP\n";
        let saved = GO_028.replace("-A FLANNEL-FWD -d", &format!("{stranger}-A FLANNEL-FWD -d"));
        assert!(input(&saved, &to(&rules)).unwrap().starts_with("*filter\n:FLANNEL-FWD"));
        let swapped = GO_028
            .replace("-A FLANNEL-FWD -s", "-A FLANNEL-FWD -x")
            .replace("-A FLANNEL-FWD -d", "-A FLANNEL-FWD -s")
            .replace("-A FLANNEL-FWD -x", "-A FLANNEL-FWD -d");
        assert!(input(&swapped, &to(&rules)).is_some());
    }

    #[test]
    fn removal_takes_jump_and_chain_but_no_bare_rule() {
        let nothing = Wanted { masquerade: &[], forward: &[], replaces: None };
        let expected = "\
*nat
-D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
:FLANNEL-POSTRTG - [0:0]
-X FLANNEL-POSTRTG
COMMIT
*filter
-D FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
:FLANNEL-FWD - [0:0]
-X FLANNEL-FWD
COMMIT
";
        assert_eq!(input(GO_028, &nothing).unwrap(), expected);
        assert_eq!(input(GO_016, &nothing), None);
        let foreign = GO_028.replace("-A FORWARD", "-A INPUT -j FLANNEL-FWD\n-A FORWARD");
        let input = input(&foreign, &nothing).unwrap();
        assert!(input.contains(":FLANNEL-FWD") && !input.contains("-X FLANNEL-FWD"), "still referred to");
    }
}
