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
    entries: Dump,
}

#[derive(Debug)]
enum Dump {
    Taken(Entries),
    UnderWay(JoinHandle<Result<Entries, KernelError>>),
}

impl Ahead {
    /// Begins to read the entries beside the caller, with our device at `index`. `None` when that is not possible.
    pub(super) fn begin(
        scope: &Scope,
        vtep: ObservedVtep,
        index: u32,
        receive_buffer: usize,
    ) -> Option<Self> {
        // Opened here: a socket belongs to the network namespace of the thread that opens it.
        let mut requests = Requests::open(receive_buffer).ok()?;
        let of = scope.clone();
        let read = move || observe::entries(&mut requests, &of, Some(index));
        let reader = thread::Builder::new().name("first dump".to_owned()).spawn(read).ok()?;
        Some(Self { scope: scope.clone(), vtep: Some(vtep), entries: Dump::UnderWay(reader) })
    }

    /// Reads at once what there is without our device, which is not worth a thread.
    pub(super) fn without_device(scope: &Scope, requests: &mut Requests) -> Option<Self> {
        let entries = observe::entries(requests, scope, None).ok()?;
        Some(Self { scope: scope.clone(), vtep: None, entries: Dump::Taken(entries) })
    }

    /// Waits for the end of it. `None` when something else is asked for now, or it failed: whoever reads again then sees why.
    pub(super) fn finish(self, scope: &Scope) -> Option<Observed> {
        let Self { scope: of, vtep, entries } = self;
        let entries = match entries {
            _ if of != *scope => return None,
            Dump::Taken(entries) => Ok(entries),
            Dump::UnderWay(reader) => reader.join().ok()?,
        };
        let entries = entries.inspect_err(|error| debug!(%error, "the first dump failed and is repeated"));
        Some(Observed { vtep, entries: entries.ok()? })
    }
}
