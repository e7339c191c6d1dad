//! `ip monitor all` as a witness that nothing changed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::eventually::eventually;
use crate::namespaces::Entry;
use crate::node::Node;

/// A route that is added and removed to see that the recorder listens, and that it has heard everything (TEST-NET-1,
/// RFC 5737). One socket keeps the order of its messages.
const MARK: &str = "192.0.2.77";
/// How `ip monitor` shows a port of the bridge of pods that is still there.
const PORT: &str = " master cni0 state UP";
const DEADLINE: Duration = Duration::from_secs(10);

/// A line of `ip monitor` and when it came.
type Heard = (Instant, String);

/// A recorder of every change in a node's kernel.
#[derive(Debug)]
pub struct Recorder {
    node: Arc<Node>,
    child: Child,
    lines: Arc<Mutex<Vec<Heard>>>,
    reader: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Starts to record; when this returns, it listens.
    ///
    /// # Errors
    /// When `ip monitor` cannot be started.
    pub fn start(node: &Arc<Node>) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["monitor", "all"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = node.spawn(&mut command, &Entry::Node)?;
        let output = child.stdout.take().context("ip monitor has no standard output")?;
        let lines = Arc::<Mutex<Vec<Heard>>>::default();
        let list = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                list.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line));
            }
        });
        let recorder = Self { node: Arc::clone(node), child, lines, reader: Some(reader) };
        eventually(DEADLINE, "ip monitor listens", || recorder.mark(Duration::from_millis(500)))?;
        recorder.take();
        Ok(recorder)
    }

    /// Everything that changed since the last call (or the start), without the noise of neighbours on other devices than
    /// `device`, which come and go with every packet, and of the bridge of pods, whose ports speak when its timers run out.
    ///
    /// # Errors
    /// When `ip monitor` has ended.
    pub fn changes(&self, device: &str) -> Result<Vec<String>> {
        Ok(self.timed_changes(device)?.into_iter().map(|(_, line)| line).collect())
    }

    /// The same with the moment at which each was heard.
    ///
    /// # Errors
    /// When `ip monitor` has ended.
    pub fn timed_changes(&self, device: &str) -> Result<Vec<(Instant, String)>> {
        self.mark(DEADLINE)?;
        let mut lines = self.take();
        lines.retain(|(_, line)| !line.contains(MARK));
        lines.retain(|(_, line)| !line.starts_with("[NEIGH]") || line.contains(&format!(" {device} ")));
        let mut is_of_a_port = false;
        lines.retain(|(_, line)| {
            // What belongs to it follows on indented lines.
            is_of_a_port &= line.starts_with(' ');
            is_of_a_port |= line.starts_with("[LINK]") && line.contains(PORT);
            !is_of_a_port
        });
        Ok(lines)
    }

    fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds and removes the mark and waits until its removal was heard.
    fn mark(&self, patience: Duration) -> Result<()> {
        let seen = self.removals();
        self.node.run(&format!("ip route add blackhole {MARK}"))?;
        self.node.run(&format!("ip route delete blackhole {MARK}"))?;
        eventually(patience, "the mark in ip monitor", || {
            ensure!(self.removals() > seen, "not heard");
            Ok(())
        })
    }

    fn removals(&self) -> usize {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|(_, line)| line.contains("Deleted") && line.contains(MARK)).count()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
