//! Keeps the firewall's rules in force, as a task of its own: somebody who holds the lock of iptables delays only the rules.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::Settings;
use crate::firewall::checks::{KernelSettings, warnings};
use crate::firewall::{Applied, Firewall, FirewallError, FirewallOptions};
use crate::logging::{Recurring, Tell};
use crate::model::masquerade::{Overlay, RuleSet};
use crate::model::{IfName, NetworkConfig};

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A trouble that lasts is mentioned again after this.
const REMIND: Duration = Duration::from_secs(300);

/// What became of one look at the rules.
#[derive(Debug)]
pub(super) struct Looked {
    /// The rules are in force.
    pub(super) in_force: bool,
    /// How many things somebody else had changed.
    pub(super) repaired: u64,
}

/// The task and what it says.
#[derive(Debug)]
pub(super) struct Rules {
    wanted: watch::Sender<RuleSet>,
    settings: Settings,
    looked: mpsc::Receiver<Looked>,
    task: JoinHandle<()>,
}

impl Rules {
    /// Starts the task.
    pub(super) fn start(settings: &Settings, config: &NetworkConfig, overlay: Overlay) -> Self {
        let former = settings.previous_overlay;
        let (wanted, follow) = watch::channel(RuleSet::new(overlay, former, &settings.rules));
        let (say, looked) = mpsc::channel(4);
        let firewall = Firewall::new(FirewallOptions {
            preference: settings.firewall,
            enable_nftables: config.enable_nftables,
            resync: settings.firewall_resync,
            lock_wait: FirewallOptions::LOCK_WAIT,
        });
        let task = tokio::spawn(keep(firewall, follow, say));
        Self { wanted, settings: settings.clone(), looked, task }
    }

    /// The rules have to follow another subnet.
    pub(super) fn follow(&self, overlay: Overlay) {
        let former = Some(self.wanted.borrow().overlay);
        self.wanted.send_replace(RuleSet::new(overlay, former, &self.settings.rules));
    }

    /// The outcome of the next look. Cancel-safe.
    pub(super) async fn looked(&mut self) -> Looked {
        match self.looked.recv().await {
            Some(looked) => looked,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Says what in the kernel's settings keeps pods from being reached; changes nothing.
pub(super) fn check_host(external: &IfName, vtep: &IfName) {
    for warning in warnings(&KernelSettings::read(&[external.clone(), vtep.clone()])) {
        warn!(cure = %warning.cure, "{}", warning.problem);
    }
}

async fn keep(mut firewall: Firewall, mut wanted: watch::Receiver<RuleSet>, say: mpsc::Sender<Looked>) {
    let mut told =
        Told { trouble: Recurring::new(REMIND), started: tokio::time::Instant::now(), first: true };
    let mut pause = RETRY.0;
    loop {
        let rules = wanted.borrow_and_update().clone();
        let result = firewall.ensure(&rules).await;
        let looked = told.tell(&result);
        let next = match &result {
            Ok(applied) if applied.problems.is_empty() => {
                pause = RETRY.0;
                firewall.resync_every()
            }
            _ => {
                pause = (pause * 2).min(RETRY.1);
                Some(pause)
            }
        };
        if say.send(looked).await.is_err() {
            return;
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = firewall.changed() => {}
            () = sleep(next) => {}
        }
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// What the operator has been told.
struct Told {
    trouble: Recurring,
    started: tokio::time::Instant,
    first: bool,
}

impl Told {
    fn tell(&mut self, result: &Result<Applied, FirewallError>) -> Looked {
        let applied = match result {
            Ok(applied) => applied,
            Err(error) => {
                self.trouble(&error.to_string(), "the firewall rules are not in force");
                return Looked { in_force: false, repaired: 0 };
            }
        };
        if self.first || !applied.changes.is_empty() {
            info!(firewall = %applied.choice, changes = ?applied.changes, "firewall rules are in force");
        }
        if self.first {
            for chain in &applied.overruled_by {
                warn!(%chain, "the policy of this chain drops forwarded packets; no rule of ours can overrule it");
            }
        }
        match applied.problems.first() {
            Some(problem) => self.trouble(&problem.to_string(), "something beside the firewall rules failed"),
            None => self.over(),
        }
        let repaired = if self.first { 0 } else { u64::try_from(applied.changes.len()).unwrap_or(u64::MAX) };
        self.first = false;
        Looked { in_force: true, repaired }
    }

    fn trouble(&mut self, problem: &str, what: &str) {
        match self.trouble.failed(problem, self.started.elapsed()) {
            Tell::Now => error!(%problem, "{what}"),
            Tell::Lasts { time, failures } => {
                error!(%problem, failures, seconds = time.as_secs(), "{what}, still");
            }
            Tell::Not => {}
        }
    }

    fn over(&mut self) {
        if let Some(ended) = self.trouble.succeeded(self.started.elapsed()) {
            info!(failures = ended.failures, seconds = ended.time.as_secs(), "the firewall works again");
        }
    }
}
