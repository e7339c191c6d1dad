//! Reads the output of `iptables-save` and writes rules in its language. Text in, values out.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;

use crate::model::masquerade::{MASQUERADE_MARK, Place, Rule, Verdict};

/// One rule: the chain it stands in and its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SavedRule {
    pub(super) chain: String,
    pub(super) words: Vec<String>,
}

impl SavedRule {
    /// The chain or verdict the rule leads to.
    pub(super) fn target(&self) -> Option<&str> {
        let option = self.words.iter().position(|word| word == "-j" || word == "-g")?;
        self.words.get(option + 1).map(String::as_str)
    }

    /// It drops or rejects every packet that comes to it.
    fn drops_everything(&self) -> bool {
        let mut words = self.words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let known = match word {
                "-m" => words.next() == Some("comment"),
                "--comment" | "--reject-with" | "-j" => words.next().is_some(),
                _ => false,
            };
            if !known {
                return false;
            }
        }
        matches!(self.target(), Some("DROP" | "REJECT"))
    }
}

/// One table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SavedTable {
    /// Built-in chains and their policies; chains of users have `-`.
    pub(super) chains: BTreeMap<String, String>,
    /// In order, of all chains.
    pub(super) rules: Vec<SavedRule>,
}

impl SavedTable {
    pub(super) fn rules_in(&self, chain: &str) -> impl Iterator<Item = &SavedRule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }
}

/// Everything `iptables-save` printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) tables: BTreeMap<String, SavedTable>,
}

impl Saved {
    /// Lines that are no table, chain or rule are passed over.
    pub(super) fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut name = String::new();
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                table.trim().clone_into(&mut name);
                saved.tables.entry(name.clone()).or_default();
                continue;
            }
            let Some(table) = saved.tables.get_mut(&name) else { continue };
            let mut parts = words(line).into_iter();
            match parts.next().as_deref() {
                Some("-A") => {
                    let Some(chain) = parts.next() else { continue };
                    table.rules.push(SavedRule { chain, words: parts.collect() });
                }
                Some(first) => {
                    let Some(chain) = first.strip_prefix(':') else { continue };
                    table.chains.insert(chain.to_owned(), parts.next().unwrap_or_default());
                }
                None => {}
            }
        }
        saved
    }

    /// A rule, or a policy that is not accept, is there.
    pub(super) fn in_use(&self) -> bool {
        self.tables.values().any(|table| {
            !table.rules.is_empty() || table.chains.values().any(|policy| policy != "-" && policy != "ACCEPT")
        })
    }

    /// A rule of FORWARD that drops every packet before the jump to `chain` is reached.
    pub(super) fn drops_before(&self, chain: &str) -> Option<String> {
        let rules = self.tables.get("filter")?.rules_in("FORWARD");
        let mut ahead = rules.take_while(|rule| rule.target() != Some(chain));
        ahead.find(|rule| rule.drops_everything()).map(|rule| line(&rule.words))
    }

    /// The FORWARD chain can drop a packet: by its policy or by a rule in it or in a chain it leads to.
    pub(super) fn forward_drops(&self) -> bool {
        let Some(filter) = self.tables.get("filter") else { return false };
        if filter.chains.get("FORWARD").is_some_and(|policy| policy != "ACCEPT") {
            return true;
        }
        let mut seen = BTreeSet::new();
        let mut open = vec!["FORWARD"];
        while let Some(chain) = open.pop() {
            if !seen.insert(chain) {
                continue;
            }
            for target in filter.rules_in(chain).filter_map(SavedRule::target) {
                if matches!(target, "DROP" | "REJECT") {
                    return true;
                }
                open.push(target);
            }
        }
        false
    }
}

/// Splits a line at blanks, as the shell would: quotes hold words together, a backslash takes the next character as it is.
pub(super) fn words(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().extend(characters.next()),
            blank if blank.is_whitespace() && !quoted => found.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    found.extend(word);
    found
}

/// Writes words so that `iptables-restore` reads them back.
pub(super) fn line(words: &[String]) -> String {
    let quote = |word: &String| {
        let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c == '"' || c == '\\');
        if plain {
            return word.clone();
        }
        format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// A rule in the words `iptables-save` uses for it.
pub(super) fn rule_words(rule: &Rule, comment: &str) -> Vec<String> {
    let mut text = Vec::new();
    for (option, place) in [("-s", rule.source), ("-d", rule.destination)] {
        match place {
            Place::Any => {}
            Place::In(network) => text.extend([option.to_owned(), network.to_string()]),
            Place::NotIn(network) => text.extend(["!".to_owned(), option.to_owned(), network.to_string()]),
        }
    }
    if rule.marked {
        let mark = format!("{MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}");
        text.extend(["-m", "mark", "--mark"].map(str::to_owned));
        text.push(mark);
    }
    text.extend(["-m", "comment", "--comment", comment, "-j"].map(str::to_owned));
    let target: &[&str] = match rule.verdict {
        Verdict::Accept => &["ACCEPT"],
        Verdict::Return => &["RETURN"],
        Verdict::Masquerade { fully_random: true } => &["MASQUERADE", "--random-fully"],
        Verdict::Masquerade { fully_random: false } => &["MASQUERADE"],
    };
    text.extend(target.iter().map(|word| (*word).to_owned()));
    text
}

/// Reads a rule without comment or mark; `None` when it has a word that none of ours would have.
pub(super) fn bare_rule(words: &[String]) -> Option<Rule> {
    let mut rule =
        Rule { marked: false, source: Place::Any, destination: Place::Any, verdict: Verdict::Return };
    let mut words = words.iter().map(String::as_str);
    let mut verdict = None;
    while let Some(word) = words.next() {
        let negated = word == "!";
        let option = if negated { words.next()? } else { word };
        match option {
            "-s" => rule.source = place(words.next()?, negated)?,
            "-d" => rule.destination = place(words.next()?, negated)?,
            "-j" if !negated => verdict = Some(target(words.next()?)?),
            "--random-fully" if verdict == Some(Verdict::Masquerade { fully_random: false }) => {
                verdict = Some(Verdict::Masquerade { fully_random: true });
            }
            _ => return None,
        }
    }
    rule.verdict = verdict?;
    Some(rule)
}

fn place(text: &str, negated: bool) -> Option<Place> {
    let network: Ipv4Network = text.parse().ok()?;
    Some(if negated { Place::NotIn(network) } else { Place::In(network) })
}

fn target(name: &str) -> Option<Verdict> {
    match name {
        "ACCEPT" => Some(Verdict::Accept),
        "RETURN" => Some(Verdict::Return),
        "MASQUERADE" => Some(Verdict::Masquerade { fully_random: false }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_lines_are_each_others_reverse() {
        for (text, expected) in [
            (
                r#"-m comment --comment "flanneld masq" -j X"#,
                vec!["-m", "comment", "--comment", "flanneld masq", "-j", "X"],
            ),
            (r#"--comment "a \"b\" \\c""#, vec!["--comment", r#"a "b" \c"#]),
            (r#"--comment """#, vec!["--comment", ""]),
        ] {
            assert_eq!(words(text), expected);
            assert_eq!(line(&words(text)), text);
        }
    }

    fn filter(rules: &str) -> Saved {
        Saved::parse(&format!(
            "# comment\n*filter\n:FORWARD ACCEPT [5:400]\n:GATE - [0:0]\n{rules}\nCOMMIT\n"
        ))
    }

    #[test]
    fn a_forward_chain_drops_by_policy_or_by_a_rule_it_leads_to() {
        for (rules, expected) in [
            ("", false),
            ("-A FORWARD -j GATE\n-A GATE -j ACCEPT", false),
            ("-A GATE -j DROP", false),
            ("-A FORWARD -j DROP", true),
            ("-A FORWARD -j GATE\n-A GATE -s 1.2.3.4/32 -j REJECT --reject-with icmp-port-unreachable", true),
            ("-A FORWARD -g GATE\n-A GATE -j DROP", true),
            ("-A FORWARD -j GATE\n-A GATE -j FORWARD", false),
            ("-A FORWARD -m comment --comment \"-j DROP\" -j ACCEPT", false),
        ] {
            assert_eq!(filter(rules).forward_drops(), expected, "{rules}");
        }
        assert!(Saved::parse("*filter\n:FORWARD DROP [0:0]\nCOMMIT").forward_drops());
        assert!(!Saved::parse("*nat\n:FORWARD DROP [0:0]\nCOMMIT").forward_drops());
    }

    #[test]
    fn a_rule_that_lets_nothing_through_to_our_jump_is_named() {
        let jump = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD";
        for (rules, expected) in [
            (format!("{jump}\n-A FORWARD -j DROP"), None),
            (format!("-A FORWARD -j DROP\n{jump}"), Some("-j DROP")),
            (
                format!(
                    "-A FORWARD -m comment --comment \"no more\" -j REJECT --reject-with icmp-host-prohibited\n{jump}"
                ),
                Some("-m comment --comment \"no more\" -j REJECT --reject-with icmp-host-prohibited"),
            ),
            (
                format!(
                    "-A FORWARD -i eth0 -j DROP\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n{jump}"
                ),
                None,
            ),
            (format!("-A FORWARD ! -s 10.0.0.0/8 -j REJECT\n-A FORWARD -j ACCEPT\n{jump}"), None),
            (format!("-A FORWARD -j GATE\n-A GATE -j RETURN\n{jump}"), None),
        ] {
            assert_eq!(filter(&rules).drops_before("FLANNEL-FWD").as_deref(), expected, "{rules}");
        }
        assert_eq!(Saved::parse("").drops_before("FLANNEL-FWD"), None);
    }

    #[test]
    fn a_variant_is_in_use_when_it_has_a_rule_or_a_policy() {
        assert!(!Saved::parse("").in_use());
        assert!(!filter("").in_use());
        assert!(filter("-A GATE -j RETURN").in_use());
        assert!(Saved::parse("*filter\n:INPUT DROP [0:0]\nCOMMIT").in_use());
    }

    #[test]
    fn only_rules_that_flanneld_could_have_written_are_read() {
        for text in [
            "-s 10.200.0.0/16 -d 10.200.0.0/16 -j RETURN",
            "-s 10.200.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
            "! -s 10.200.0.0/16 -d 10.200.7.0/24 -j MASQUERADE",
            "-d 10.200.0.0/16 -j ACCEPT",
        ] {
            assert!(bare_rule(&words(text)).is_some(), "{text}");
        }
        for text in [
            "-s 10.200.0.0/16 -p tcp -j ACCEPT",
            "-s 10.200.0.0/16 -j ACCEPT -m comment --comment x",
            "-s 10.200.0.0/16",
            "-s 10.200.0.0/16 -j SNAT --to-source 1.2.3.4",
            "-s 10.200.0.0/16 -j ACCEPT --random-fully",
            "-i eth0 -j ACCEPT",
        ] {
            assert_eq!(bare_rule(&words(text)), None, "{text}");
        }
    }
}
