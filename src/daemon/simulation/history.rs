//! What happened on this thread, in one number: two runs of one seed must not differ anywhere.

use std::cell::Cell;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::node::now;

thread_local! {
    static HISTORY: Cell<u64> = const { Cell::new(0) };
}

/// Something happened now.
pub(super) fn note(what: impl Debug) {
    let mut hasher = DefaultHasher::new();
    (HISTORY.get(), now(), format!("{what:?}")).hash(&mut hasher);
    HISTORY.set(hasher.finish());
}

/// Everything so far.
pub(super) fn so_far() -> u64 {
    HISTORY.get()
}
