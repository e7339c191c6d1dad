//! What a start reads before it has a lease: thousands of entries on a thread of its own, while the store is being asked.

use std::thread::{self, JoinHandle};

use tracing::debug;

use super::socket::Requests;
use super::{KernelError, Scope, observe};
use crate::model::state::{Entries, Observed, ObservedVtep};

/// Our device as it was, and the entries as soon as they are read.
#[derive(Debug)]
pub(super) struct Ahead {
    scope: Scope,
    vtep: Option<ObservedVtep>,
    entries: JoinHandle<Result<Entries, KernelError>>,
}

impl Ahead {
    /// Starts reading the entries on another thread, with our device at `index`. `None` when there is no socket or thread for it.
    pub(super) fn begin(
        scope: &Scope,
        vtep: Option<ObservedVtep>,
        index: Option<u32>,
        receive_buffer: usize,
    ) -> Option<Self> {
        let (mut requests, scope) = (Requests::open(receive_buffer).ok()?, scope.clone());
        let reader = thread::Builder::new().name("first dump".to_owned());
        let wanted = scope.clone();
        let entries = reader.spawn(move || observe::entries(&mut requests, &wanted, index)).ok()?;
        Some(Self { scope, vtep, entries })
    }

    /// Waits for the end of it. `None` when something else is asked for now, or it failed: the caller reads again and gets the error
    /// itself.
    pub(super) fn finish(self, scope: &Scope) -> Option<Observed> {
        if self.scope != *scope {
            return None;
        }
        let read = self.entries.join().ok()?;
        let read = read.inspect_err(|error| debug!(%error, "the first dump failed and is repeated"));
        Some(Observed { vtep: self.vtep, entries: read.ok()? })
    }
}
