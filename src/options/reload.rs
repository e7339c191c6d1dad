//! What another reading of the same sources changes for a daemon that runs: some options at once, the others with a restart.

use std::fmt;

use super::settings::Effective;
use super::{Configured, OptionsError};

/// What came of reading again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// What the daemon runs with from now on.
    pub configured: Configured,
    /// The options that have changed.
    pub applied: Vec<Effective>,
    /// The options that would change with a restart.
    pub restart: Vec<Effective>,
}

impl Configured {
    /// Takes from `fresh` what can change while the daemon runs.
    ///
    /// # Errors
    /// When that does not go together with what cannot.
    pub fn reload(&self, fresh: &Self) -> Result<Reloaded, OptionsError> {
        let settings = self.settings.with_live(&fresh.settings);
        let configured = Self::new(settings, self.network.clone(), Vec::new())?;
        let (mut applied, mut restart) = (Vec::new(), Vec::new());
        for (flag, shown) in self.settings.changed(&fresh.settings) {
            if flag.live { applied.push(shown) } else { restart.push(shown) }
        }
        Ok(Reloaded { configured, applied, restart })
    }
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |options: &[Effective]| options.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self.applied.as_slice() {
            [] => f.write_str("options read again: none of those in effect has changed")?,
            applied => write!(f, "options read again: {} from now on", list(applied))?,
        }
        match self.restart.as_slice() {
            [] => Ok(()),
            restart => write!(f, "; RESTART for {}", list(restart)),
        }
    }
}
