//! Faults done to a node under traffic, and how long the repair took: from the fault to the kernel being whole, and how long
//! pods did not reach each other.
//!
//! Tests assert only a generous deadline; what was measured goes into a file for `cargo lab faults`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::binaries;
use crate::flanneld::Flanneld;
use crate::lab::{DEVICE, Lab};
use crate::monitor::Recorder;
use crate::node::Node;
use crate::ping::Ping;

/// What was measured for one fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// the fault in words
    pub fault: String,
    /// from the fault to the last change that the repair needed
    pub whole: Duration,
    /// the longest time without an answer to a ping from pod to pod; `None` without traffic
    pub silence: Option<Duration>,
    /// the same from node to node below the overlay, where the fault concerns the underlay: nothing of ours can be faster
    pub below: Option<Duration>,
}

/// From when on the time counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// The first thing the kernel told about the fault: commands take longer to start than the daemon to repair.
    FirstChange,
    /// The end of the fault: the daemon can do nothing before the cause is gone.
    CauseGone,
    /// The beginning of the fault, which changes nothing in the kernel.
    Fault,
}

/// A node with a daemon, and perhaps traffic through it, to which faults are done.
#[derive(Debug)]
pub struct Scene<'a> {
    lab: &'a Lab,
    daemon: &'a Flanneld,
    ping: Option<&'a Ping>,
    below: Option<&'a Ping>,
}

impl<'a> Scene<'a> {
    /// Faults are done to the node of `daemon`.
    #[must_use]
    pub fn new(lab: &'a Lab, daemon: &'a Flanneld) -> Self {
        Self { lab, daemon, ping: None, below: None }
    }

    /// With a ping through the node.
    #[must_use]
    pub fn with_traffic(self, ping: &'a Ping) -> Self {
        Self { ping: Some(ping), ..self }
    }

    /// With a ping from node to node below the overlay.
    #[must_use]
    pub fn with_underlay(self, below: &'a Ping) -> Self {
        Self { below: Some(below), ..self }
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &'a Node {
        self.daemon.node()
    }

    /// Does a fault, waits until `whole` says so and the ping is answered again, and notes how long it took.
    ///
    /// # Errors
    /// When it does not happen within the lab's deadline.
    pub fn fault(
        &self,
        fault: &str,
        since: Since,
        cause: impl FnOnce(&Node) -> Result<()>,
        whole: impl FnMut() -> Result<()>,
    ) -> Result<Measured> {
        // Where only the outcome is looked at, nobody has to listen: a storm would deafen the recorder too.
        let recorder = match since {
            Since::Fault => None,
            _ => Some(Recorder::start(self.daemon.node())?),
        };
        let forget = || [self.ping, self.below].iter().flatten().for_each(|ping| ping.forget_silence());
        forget();
        let begun = Instant::now();
        cause(self.node()).with_context(|| format!("cause: {fault}"))?;
        let gone = Instant::now();
        if since == Since::CauseGone {
            // Until then nobody could do anything.
            forget();
        }
        self.lab.eventually(self.daemon, &format!("whole after: {fault}"), whole)?;
        let seen = Instant::now();
        let silence_of = |ping: &Ping| -> Result<Duration> {
            ping.wait_answers(20).with_context(|| format!("traffic after: {fault}"))?;
            Ok(ping.longest_silence())
        };
        let silence = self.ping.map(silence_of).transpose()?;
        let below = self.below.map(silence_of).transpose()?;
        let changes = recorder.map_or_else(|| Ok(Vec::new()), |recorder| recorder.timed_changes(DEVICE))?;
        let (first, last) = (changes.first().map(|change| change.0), changes.last().map(|change| change.0));
        let start = match since {
            Since::FirstChange => first.unwrap_or(begun),
            Since::CauseGone => gone,
            Since::Fault => begun,
        };
        // Without a change in the kernel there is only the moment when it was seen.
        let end = if since == Since::Fault { seen } else { last.unwrap_or(seen).min(seen) };
        let whole = end.saturating_duration_since(start);
        let measured = Measured { fault: fault.to_owned(), whole, silence, below };
        measured.note()?;
        Ok(measured)
    }
}

impl Measured {
    /// Keeps it for the table, and prints it for whoever runs the test alone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note(&self) -> Result<()> {
        println!("{}", self.columns().join(" | "));
        fs::create_dir_all(folder()).context("make the folder of measurements")?;
        let path = folder().join(format!("{}.tsv", std::process::id()));
        let mut file = File::options().create(true).append(true).open(path).context("open a measurement")?;
        writeln!(file, "{}", self.columns().join("\t")).context("write a measurement")
    }

    fn columns(&self) -> [String; 4] {
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
        let or_none = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), ms);
        [self.fault.clone(), ms(self.whole), or_none(self.silence), or_none(self.below)]
    }
}

/// Where tests leave what they measured.
#[must_use]
pub fn folder() -> PathBuf {
    binaries::target_folder().join("lab-faults")
}

/// Forgets earlier measurements.
///
/// # Errors
/// When they cannot be removed.
pub fn forget() -> Result<()> {
    match fs::remove_dir_all(folder()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("forget measurements")
        }
        _ => Ok(()),
    }
}

/// What [`rows`] consist of.
pub const HEADINGS: [&str; 4] =
    ["fault", "whole after ms", "ms without traffic", "of these below the overlay"];

/// What [`summary`] consists of.
pub const SUMMARY_HEADINGS: [&str; 5] = [
    "what is broken under traffic",
    "faults",
    "whole after ms: median, worst",
    "aim, ms",
    "longest without traffic, ms",
];

/// What is broken, the aim, and how the faults that break it begin. The first that fits counts.
const KINDS: [(&str, &str, &[&str]); 14] = [
    (
        "`flannel.1`, again and again: a pause is made, a suspect named",
        "–",
        &["flannel.1: MTU changed for the eleventh"],
    ),
    ("`flannel.1`: deleted, down, MAC, MTU, address, learning", "50; 10 by hand", &["flannel.1"]),
    (
        "the interface below: VPN restarted, down, carrier, MTU, address",
        "50; 1000 MTU, address",
        &["wireguard-go", "wg0", "carrier", "MTU of", "address"],
    ),
    ("routes, neighbours, FDB: deleted, changed, foreign ones added", "10", &["one ", "all ", "foreign "]),
    ("rules in nftables", "–", &["nftables"]),
    ("rules in iptables-nft", "–", &["iptables-nft"]),
    ("rules in iptables-legacy, which tells nobody of changes", "–", &["iptables-legacy"]),
    ("`/run` full, then read-only, while it runs", "–", &["subnet.env outdated"]),
    ("`subnet.env` or its directory", "1000", &["subnet.env", "directory"]),
    ("etcd dead, cut off, slow or full, beyond the lease, login or certificate expired", "5000", &["etcd: "]),
    ("etcd wiped, or restored from an older backup", "5000", &["etcd"]),
    ("stopped beyond the lease, the subnet taken by another node or by none", "–", &["lease expired"]),
    ("notifications lost, 4 000 peers' routes and neighbours gone", "1000", &["notifications lost"]),
    ("another device holds our VNI and port, and goes", "–", &["a device of another name"]),
];

/// The table of [`rows`] in short: a row for each kind of fault, in the order of [`KINDS`]; a fault of no kind stands for itself.
#[must_use]
pub fn summary(rows: &[Vec<String>]) -> Vec<Vec<String>> {
    let place_of = |fault: &str| {
        let fits = |(.., begins): &(&str, &str, &[&str])| begins.iter().any(|begin| fault.starts_with(begin));
        KINDS.iter().position(fits)
    };
    let mut kinds: BTreeMap<(usize, &str, &str), Vec<&[String]>> = BTreeMap::new();
    for row in rows {
        let Some(fault) = row.first() else { continue };
        let place = place_of(fault).unwrap_or(KINDS.len());
        let (kind, aim) = KINDS.get(place).map_or((fault.as_str(), "–"), |(kind, aim, _)| (*kind, *aim));
        kinds.entry((place, kind, aim)).or_default().push(row);
    }
    let figures = |rows: &[&[String]], column: usize| {
        let mut found: Vec<f64> = rows.iter().filter_map(|row| row.get(column)?.parse().ok()).collect();
        found.sort_by(f64::total_cmp);
        found
    };
    let in_short = |((_, kind, aim), rows): ((usize, &str, &str), Vec<&[String]>)| {
        let (whole, silence) = (figures(&rows, 1), figures(&rows, 2));
        let median = whole.get(whole.len() / 2).copied().unwrap_or_default();
        let worst = whole.last().copied().unwrap_or_default();
        let silence = silence.last().map_or_else(|| "-".to_owned(), |worst| format!("{worst:.0}"));
        let whole = format!("{median:.0}, {worst:.0}");
        vec![kind.to_owned(), rows.len().to_string(), whole, aim.to_owned(), silence]
    };
    kinds.into_iter().map(in_short).collect()
}

/// The rows of the table. In order of the faults' names.
///
/// # Errors
/// When they cannot be read.
pub fn rows() -> Result<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    for entry in fs::read_dir(folder()).context("no measurement was left")? {
        let text = fs::read_to_string(entry?.path()).context("read a measurement")?;
        rows.extend(text.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>()));
    }
    rows.sort();
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_a_row_for_each_kind_with_median_and_worst() {
        let row = |words: [&str; 4]| words.map(str::to_owned).to_vec();
        let rows = [
            row(["a new fault", "1.0", "-", "-"]),
            row(["all routes deleted", "9.6", "8.6", "-"]),
            row(["flannel.1 deleted", "41.8", "37.8", "-"]),
            row(["one route deleted", "0.0", "10.5", "-"]),
            row(["one route pointed elsewhere", "2.0", "-", "-"]),
        ];
        let expected = [
            [KINDS[1].0, "1", "42, 42", "50; 10 by hand", "38"],
            [KINDS[3].0, "3", "2, 10", "10", "10"],
            ["a new fault", "1", "1, 1", "–", "-"],
        ];
        assert_eq!(summary(&rows), expected.map(|words| words.map(str::to_owned).to_vec()));
    }
}
