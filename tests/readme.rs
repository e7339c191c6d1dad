//! The README's tables say what the code says: every option with its default, every metric.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

use std::path::Path;

use flanneld::metrics::page::METRICS;
use flanneld::options::flags::{self, Flag, Kind, Support};

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

fn default_of(flag: &Flag) -> String {
    match flag.kind {
        Kind::Text { default: "" } | Kind::Urls { default: "" } | Kind::Secret | Kind::List => String::new(),
        Kind::Text { default } | Kind::Urls { default } => format!("`{default}`"),
        Kind::Bool { default } => default.to_string(),
        Kind::Int { default, .. } => default.to_string(),
    }
}

fn option_row(flag: &Flag) -> Option<String> {
    let unit = match flag.kind {
        Kind::Int { unit: unit @ ("seconds" | "minutes"), .. } => format!(" ({unit})"),
        _ => String::new(),
    };
    match flag.support {
        Support::Built => Some(format!("| `{}` | {} | {}{unit} |", flag.name, default_of(flag), flag.help)),
        Support::NoEffect => Some(format!("| `{}` | | accepted, without effect: {} |", flag.name, flag.help)),
        Support::NotBuilt { .. } => None,
    }
}

#[test]
fn the_readme_lists_every_option_that_can_be_used() {
    let readme = readme();
    let missing: Vec<String> =
        flags::ALL.iter().filter_map(option_row).filter(|row| !readme.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "README.md lacks:\n{}", missing.join("\n"));
}

#[test]
fn the_readme_names_every_option_that_is_not_built() {
    let readme = readme();
    let section = readme.split("### Not built yet").nth(1).unwrap().split("\n## ").next().unwrap();
    let not_built = flags::ALL.iter().filter(|flag| matches!(flag.support, Support::NotBuilt { .. }));
    let missing: Vec<&str> =
        not_built.map(|flag| flag.name).filter(|name| !section.contains(&format!("`{name}`"))).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn the_readme_names_the_options_that_change_at_run_time() {
    let readme = readme();
    let sentence = readme.split("has the file read again.").nth(1).unwrap();
    let sentence = sentence.split("change at once").next().unwrap();
    let named: Vec<&str> = sentence.split('`').skip(1).step_by(2).collect();
    let live: Vec<&str> = flags::ALL.iter().filter(|flag| flag.live).map(|flag| flag.name).collect();
    assert_eq!(named, live);
}

#[test]
fn the_readme_lists_every_metric() {
    let readme = readme();
    let row = |metric: &flanneld::metrics::page::Metric| {
        let labels = if metric.labels.is_empty() { String::new() } else { format!("`{}`", metric.labels) };
        format!("| `{}` | {} | {labels} | {} |", metric.name, metric.kind, metric.help)
    };
    let missing: Vec<String> = METRICS.iter().map(row).filter(|row| !readme.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "README.md lacks:\n{}", missing.join("\n"));
}

#[test]
fn the_readme_has_no_gaps() {
    let readme = readme();
    assert!(!readme.contains("\n@"), "a placeholder is left");
    assert!(readme.lines().count() < 380, "the README is too long: {} lines", readme.lines().count());
}
