//! The output of `iptables-save`, most of it other programs' rules. Whatever the text is: what was read can be written and reads
//! back the same, and what we would feed to `iptables-restore` touches nothing that is not ours and comes to an end.

use super::plan::{Wanted, plan};
use super::save::{Saved, SavedRule, bare_rule, line, rule_words, words};
use crate::model::masquerade::{Overlay, RuleOptions, RuleSet};

/// Chains that hold only what is ours.
const OURS: [&str; 2] = ["FLANNEL-POSTRTG", "FLANNEL-FWD"];

/// The target.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let saved = Saved::parse(&text);
    assert_eq!(Saved::parse(&written(&saved)), saved);
    let _ = (saved.in_use(), saved.forward_drops(), saved.drops_before(OURS[1]));
    saved.tables.values().flat_map(|table| &table.rules).for_each(bare);
    let rules = rules();
    let none = Wanted { masquerade: &[], forward: &[], replaces: Some(&rules) };
    let all = Wanted { masquerade: &rules.masquerade, forward: &rules.forward, replaces: Some(&rules) };
    for wanted in [all, Wanted { forward: &[], ..all }, Wanted { replaces: None, ..all }, none] {
        put_right(&saved, &wanted);
    }
}

/// As `iptables-save` writes it.
fn written(saved: &Saved) -> String {
    let mut text = String::new();
    for (name, table) in &saved.tables {
        text += &format!("*{name}\n");
        for (chain, policy) in &table.chains {
            text += &line(&[format!(":{chain}"), policy.clone()]);
            text.push('\n');
        }
        for rule in &table.rules {
            let words = ["-A".to_owned(), rule.chain.clone()].into_iter().chain(rule.words.clone());
            text += &line(&words.collect::<Vec<_>>());
            text.push('\n');
        }
    }
    text
}

/// A rule that one of ours could be has no word more than we write, except for the comment.
fn bare(rule: &SavedRule) {
    let Some(found) = bare_rule(&rule.words) else { return };
    let ours = rule_words(&found, "x");
    let commented: Vec<_> = ours
        .iter()
        .filter(|word| !["-m", "comment", "--comment", "x"].contains(&word.as_str()))
        .cloned()
        .collect();
    assert_eq!(bare_rule(&commented), Some(found));
}

fn put_right(saved: &Saved, wanted: &Wanted<'_>) {
    let mut after = saved.clone();
    // One look is enough, unless rules that Go left stand there several times and mixed: each look takes some of them away.
    let rules = saved.tables.values().map(|table| table.rules.len()).sum::<usize>();
    for _ in 0..=rules / 2 {
        let Some(plan) = plan(&after, wanted) else { break };
        restore(&mut after, &plan.input);
    }
    assert_eq!(plan(&after, wanted), None);
    for (name, table) in &saved.tables {
        for rule in table.rules.iter().filter(|rule| !OURS.contains(&rule.chain.as_str())) {
            let kept = after.tables[name].rules.contains(rule);
            let ours = rule.target().is_some_and(|target| OURS.contains(&target));
            assert!(kept || ours || bare_rule(&rule.words).is_some(), "{rule:?} is gone");
        }
    }
}

/// What `iptables-restore --noflush` does with the lines that we write.
fn restore(saved: &mut Saved, input: &str) {
    let mut name = String::new();
    for text in input.lines().filter(|text| *text != "COMMIT") {
        if let Some(table) = text.strip_prefix('*') {
            table.clone_into(&mut name);
            continue;
        }
        let table = saved.tables.entry(name.clone()).or_default();
        let words = words(text);
        let rule = || SavedRule { chain: words[1].clone(), words: words[2..].to_vec() };
        match words[0].as_str() {
            "-A" => table.rules.push(rule()),
            "-D" => {
                let place = table.rules.iter().position(|other| *other == rule());
                table.rules.remove(place.expect("a rule that is there"));
            }
            "-X" => drop(table.chains.remove(&words[1])),
            chain => {
                let chain = chain.strip_prefix(':').unwrap();
                assert!(OURS.contains(&chain));
                table.chains.insert(chain.to_owned(), words[1].clone());
                table.rules.retain(|rule| rule.chain != chain);
            }
        }
    }
}

fn rules() -> RuleSet {
    let net = |text: &str| text.parse().unwrap();
    let overlay = Overlay { network: net("10.200.0.0/16"), subnet: net("10.200.43.0/24") };
    let options = RuleOptions { ip_masq: true, forward_rules: true, fully_random: true, exclude: Vec::new() };
    RuleSet::new(overlay, None, &options)
}
