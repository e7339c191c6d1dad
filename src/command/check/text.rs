//! What `flanneld check` prints.

use std::fmt::Write;

use serde::Serialize;

use super::rules::Finding;
use crate::command::words::count;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The likely causes first.
    pub(super) findings: Vec<Finding>,
    /// How many peers were asked by echo requests.
    pub(super) peers: usize,
    /// What could not be looked at, and why.
    pub(super) unchecked: Vec<String>,
}

/// For people.
pub(super) fn render(report: &Report) -> String {
    let number = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    let peers = count(number(report.peers), "peer", "peers");
    let mut text = match report.findings.len() {
        0 => format!("nothing wrong was found on this host; {peers} asked\n"),
        length => format!("{}; {peers} asked\n", count(number(length), "finding", "findings")),
    };
    for (place, Finding { name, problem, cure }) in report.findings.iter().enumerate() {
        let _ = write!(text, "\n{}. {name}: {problem}\n   cure: {cure}\n", place + 1);
    }
    for what in &report.unchecked {
        let _ = write!(text, "\nnot looked at: {what}\n");
    }
    text
}

/// For programs.
pub(super) fn json(report: &Report) -> String {
    format!("{}\n", serde_json::to_string_pretty(report).unwrap_or_default())
}
