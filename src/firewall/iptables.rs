//! Our rules in the chains that the Go daemon uses, in either variant of iptables.
//!
//! A change is one `iptables-restore`, which is atomic per table; before and after it `iptables-save` is compared with what
//! is wanted. Where our jump stands in a built-in chain is not fought over.

#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/bodies/iptables_save.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub(crate) mod fuzz;
mod plan;
mod save;
mod tools;

use std::fs;
use std::io;
use std::time::Duration;

pub use self::tools::Variant;
pub(super) use self::tools::default_variant;

use self::plan::Wanted;
use self::save::Saved;
use self::tools::Tool;
use super::FirewallError;
use crate::model::masquerade::RuleSet;

/// How often rules are written again at once when they do not stand as written: another program may be in the middle of a
/// reload of several tables.
const ROUNDS: usize = 3;
/// Lists the tables that iptables-legacy has in the network namespace of the calling thread. Reading it starts no program.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// Which of our rules one variant should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) masquerade: bool,
    pub(super) forward: bool,
}

impl Share {
    /// Everything.
    pub(super) const ALL: Self = Self { masquerade: true, forward: true };
    /// Nothing of ours.
    pub(super) const NOTHING: Self = Self { masquerade: false, forward: false };
}

/// What one variant holds, read at one time.
#[derive(Debug)]
pub(super) struct Held(Saved);

impl Held {
    /// A rule, or a policy that is not accept, is there.
    pub(super) fn in_use(&self) -> bool {
        self.0.in_use()
    }

    /// The FORWARD chain can drop a packet.
    pub(super) fn forward_drops(&self) -> bool {
        self.0.forward_drops()
    }

    /// The policy of the FORWARD chain is drop and no chain of ours accepts before.
    pub(super) fn forward_policy_drops(&self) -> bool {
        let Some(filter) = self.0.tables.get("filter") else { return false };
        filter.chains.get("FORWARD").is_some_and(|policy| policy != "ACCEPT") && !plan::holds_forward(filter)
    }
}

/// What came of a look at one variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ensured {
    /// What was wrong and has been put right.
    pub(super) changes: Vec<String>,
    /// The rule of FORWARD that drops everything before our accepts are reached.
    pub(super) drops_ahead: Option<String>,
}

/// iptables-legacy has a table on this host, be it empty.
pub(super) fn legacy_present() -> Result<bool, FirewallError> {
    match fs::read_to_string(LEGACY_TABLES) {
        Ok(names) => Ok(!names.trim().is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FirewallError::Iptables {
            program: format!("read {LEGACY_TABLES}"),
            reason: error.to_string(),
        }),
    }
}

/// The programs of a variant.
#[derive(Debug, Clone)]
pub(super) struct Iptables {
    tool: Tool,
    lock_wait: Duration,
}

impl Iptables {
    /// `None`: the variant's programs are not installed.
    pub(super) fn find(variant: Variant, lock_wait: Duration) -> Option<Self> {
        Tool::find(variant).map(|tool| Self { tool, lock_wait })
    }

    /// Runs `iptables-save`.
    pub(super) async fn read(&self) -> Result<Held, FirewallError> {
        self.tool.save().await.map(|text| Held(Saved::parse(&text)))
    }

    /// Puts our share of `rules` into force, given what is held. With no share, everything of ours goes.
    ///
    /// `None` as rules removes our own chains only. `written` is called after each change and before it is
    /// verified.
    pub(super) async fn ensure(
        &self,
        held: &Held,
        rules: Option<&RuleSet>,
        share: Share,
        mut written: impl FnMut(),
    ) -> Result<Ensured, FirewallError> {
        let part = |wanted: bool, pick: fn(&RuleSet) -> &Vec<_>| {
            rules.filter(|_| wanted).map(pick).map_or(&[][..], Vec::as_slice)
        };
        let wanted = Wanted {
            masquerade: part(share.masquerade, |rules| &rules.masquerade),
            forward: part(share.forward, |rules| &rules.forward),
            replaces: rules,
        };
        let ensured = |saved: &Saved, changes| {
            let accepts = !wanted.forward.is_empty();
            let drops_ahead = accepts.then(|| saved.drops_before(plan::FORWARD.chain)).flatten();
            Ensured { changes, drops_ahead }
        };
        let (mut saved, mut changes) = (held.0.clone(), Vec::new());
        for _ in 0..ROUNDS {
            let Some(plan) = plan::plan(&saved, &wanted) else { return Ok(ensured(&saved, changes)) };
            changes.extend(plan.changes);
            self.tool.restore(&plan.input, self.lock_wait).await?;
            written();
            saved = self.read().await?.0;
        }
        match plan::plan(&saved, &wanted) {
            None => Ok(ensured(&saved, changes)),
            Some(left) => Err(FirewallError::NotKept { changes: left.changes.join(", ") }),
        }
    }
}
