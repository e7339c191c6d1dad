//! Faults done to a node under traffic, and how long the repair took: from the fault to the kernel being whole, and how long
//! pods did not reach each other.
//!
//! Tests assert only a generous deadline; what was measured goes into a file for `cargo lab faults`.

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
