//! `nft monitor` running in a node: which changes of the rules were made, and when each was heard.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::eventually::eventually;
use crate::namespaces::Entry;
use crate::node::Node;

const DEADLINE: Duration = Duration::from_secs(10);
/// A table that is added and deleted to know that everything before it was heard.
const MARK: &str = "table ip lab-mark";

type Heard = (Instant, String);

/// A running `nft monitor`. It is killed when this value is dropped.
#[derive(Debug)]
pub struct NftMonitor {
    node: Arc<Node>,
    child: Child,
    lines: Arc<Mutex<Vec<Heard>>>,
    reader: Option<JoinHandle<()>>,
}

impl NftMonitor {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When `nft monitor` cannot be started.
    pub fn start(node: &Arc<Node>) -> Result<Self> {
        let mut command = Command::new("nft");
        command.arg("monitor").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = node.spawn(&mut command, &Entry::Node)?;
        let output = child.stdout.take().context("nft monitor has no standard output")?;
        let lines = Arc::<Mutex<Vec<Heard>>>::default();
        let list = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                list.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line));
            }
        });
        let monitor = Self { node: Arc::clone(node), child, lines, reader: Some(reader) };
        monitor.mark()?;
        Ok(monitor)
    }

    /// Ends it. The time from the first line that contains one of `words` to the last; nothing when there was none.
    ///
    /// # Errors
    /// When `nft monitor` has ended.
    pub fn span(self, words: &[&str]) -> Result<Option<Duration>> {
        self.mark()?;
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times =
            lines.iter().filter(|(_, line)| words.iter().any(|word| line.contains(word))).map(|(at, _)| *at);
        let Some(first) = times.next() else { return Ok(None) };
        Ok(Some(times.next_back().unwrap_or(first).saturating_duration_since(first)))
    }

    /// Waits until a change made now is heard. The first marks can be lost: it may not listen yet.
    fn mark(&self) -> Result<()> {
        let before = self.marks();
        eventually(DEADLINE, "a change that nft monitor has to hear", || {
            self.node.run(&format!("nft add {MARK}"))?;
            self.node.run(&format!("nft delete {MARK}"))?;
            ensure!(self.marks() > before, "it was not heard");
            Ok(())
        })
    }

    fn marks(&self) -> usize {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|(_, line)| line.starts_with("delete") && line.contains(MARK)).count()
    }
}

impl Drop for NftMonitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
