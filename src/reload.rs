//! SIGHUP: the options are read again from where they came, what can change is handed on, and what cannot is named.
//!
//! Decides nothing about the daemon: that takes over what it is handed.

use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::logging::Verbosity;
use crate::options::{Configured, Invocation, Options, OptionsError, Reloaded, flags};

/// The way back to the options' sources.
#[derive(Debug)]
pub struct Reloader {
    running: Configured,
    read: fn() -> Result<Invocation, OptionsError>,
    verbosity: Option<Verbosity>,
    hand_on: watch::Sender<Options>,
}

impl Reloader {
    /// A reloader, and where the options arrive.
    #[must_use]
    pub fn new(
        running: Configured,
        read: fn() -> Result<Invocation, OptionsError>,
        verbosity: Option<Verbosity>,
    ) -> (Self, watch::Receiver<Options>) {
        let (hand_on, options) = watch::channel(running.options.clone());
        (Self { running, read, verbosity, hand_on }, options)
    }

    /// Reads again. Whatever is wrong changes nothing; the daemon is told all the same, as systemd waits for its answer.
    pub fn reload(&mut self) {
        match self.read_again() {
            Ok(None) => {
                info!("SIGHUP: there is no configuration file to read again; restart to change options");
            }
            Ok(Some(reloaded)) => self.take(reloaded),
            Err(error) => error!(%error, "SIGHUP: nothing is changed"),
        }
        self.hand_on.send_replace(self.running.options.clone());
    }

    fn read_again(&self) -> Result<Option<Reloaded>, OptionsError> {
        let file = self.running.effective.iter().find(|option| option.name == flags::CONFIG_FILE.name);
        if file.is_none_or(|file| file.value.is_empty()) {
            return Ok(None);
        }
        match (self.read)()? {
            Invocation::Run(fresh) => self.running.reload(&fresh).map(Some),
            // What argv asks for does not change.
            Invocation::Help(_) | Invocation::Version(_) => Ok(None),
        }
    }

    fn take(&mut self, reloaded: Reloaded) {
        // Said before the verbosity changes, so that it is heard.
        if reloaded.restart.is_empty() {
            info!("{reloaded}");
        } else {
            warn!("{reloaded}");
        }
        self.running = reloaded.configured;
        if let Some(verbosity) = &self.verbosity {
            verbosity.set(self.running.options.verbosity);
        }
    }
}
