//! Repeatable random choices: a failing seed is printed and replays.

/// A small generator (xorshift64*, Vigna 2016). Not for secrets.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The same seed gives the same choices.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // An odd factor spreads small seeds; the state must not be 0.
        Self { state: seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`; 0 if `limit` is 0.
    pub fn below(&mut self, limit: u8) -> u8 {
        let scaled = (u128::from(self.bits()) * u128::from(limit)) >> 64;
        u8::try_from(scaled).unwrap_or_default()
    }

    /// One of the elements.
    pub fn choice<'a, T>(&mut self, elements: &'a [T]) -> Option<&'a T> {
        let count = u8::try_from(elements.len()).unwrap_or(u8::MAX);
        elements.get(usize::from(self.below(count)))
    }

    /// A unicast, locally administered MAC.
    pub fn mac(&mut self) -> String {
        let [a, b, c, d, e, ..] = self.bits().to_be_bytes();
        format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_repeat_by_seed_and_stay_below_the_limit() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..200).map(|_| random.below(7)).collect::<Vec<_>>()
        };
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
        assert!((0..7).all(|number| draw(3).contains(&number)) && draw(3).iter().all(|&number| number < 7));
    }
}
