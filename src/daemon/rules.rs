//! Keeps the firewall's rules in force, as a task of its own: somebody who holds the lock of iptables delays only the rules.

use std::thread;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::Settings;
use crate::clock::Clock;
use crate::firewall::checks::{KernelSettings, warnings};
use crate::firewall::{Applied, Choice, Firewall, FirewallError, FirewallOptions, Obstacle};
use crate::logging::{Recurring, Tell};
use crate::model::masquerade::{Overlay, RuleSet};
use crate::model::{IfName, NetworkConfig};
use crate::status;

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// So many repairs follow each other at once, and so much later there may be one more: a program that undoes them as
/// quickly would keep the machine busy.
const REPAIRS: (u32, Duration) = (32, Duration::from_secs(1));
/// A trouble that lasts is mentioned again after this.
const REMIND: Duration = Duration::from_secs(300);

/// What became of one look at the rules.
#[derive(Debug)]
pub(super) struct Looked {
    /// How they stand.
    pub(super) rules: status::Rules,
    /// How many things somebody else had changed.
    pub(super) repaired: u64,
}

/// What the task is to keep, and how.
#[derive(Debug, Clone)]
struct Wanted {
    rules: RuleSet,
    resync: Duration,
}

/// The task and what it says.
#[derive(Debug)]
pub(super) struct Rules {
    wanted: watch::Sender<Wanted>,
    settings: Settings,
    looked: mpsc::Receiver<Looked>,
    task: Option<JoinHandle<()>>,
}

impl Rules {
    /// Starts the task with the first look. `links` are those that pods' packets come and go by.
    pub(super) fn start(
        settings: &Settings,
        first: Option<FirstLook>,
        overlay: Overlay,
        links: [IfName; 2],
    ) -> Self {
        let former = settings.previous_overlay;
        let rules = RuleSet::new(overlay, former, &settings.rules);
        let (say, looked) = mpsc::channel(4);
        let wanted = Wanted { rules: rules.clone(), resync: settings.firewall_resync };
        let (wanted, follow) = watch::channel(wanted);
        let task = first.map(|FirstLook { options, begin, looked }| {
            let _ = begin.send((rules, links));
            tokio::spawn(keep(options, looked, follow, say))
        });
        Self { wanted, settings: settings.clone(), looked, task }
    }

    /// The rules have to follow another subnet.
    pub(super) fn follow(&self, overlay: Overlay) {
        let former = Some(self.wanted.borrow().rules.overlay);
        self.want(RuleSet::new(overlay, former, &self.settings.rules));
    }

    /// Other rules are wanted for the same subnet, or another period of looking at them.
    pub(super) fn adjust(&mut self, settings: &Settings) {
        if (&settings.rules, settings.firewall_resync)
            == (&self.settings.rules, self.settings.firewall_resync)
        {
            return;
        }
        self.settings = settings.clone();
        let (overlay, former) = {
            let wanted = self.wanted.borrow();
            (wanted.rules.overlay, wanted.rules.former)
        };
        self.want(RuleSet::new(overlay, former, &self.settings.rules));
    }

    fn want(&self, rules: RuleSet) {
        self.wanted.send_replace(Wanted { rules, resync: self.settings.firewall_resync });
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
        self.task.iter().for_each(JoinHandle::abort);
    }
}

/// Says what in the kernel's settings keeps pods from being reached; changes nothing.
fn check_host(links: &[IfName]) {
    for warning in warnings(&KernelSettings::read(links)) {
        warn!(cure = %warning.cure, "{}", warning.problem);
    }
}

/// What came of a look.
type Ensured = Result<Applied, FirewallError>;

/// The first look, on a thread of its own: the kernel takes as long for the first rules as for the device, and both can be made at
/// once. It gets ready while the store is still being asked for a lease, and begins when it hears which rules are wanted.
#[derive(Debug)]
pub(super) struct FirstLook {
    options: FirewallOptions,
    begin: oneshot::Sender<(RuleSet, [IfName; 2])>,
    looked: oneshot::Receiver<(Firewall, Ensured)>,
}

impl FirstLook {
    /// Gets ready for it; `None` if nobody keeps rules. Without a thread nothing comes of it.
    pub(super) fn prepare(settings: &Settings, config: &NetworkConfig) -> Option<Self> {
        let options = FirewallOptions {
            preference: settings.firewall?,
            enable_nftables: config.enable_nftables,
            resync: settings.firewall_resync,
            lock_wait: FirewallOptions::LOCK_WAIT,
        };
        let (begin, asked) = oneshot::channel();
        let (done, looked) = oneshot::channel();
        let (runtime, mut firewall) = (Handle::current(), Firewall::new(options.clone()));
        let look = async move {
            firewall.get_ready();
            let Ok((rules, links)): Result<(RuleSet, [IfName; 2]), _> = asked.await else { return };
            let result = firewall.ensure(&rules).await;
            let _ = done.send((firewall, result));
            check_host(&links);
        };
        if let Err(error) = thread::Builder::new().spawn(move || runtime.block_on(look)) {
            debug!(%error, "no thread for the first look at the rules");
        }
        Some(Self { options, begin, looked })
    }
}

async fn keep(
    options: FirewallOptions,
    first: oneshot::Receiver<(Firewall, Ensured)>,
    mut wanted: watch::Receiver<Wanted>,
    say: mpsc::Sender<Looked>,
) {
    let (mut told, mut clock) = (Told::new(), Clock::boot_or_tokio());
    let mut pause = Pause(RETRY.0);
    let mut restraint = Restraint { left: REPAIRS.0, counted: Instant::now() };
    let Wanted { mut rules, resync } = wanted.borrow_and_update().clone();
    let (mut firewall, mut result) = match first.await {
        Ok(looked) => looked,
        Err(_) => {
            let mut firewall = Firewall::new(options);
            let result = firewall.ensure(&rules).await;
            (firewall, result)
        }
    };
    firewall.set_resync(resync);
    loop {
        let looked = told.tell(&result, &rules, firewall.choice());
        let calm = restraint.allows(looked.repaired > 0, Instant::now());
        told.fight(calm);
        let next = pause.after(trouble_of(&result)).unwrap_or_else(|| firewall.resync_every());
        if say.send(looked).await.is_err() {
            return;
        }
        if !calm {
            tokio::time::sleep(REPAIRS.1).await;
        }
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => told.asked = true,
                Err(_) => return,
            },
            () = firewall.changed() => {}
            () = clock.sleep(next) => {}
        }
        let Wanted { rules: now, resync } = wanted.borrow_and_update().clone();
        rules = now;
        firewall.set_resync(resync);
        result = firewall.ensure(&rules).await;
    }
}

/// Counts repairs, so that a fight with another program costs little.
#[derive(Debug)]
struct Restraint {
    left: u32,
    counted: Instant,
}

impl Restraint {
    /// Whether the next look may follow at once.
    fn allows(&mut self, repaired: bool, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.counted).as_secs() / REPAIRS.1.as_secs().max(1);
        if earned > 0 {
            self.counted = now;
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(REPAIRS.0);
        }
        self.left = self.left.saturating_sub(u32::from(repaired));
        self.left > 0
    }
}

fn trouble_of(result: &Result<Applied, FirewallError>) -> Option<&FirewallError> {
    result.as_ref().map_or_else(Some, |applied| applied.problems.first())
}

/// The pause after the last failure; grows with each.
#[derive(Debug)]
struct Pause(Duration);

impl Pause {
    /// How long to wait before the next try; `None`: nothing failed.
    fn after(&mut self, trouble: Option<&FirewallError>) -> Option<Duration> {
        self.0 = match trouble {
            // Most of such a try is waiting for the lock already; whoever lets go of it should not be waited for twice.
            None | Some(FirewallError::Locked { .. }) => RETRY.0,
            Some(_) => (self.0 * 2).min(RETRY.1),
        };
        trouble.map(|_| self.0)
    }
}

/// What the operator has been told.
struct Told {
    trouble: Recurring,
    fight: Recurring,
    fighting: bool,
    started: Instant,
    first: bool,
    obstacles: Vec<Obstacle>,
    /// Other rules are wanted than before: what changes for that is no repair.
    asked: bool,
}

impl Told {
    fn new() -> Self {
        let [trouble, fight] = [(); 2].map(|()| Recurring::new(REMIND));
        Self {
            trouble,
            fight,
            fighting: false,
            started: Instant::now(),
            first: true,
            asked: false,
            obstacles: Vec::new(),
        }
    }

    fn tell(
        &mut self,
        result: &Result<Applied, FirewallError>,
        rules: &RuleSet,
        firewall: Option<Choice>,
    ) -> Looked {
        let applied = match result {
            Ok(applied) => applied,
            Err(error) => {
                let problem = error.to_string();
                self.trouble(&problem, "the firewall rules are not in force");
                let rules = status::Rules {
                    firewall: firewall.map(|choice| choice.to_string()),
                    problem: Some(problem),
                    in_force: false,
                    obstacles: Vec::new(),
                };
                return Looked { rules, repaired: 0 };
            }
        };
        if self.first || (!applied.changes.is_empty() && !self.fighting) {
            info!(firewall = %applied.choice, changes = ?applied.changes, "firewall rules are in force");
        }
        self.obstacles(&applied.obstacles, rules.overlay.network);
        match applied.problems.first() {
            Some(problem) => self.trouble(&problem.to_string(), "something beside the firewall rules failed"),
            None => self.over(),
        }
        let wished = std::mem::take(&mut self.first) | std::mem::take(&mut self.asked);
        let repaired = if wished { 0 } else { u64::try_from(applied.changes.len()).unwrap_or(u64::MAX) };
        let network = rules.overlay.network;
        let obstacle = |obstacle: &Obstacle| status::Obstacle {
            problem: obstacle.to_string(),
            cure: obstacle.cure(network),
        };
        let rules = status::Rules {
            firewall: Some(applied.choice.to_string()),
            problem: applied.problems.first().map(ToString::to_string),
            in_force: true,
            obstacles: applied.obstacles.iter().map(obstacle).collect(),
        };
        Looked { rules, repaired }
    }

    /// Says when another program undoes repair after repair, and when it leaves off.
    fn fight(&mut self, calm: bool) {
        self.fighting = !calm;
        let now = self.started.elapsed();
        let problem = "another program keeps changing our firewall rules; they are put right once a second";
        if calm {
            if let Some(ended) = self.fight.succeeded(now) {
                info!(seconds = ended.time.as_secs(), "our firewall rules are left alone again");
            }
        } else if self.fight.failed(problem, now) != Tell::Not {
            warn!("{problem}");
        }
    }

    fn obstacles(&mut self, found: &[Obstacle], network: Ipv4Network) {
        for obstacle in found.iter().filter(|obstacle| !self.obstacles.contains(obstacle)) {
            warn!(cure = %obstacle.cure(network), "{obstacle}");
        }
        for gone in self.obstacles.iter().filter(|obstacle| !found.contains(obstacle)) {
            info!("no longer: {gone}");
        }
        self.obstacles = found.to_vec();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Variant;

    #[test]
    fn repairs_are_immediate_until_there_are_too_many() {
        let now = Instant::now();
        let mut restraint = Restraint { left: REPAIRS.0, counted: now };
        let immediate = (0..100).take_while(|_| restraint.allows(true, now)).count();
        assert_eq!(immediate, 31);
        assert!(!restraint.allows(false, now), "looking does not help, time does");
        let later = now + 2 * REPAIRS.1;
        assert!(restraint.allows(true, later), "two more are allowed, and one is left");
        assert!(!restraint.allows(true, later));
        let much_later = later + 1000 * REPAIRS.1;
        assert_eq!((0..100).take_while(|_| restraint.allows(true, much_later)).count(), 31);
    }

    #[test]
    fn pauses_grow_with_failures_but_not_while_the_lock_is_waited_for() {
        let mut pause = Pause(RETRY.0);
        let failed = FirewallError::NotKept { changes: String::new() };
        let locked = FirewallError::Locked { variant: Variant::Legacy, reason: String::new() };
        let seconds = |pause: &mut Pause, trouble| pause.after(trouble).map(|pause| pause.as_secs());
        let grown = [(); 6].map(|()| seconds(&mut pause, Some(&failed)));
        assert_eq!(grown, [2, 4, 8, 16, 30, 30].map(Some));
        assert_eq!(seconds(&mut pause, Some(&locked)), Some(1));
        assert_eq!(seconds(&mut pause, Some(&failed)), Some(2));
        assert_eq!(seconds(&mut pause, None), None);
        assert_eq!(seconds(&mut pause, Some(&failed)), Some(2));
    }
}
