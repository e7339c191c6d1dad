//! What another reading of the same sources changes for a daemon that runs: some options at once, the others with a restart.

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
