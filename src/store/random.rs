//! A little randomness for lease ids, jitter and shuffling: the standard library's hash seed, which the kernel draws.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// 64 random bits. Not for secrets.
pub(super) fn bits() -> u64 {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(bits) = seeded::bits() {
        return bits;
    }
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

/// Repeatable choices for the simulation: a thread that was given a seed draws from it instead of from the kernel.
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod seeded {
    use std::cell::RefCell;

    thread_local! {
        static DRAWN_FROM: RefCell<Option<Random>> = const { RefCell::new(None) };
    }

    /// A small generator (splitmix64, Steele, Lea and Flood 2014).
    #[derive(Debug, Clone)]
    pub(crate) struct Random(u64);

    impl Random {
        /// The same seed gives the same choices.
        pub(crate) fn new(seed: u64) -> Self {
            Self(seed)
        }

        /// 64 random bits.
        pub(crate) fn bits(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }

        /// A number below `bound`, which is not 0.
        pub(crate) fn below(&mut self, bound: u64) -> u64 {
            self.bits() % bound
        }

        /// True once in `times`.
        pub(crate) fn once_in(&mut self, times: u64) -> bool {
            self.below(times) == 0
        }

        /// One of the elements, if there are any.
        pub(crate) fn choice<T: Copy>(&mut self, elements: &[T]) -> Option<T> {
            let count = elements.len() as u64;
            let place = (count > 0).then(|| self.below(count))?;
            elements.get(usize::try_from(place).ok()?).copied()
        }
    }

    /// From now on this thread's choices follow from `seed`.
    pub(crate) fn seed(seed: u64) {
        DRAWN_FROM.with_borrow_mut(|random| *random = Some(Random::new(seed)));
    }

    /// 64 bits, if the thread was given a seed.
    pub(crate) fn bits() -> Option<u64> {
        DRAWN_FROM.with_borrow_mut(|random| random.as_mut().map(Random::bits))
    }

    /// `N` bytes, if the thread was given a seed.
    pub(crate) fn bytes<const N: usize>() -> Option<[u8; N]> {
        bits()?;
        Some([(); N].map(|()| bits().map_or(0, |bits| bits.to_le_bytes()[0])))
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
