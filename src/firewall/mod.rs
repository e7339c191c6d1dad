//! Puts the rules of `model::masquerade` into force and keeps them there.
//!
//! [`Firewall::ensure`] compares and repairs; [`Firewall::changed`] says when to call it again. Nothing here runs by itself.

pub mod checks;
pub mod choice;
mod error;
pub(crate) mod iptables;
pub(crate) mod nftables;
mod obstacle;

use std::time::Duration;

pub use self::choice::{Backend, Choice, Preference};
pub use self::error::FirewallError;
pub use self::iptables::Variant;
pub use self::obstacle::Obstacle;

use self::choice::{Facts, VariantFacts, choose};
use self::iptables::{Ensured, Held, Iptables, Share};
use self::nftables::{Nftables, Ruleset};
use crate::model::masquerade::RuleSet;

/// How often a host without tables of iptables-legacy is asked whether it got some, since nobody tells: one small file is read.
const LEGACY_MAY_COME: Duration = Duration::from_secs(60);
/// How often everything is compared although nothing was notified, should a notification ever be missing.
const RESYNC: Duration = Duration::from_secs(300);

/// What the operator and the network config say about the firewall itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallOptions {
    /// `firewall`
    pub preference: Preference,
    /// `EnableNFTables` of the network config.
    pub enable_nftables: bool,
    /// How often rules in iptables-legacy are looked at (`iptables-resync`).
    pub resync: Duration,
    /// How long a change waits for `/run/xtables.lock`; whole seconds, at least one.
    pub lock_wait: Duration,
}

impl FirewallOptions {
    /// A `lock_wait` that outlasts other programs' ordinary changes.
    pub const LOCK_WAIT: Duration = Duration::from_secs(5);
}

/// What a call did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Where the rules are, and why there.
    pub choice: Choice,
    /// What was wrong and has been put right, one line each; empty: everything was as it should be.
    pub changes: Vec<String>,
    /// What could not be done beside the rules themselves, which are in force.
    pub problems: Vec<FirewallError>,
    /// What drops forwarded packets all the same.
    pub obstacles: Vec<Obstacle>,
}

/// The rules on this host.
#[derive(Debug)]
pub struct Firewall {
    options: FirewallOptions,
    /// `None`: the kernel has no nf_tables, or was not asked yet.
    nftables: Option<Nftables>,
    choice: Option<Choice>,
    /// iptables-nft has been searched for what the Go daemon left; afterwards netlink tells when to look again.
    searched: bool,
    /// iptables-legacy holds, or may come to need, rules of ours.
    legacy: bool,
}

/// The host as it was found.
struct Seen {
    ruleset: Ruleset,
    legacy: Legacy,
}

/// iptables-legacy as it was found.
enum Legacy {
    /// It has no tables.
    Absent,
    /// What stands in its tables.
    Held(Held),
    /// It has tables, but they could not be read.
    Unreadable(FirewallError),
}

impl Firewall {
    /// Does nothing yet.
    #[must_use]
    pub const fn new(options: FirewallOptions) -> Self {
        Self { options, nftables: None, choice: None, searched: false, legacy: false }
    }

    /// Opens what [`Firewall::ensure`] will use. What fails here fails there again, and is reported then.
    pub fn get_ready(&mut self) {
        if self.nftables.is_none() {
            self.nftables = Nftables::open().ok().flatten();
        }
    }

    /// Makes the host hold exactly `rules`, and nothing that the Go daemon, another choice of firewall or other values left
    /// behind. What is right is not touched. New rules are in force before old ones go.
    ///
    /// The first call decides which firewall is used. Needs a Tokio runtime with I/O and time. If the future is dropped
    /// the rules are whole, but a change may have gone unnoticed: call again.
    ///
    /// # Errors
    /// When the rules are not in force. What is less than that is in [`Applied::problems`].
    pub async fn ensure(&mut self, rules: &RuleSet) -> Result<Applied, FirewallError> {
        let mut seen = self.observe().await?;
        let choice = self.choose(&seen)?;
        let mut applied = Applied::new(choice);
        if !rules.forward.is_empty() {
            let chains = std::mem::take(&mut seen.ruleset.foreign_drops);
            applied.obstacles.extend(chains.into_iter().map(Obstacle::Chain));
        }
        match choice.backend {
            Backend::Nftables => applied.changes.extend(self.nftables()?.ensure(rules, &seen.ruleset)?),
            Backend::Iptables(variant) => {
                let held = seen.take_held(variant)?;
                let ensured = self.ensure_variant(variant, Some(rules), Share::ALL, held).await?;
                applied.add(variant, ensured);
            }
        }
        self.ensure_rest(rules, seen, &mut applied).await;
        Ok(applied)
    }

    /// Waits until somebody else has changed something that matters, so that [`Firewall::ensure`] has to look. Cancel-safe.
    /// Of changes in tables of iptables-legacy nobody is told: see [`Firewall::resync_every`].
    pub async fn changed(&self) {
        let nftables = async {
            match &self.nftables {
                Some(nftables) => nftables.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = nftables => {}
            () = self.legacy_came() => {}
        }
    }

    /// Waits until there are tables of iptables-legacy where there were none.
    async fn legacy_came(&self) {
        loop {
            tokio::time::sleep(LEGACY_MAY_COME).await;
            if !self.legacy && iptables::legacy_present().unwrap_or(true) {
                return;
            }
        }
    }

    /// How often [`Firewall::ensure`] has to be called although nothing was notified.
    #[must_use]
    pub fn resync_every(&self) -> Duration {
        if self.legacy { self.options.resync } else { self.options.resync.max(RESYNC) }
    }

    /// Changes how often that is.
    pub const fn set_resync(&mut self, resync: Duration) {
        self.options.resync = resync;
    }

    /// Where the rules are, once that is decided.
    #[must_use]
    pub const fn choice(&self) -> Option<Choice> {
        self.choice
    }

    /// Removes what [`Firewall::ensure`] put on the host, in every firewall it may be in. Answers with what was removed.
    ///
    /// Ours are our table in nftables, and in both variants of iptables our chains with the jumps to them. What the Go
    /// daemon v0.16.1 wrote is not, and tables of iptables stay even if nothing is left in them: others use them too.
    ///
    /// # Errors
    /// With everything that could not be removed; the rest is gone.
    pub async fn cleanup(&mut self) -> Result<Vec<String>, Vec<FirewallError>> {
        let mut seen = self.observe().await.map_err(|error| vec![error])?;
        let (mut removed, mut failed) = (Vec::new(), Vec::new());
        let mut note = |result: Result<Vec<String>, FirewallError>| match result {
            Ok(changes) => removed.extend(changes),
            Err(error) => failed.push(error),
        };
        if let Some(nftables) = &mut self.nftables {
            note(nftables.remove(&seen.ruleset).map(Vec::from_iter));
        }
        if seen.ruleset.iptables_has_ours() {
            note(self.remove_from(Variant::Nft, None).await);
        }
        match seen.take_held(Variant::Legacy) {
            Ok(None) => {}
            Ok(held) => note(self.remove_from(Variant::Legacy, held).await),
            Err(error) => note(Err(error)),
        }
        if failed.is_empty() { Ok(removed) } else { Err(failed) }
    }

    async fn remove_from(
        &mut self,
        variant: Variant,
        held: Option<Held>,
    ) -> Result<Vec<String>, FirewallError> {
        self.ensure_variant(variant, None, Share::NOTHING, held).await.map(|ensured| ensured.changes)
    }

    /// What drops pods' packets on this host, as far as that can be said without rules of ours. Only looks.
    ///
    /// # Errors
    /// When the rules cannot be read.
    pub async fn obstacles(&mut self) -> Result<Vec<Obstacle>, FirewallError> {
        let mut seen = self.observe().await?;
        let chains = std::mem::take(&mut seen.ruleset.foreign_drops);
        let mut found: Vec<Obstacle> = chains.into_iter().map(Obstacle::Chain).collect();
        let nft = seen.ruleset.iptables_forward_policy_drops();
        found.extend(nft.then_some(Obstacle::Policy(Variant::Nft)));
        let legacy = seen.take_held(Variant::Legacy)?;
        let legacy = legacy.is_some_and(|held| held.forward_policy_drops());
        found.extend(legacy.then_some(Obstacle::Policy(Variant::Legacy)));
        Ok(found)
    }

    fn nftables(&mut self) -> Result<&mut Nftables, FirewallError> {
        self.nftables.as_mut().ok_or(FirewallError::NoBackend("the kernel has no nf_tables"))
    }

    fn backend(&self) -> Option<Backend> {
        self.choice.map(|choice| choice.backend)
    }

    async fn observe(&mut self) -> Result<Seen, FirewallError> {
        if self.nftables.is_none() {
            self.nftables = Nftables::open()?;
        }
        let masquerade_in_nft = self.backend() == Some(Backend::Iptables(Variant::Nft));
        let ruleset = match &mut self.nftables {
            Some(nftables) => nftables.observe(masquerade_in_nft)?,
            None => Ruleset::default(),
        };
        let legacy = if iptables::legacy_present()? { self.read_legacy().await } else { Legacy::Absent };
        self.legacy =
            !matches!(legacy, Legacy::Absent) || self.backend() == Some(Backend::Iptables(Variant::Legacy));
        Ok(Seen { ruleset, legacy })
    }

    async fn read_legacy(&self) -> Legacy {
        match self.iptables(Variant::Legacy) {
            Ok(iptables) => iptables.read().await.map_or_else(Legacy::Unreadable, Legacy::Held),
            Err(error) => Legacy::Unreadable(error),
        }
    }

    fn iptables(&self, variant: Variant) -> Result<Iptables, FirewallError> {
        Iptables::find(variant, self.options.lock_wait).ok_or(FirewallError::NotInstalled(variant))
    }

    fn choose(&mut self, seen: &Seen) -> Result<Choice, FirewallError> {
        if let Some(choice) = self.choice {
            return Ok(choice);
        }
        let legacy_in_use = match &seen.legacy {
            Legacy::Absent => false,
            Legacy::Held(held) => held.in_use(),
            Legacy::Unreadable(error) if error.retry() => return Err(error.clone()),
            Legacy::Unreadable(_) => false,
        };
        let variant = |variant, in_use| VariantFacts { installed: self.iptables(variant).is_ok(), in_use };
        let facts = Facts {
            enable_nftables: self.options.enable_nftables,
            nftables: self.nftables.is_some(),
            legacy: variant(Variant::Legacy, legacy_in_use),
            nft: variant(Variant::Nft, seen.ruleset.iptables_in_use()),
            default: iptables::default_variant(),
        };
        let choice = choose(self.options.preference, &facts).ok_or(FirewallError::NoBackend(
            match self.options.preference {
                Preference::Nftables => "the kernel has no nf_tables",
                Preference::Iptables => "no iptables is installed",
                Preference::Auto => "the kernel has no nf_tables and no iptables is installed",
            },
        ))?;
        self.legacy |= choice.backend == Backend::Iptables(Variant::Legacy);
        if choice.backend == Backend::Iptables(Variant::Nft)
            && let Some(nftables) = &mut self.nftables
        {
            nftables.watch_masquerade();
        }
        Ok(*self.choice.insert(choice))
    }

    /// Where the rules are not: accepts where a FORWARD chain would drop, otherwise nothing of ours.
    async fn ensure_rest(&mut self, rules: &RuleSet, mut seen: Seen, applied: &mut Applied) {
        let backend = applied.choice.backend;
        if backend != Backend::Nftables
            && let Some(nftables) = &mut self.nftables
        {
            match nftables.remove(&seen.ruleset) {
                Ok(removed) => applied.changes.extend(removed),
                Err(error) => applied.problems.push(error),
            }
        }
        let ruleset = &seen.ruleset;
        let forward = ruleset.iptables_forward_drops;
        let look = forward || ruleset.iptables_has_ours() || (!self.searched && ruleset.iptables_present());
        if backend != Backend::Iptables(Variant::Nft) && look {
            let share = Share { masquerade: false, forward };
            let result = self.ensure_variant(Variant::Nft, Some(rules), share, None).await;
            self.searched |= result.is_ok();
            applied.note(Variant::Nft, result);
        }
        if backend != Backend::Iptables(Variant::Legacy) {
            match seen.take_held(Variant::Legacy) {
                Ok(None) => {}
                Ok(Some(held)) => {
                    let share = Share { masquerade: false, forward: held.forward_drops() };
                    let result = self.ensure_variant(Variant::Legacy, Some(rules), share, Some(held)).await;
                    applied.note(Variant::Legacy, result);
                }
                Err(error) => applied.problems.push(error),
            }
        }
    }

    async fn ensure_variant(
        &mut self,
        variant: Variant,
        rules: Option<&RuleSet>,
        share: Share,
        held: Option<Held>,
    ) -> Result<Ensured, FirewallError> {
        let iptables = self.iptables(variant)?;
        let held = match held {
            Some(held) => held,
            None => iptables.read().await?,
        };
        let written = || self.nftables.iter_mut().for_each(Nftables::forget_iptables);
        let mut ensured = iptables.ensure(&held, rules, share, written).await?;
        ensured.changes.iter_mut().for_each(|change| *change = format!("{variant}: {change}"));
        Ok(ensured)
    }
}

impl Seen {
    /// What `variant` holds, if that was read already.
    fn take_held(&mut self, variant: Variant) -> Result<Option<Held>, FirewallError> {
        if variant == Variant::Nft {
            return Ok(None);
        }
        match std::mem::replace(&mut self.legacy, Legacy::Absent) {
            Legacy::Absent => Ok(None),
            Legacy::Held(held) => Ok(Some(held)),
            Legacy::Unreadable(error) => Err(error),
        }
    }
}

impl Applied {
    const fn new(choice: Choice) -> Self {
        Self { choice, changes: Vec::new(), problems: Vec::new(), obstacles: Vec::new() }
    }

    fn add(&mut self, variant: Variant, ensured: Ensured) {
        self.changes.extend(ensured.changes);
        self.obstacles.extend(ensured.drops_ahead.map(|rule| Obstacle::RuleAhead(variant, rule)));
    }

    fn note(&mut self, variant: Variant, result: Result<Ensured, FirewallError>) {
        match result {
            Ok(ensured) => self.add(variant, ensured),
            Err(error) => self.problems.push(error),
        }
    }
}
