//! When to stop answering at once: somebody undoes our work again and again, and we must not make a busy loop out of it.
//!
//! Per thing that is fought over: a burst of corrections at once, then one each period. When nothing was undone for long
//! enough the fight is over and the burst is free again.

use std::collections::BTreeMap;
use std::time::Duration;

/// How many corrections of one thing are made at once.
pub const BURST: u32 = 10;
/// Afterwards one correction each; after as many quiet ones as the burst has corrections the fight is over.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Fewer than so many are not worth tidying up.
const CROWDED: usize = 64;

/// Whether to correct something now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Now.
    Correct,
    /// It is a fight: not before `until`.
    Wait {
        /// When the next correction is due.
        until: Duration,
        /// This is the first time in this fight: worth telling.
        begins: bool,
    },
}

/// Everything that was corrected lately. Remembers nothing longer than a fight can last.
#[derive(Debug)]
pub struct Fights<K> {
    bouts: BTreeMap<K, Bout>,
    /// With so many, those that are over are forgotten.
    crowded: usize,
}

#[derive(Debug)]
struct Bout {
    /// When everything done so far will have been earned at one correction a period.
    earned: Duration,
    told: bool,
}

impl<K: Ord> Default for Fights<K> {
    fn default() -> Self {
        Self { bouts: BTreeMap::new(), crowded: CROWDED }
    }
}

impl<K: Ord> Fights<K> {
    /// Somebody has changed `what` and it ought to be corrected. Counts the correction if the answer is yes.
    pub fn ask(&mut self, what: K, now: Duration) -> Verdict {
        self.ask_for(what, BURST, now)
    }

    /// The same for something of which `burst` corrections are made at once.
    pub fn ask_for(&mut self, what: K, burst: u32, now: Duration) -> Verdict {
        if self.bouts.len() >= self.crowded {
            self.bouts.retain(|_, bout| bout.earned > now);
            self.crowded = (self.bouts.len() * 2).max(CROWDED);
        }
        let bout = self.bouts.entry(what).or_insert(Bout { earned: now, told: false });
        if bout.earned <= now {
            *bout = Bout { earned: now, told: false };
        }
        let free_from = bout.earned.saturating_sub(PERIOD * burst.saturating_sub(1));
        if free_from <= now {
            bout.earned += PERIOD;
            return Verdict::Correct;
        }
        Verdict::Wait { until: free_from, begins: !std::mem::replace(&mut bout.told, true) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn corrections(fights: &mut Fights<&'static str>, times: impl Iterator<Item = Duration>) -> usize {
        times.filter(|now| fights.ask("mtu", *now) == Verdict::Correct).count()
    }

    #[test]
    fn a_burst_is_answered_at_once_then_one_a_period_and_it_is_told_once() {
        let mut fights = Fights::default();
        for _ in 0..BURST {
            assert_eq!(fights.ask("mtu", at(100)), Verdict::Correct);
        }
        assert_eq!(fights.ask("mtu", at(100)), Verdict::Wait { until: at(110), begins: true });
        assert_eq!(fights.ask("mtu", at(109)), Verdict::Wait { until: at(110), begins: false });
        assert_eq!(fights.ask("mac", at(109)), Verdict::Correct, "another thing is not concerned");
        assert_eq!(fights.ask("mtu", at(110)), Verdict::Correct);
        assert_eq!(fights.ask("mtu", at(110)), Verdict::Wait { until: at(120), begins: false });
    }

    #[test]
    fn after_a_quiet_time_the_burst_is_free_again_and_a_new_fight_is_told() {
        let mut fights = Fights::default();
        assert_eq!(corrections(&mut fights, (0..50).map(|_| at(100))), 10);
        assert_eq!(corrections(&mut fights, (0..50).map(|_| at(130))), 3, "what was earned meanwhile");
        assert_eq!(corrections(&mut fights, (0..10).map(|_| at(300))), 10);
        assert_eq!(fights.ask("mtu", at(300)), Verdict::Wait { until: at(310), begins: true });
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let mut fights = Fights::default();
        for key in 0..100_000 {
            fights.ask(key, at(key / 100));
        }
        assert!(fights.bouts.len() < 5000, "{}", fights.bouts.len());
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_one_a_period(mut times in prop::collection::vec(0_u64..500, 0..300)) {
            times.sort_unstable();
            let mut fights = Fights::default();
            let first = times.first().copied().unwrap_or(0);
            let last = times.last().copied().unwrap_or(0);
            let count = corrections(&mut fights, times.iter().map(|time| at(*time)));
            let bound = u64::from(BURST) + (last - first) / PERIOD.as_secs();
            prop_assert!(count as u64 <= bound, "{count} corrections, {bound} allowed");
        }
    }
}
