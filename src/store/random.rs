//! A little randomness for lease ids, jitter and shuffling: the standard library's hash seed, which the kernel draws.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// 64 random bits. Not for secrets.
pub(super) fn bits() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// A number below `bound` (0 when `bound` is 0).
pub(super) fn below(bound: u64) -> u64 {
    bits().checked_rem(bound).unwrap_or(0)
}

/// Between half of `longest` and all of it, so that many nodes that failed together do not return together.
pub(super) fn jitter(longest: Duration) -> Duration {
    let half = longest / 2;
    half + Duration::from_millis(below(u64::try_from(half.as_millis()).unwrap_or(0) + 1))
}

/// Shuffles in place (Fisher–Yates).
pub(super) fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let other = usize::try_from(below(last as u64 + 1)).unwrap_or(0);
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_between_half_and_whole() {
        for _ in 0..1000 {
            let waited = jitter(Duration::from_secs(5));
            assert!((Duration::from_millis(2500)..=Duration::from_secs(5)).contains(&waited), "{waited:?}");
        }
        assert_eq!(jitter(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn shuffling_keeps_every_item_and_moves_some() {
        let sorted: Vec<u32> = (0..1000).collect();
        let mut shuffled = sorted.clone();
        shuffle(&mut shuffled);
        assert_ne!(shuffled, sorted);
        shuffled.sort_unstable();
        assert_eq!(shuffled, sorted);
    }
}
