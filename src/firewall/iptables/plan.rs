//! Compares what `iptables-save` printed with what is wanted and writes the input of one `iptables-restore`.
//!
//! Inside our chains content and order are ours. In the built-in chains only our jumps are, wherever they stand, and the
//! bare rules that the Go daemon v0.16.1 wrote.

use super::save::{Saved, SavedTable, bare_rule, line, rule_words};
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
struct Place {
    table: &'static str,
    hook: &'static str,
    chain: &'static str,
    comment: &'static str,
}

const MASQUERADE: Place =
    Place { table: "nat", hook: "POSTROUTING", chain: "FLANNEL-POSTRTG", comment: "flanneld masq" };
const FORWARD: Place =
    Place { table: "filter", hook: "FORWARD", chain: "FLANNEL-FWD", comment: "flanneld forward" };

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
        lines.extend(removal(table, place, jumps));
        changes.push(format!("removed chain {chain}"));
    }
    lines
}

/// A chain that other rules lead to cannot be deleted; then it is only emptied.
fn removal(table: &SavedTable, place: &Place, jumps: usize) -> Vec<String> {
    let references = table.rules.iter().filter(|rule| rule.target() == Some(place.chain)).count();
    let mut lines = vec![format!(":{} - [0:0]", place.chain)];
    if references == jumps {
        lines.push(format!("-X {}", place.chain));
    }
    lines
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
