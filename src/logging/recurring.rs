//! When a trouble that lasts is worth a line: when it starts, rarely while it lasts, when it ends. Logs nothing itself.

use std::time::Duration;

/// How many different reasons of one trouble are told apart.
const REASONS: usize = 8;

/// One kind of trouble that may last.
#[derive(Debug, Clone)]
pub struct Recurring {
    every: Duration,
    episode: Option<Episode>,
}

#[derive(Debug, Clone)]
struct Episode {
    since: Duration,
    told: Duration,
    failures: u64,
    reasons: Vec<String>,
}

/// Whether a failure is worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// The trouble begins, or goes on for a reason not told before.
    Now,
    /// It lasts: for so long, and so many failures so far.
    Lasts {
        /// How long.
        time: Duration,
        /// How many failures.
        failures: u64,
    },
    /// It was told not long ago.
    Not,
}

/// A trouble that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How long it lasted.
    pub time: Duration,
    /// How many failures it had.
    pub failures: u64,
}

impl Recurring {
    /// A trouble that is told again after `every` while it lasts.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        Self { every, episode: None }
    }

    /// It failed, for a reason in words.
    pub fn failed(&mut self, reason: &str, now: Duration) -> Tell {
        let Some(episode) = &mut self.episode else {
            self.episode =
                Some(Episode { since: now, told: now, failures: 1, reasons: vec![reason.to_owned()] });
            return Tell::Now;
        };
        episode.failures = episode.failures.saturating_add(1);
        let known = episode.reasons.iter().any(|told| told == reason);
        if !known && episode.reasons.len() < REASONS {
            episode.reasons.push(reason.to_owned());
            episode.told = now;
            return Tell::Now;
        }
        if now.saturating_sub(episode.told) < self.every {
            return Tell::Not;
        }
        episode.told = now;
        Tell::Lasts { time: now.saturating_sub(episode.since), failures: episode.failures }
    }

    /// It works. Says what is over, if there was something.
    pub fn succeeded(&mut self, now: Duration) -> Option<Ended> {
        let episode = self.episode.take()?;
        Some(Ended { time: now.saturating_sub(episode.since), failures: episode.failures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_trouble_is_told_when_it_begins_rarely_while_it_lasts_and_when_it_ends() {
        let mut trouble = Recurring::new(s(60));
        assert_eq!(trouble.succeeded(s(1)), None);
        assert_eq!(trouble.failed("down", s(10)), Tell::Now);
        for now in 11..70 {
            assert_eq!(trouble.failed("down", s(now)), Tell::Not);
        }
        assert_eq!(trouble.failed("down", s(70)), Tell::Lasts { time: s(60), failures: 61 });
        assert_eq!(trouble.failed("down", s(71)), Tell::Not);
        assert_eq!(trouble.succeeded(s(72)), Some(Ended { time: s(62), failures: 62 }));
        assert_eq!(trouble.succeeded(s(73)), None);
        assert_eq!(trouble.failed("down", s(74)), Tell::Now);
    }

    #[test]
    fn a_new_reason_is_told_at_once_but_not_again_when_reasons_alternate() {
        let mut trouble = Recurring::new(s(60));
        assert_eq!(trouble.failed("refused", s(0)), Tell::Now);
        assert_eq!(trouble.failed("timed out", s(1)), Tell::Now);
        assert_eq!(trouble.failed("refused", s(2)), Tell::Not);
        assert_eq!(trouble.failed("timed out", s(3)), Tell::Not);
    }

    #[test]
    fn ever_new_reasons_are_bounded() {
        let mut trouble = Recurring::new(s(60));
        let told = (0..100).filter(|n| trouble.failed(&format!("reason {n}"), s(1)) == Tell::Now).count();
        assert_eq!(told, REASONS);
    }
}
