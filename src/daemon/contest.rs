//! What somebody else keeps undoing: how often the data plane may correct it, and what has to wait until when.
//!
//! The rule itself is `model::fights`; here it is applied to steps and operations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::device::DeviceStep;
use crate::model::diff::Plan;
use crate::model::fights::{BURST, Fights, Verdict};
use crate::model::state::EntryKey;

/// How many corrections of an entry are made at once. `ip neigh flush` and `ip route flush` are no fight, although they delete what
/// came back up to ten times, and may be typed more than once.
const ENTRY_BURST: u32 = 3 * BURST;

/// Something that can be fought over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// An aspect of the device.
    Device(&'static str),
    /// An entry.
    Entry(EntryKey),
    /// The room for notifications: each overrun costs a dump.
    Notifications,
}

/// Fights that have just begun, by kind, with one example each.
pub(super) type Begun = BTreeMap<&'static str, String>;

/// What was put off.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Postponed {
    /// The device or everything.
    pub(super) device: bool,
    /// Entries.
    pub(super) entries: BTreeSet<EntryKey>,
}

/// All fights over our device.
#[derive(Debug, Default)]
pub(super) struct Contest {
    fights: Fights<Part>,
    postponed: Postponed,
    due: Option<Duration>,
}

impl Contest {
    /// When something that was put off may be corrected.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// What was put off, to be tried now.
    pub(super) fn take(&mut self) -> Postponed {
        self.due = None;
        std::mem::take(&mut self.postponed)
    }

    /// Entries that were undone while they were corrected: their turn comes again at once, after whatever else is waiting.
    pub(super) fn put_off(&mut self, entries: impl Iterator<Item = EntryKey>, now: Duration) {
        self.postponed.entries.extend(entries);
        self.due = Some(now);
    }

    /// Leaves out the steps that have to wait. `None`: without them the device is of no use, so nothing can be done now.
    pub(super) fn admit_steps(
        &mut self,
        steps: Vec<DeviceStep>,
        now: Duration,
        begun: &mut Begun,
    ) -> Option<Vec<DeviceStep>> {
        // A new device needs all of it, whatever was fought over before.
        let anew = steps.iter().any(|step| matches!(step, DeviceStep::Create(_)));
        let parts: BTreeSet<&'static str> =
            if anew { ["existence"].into() } else { steps.iter().map(DeviceStep::part).collect() };
        let waiting: BTreeSet<&'static str> = parts
            .into_iter()
            .filter(|part| {
                !self.may(Part::Device(part), now, || (*part, format!("the device's {part}")), begun)
            })
            .collect();
        self.postponed.device |= !waiting.is_empty();
        if ["existence", "address", "link state"].iter().any(|part| waiting.contains(part)) {
            return None;
        }
        Some(steps.into_iter().filter(|step| anew || !waiting.contains(step.part())).collect())
    }

    /// Leaves out the operations that have to wait.
    pub(super) fn admit_operations(&mut self, plan: &mut Plan, now: Duration, begun: &mut Begun) {
        let kinds: BTreeMap<EntryKey, &'static str> =
            plan.operations.iter().map(|operation| (operation.key(), operation.kind())).collect();
        let waiting: BTreeSet<EntryKey> = kinds
            .into_iter()
            .filter(|(key, kind)| !self.may(Part::Entry(*key), now, || (*kind, key.to_string()), begun))
            .map(|(key, _)| key)
            .collect();
        plan.operations.retain(|operation| !waiting.contains(&operation.key()));
        self.postponed.entries.extend(waiting);
    }

    /// Whether everything may be read again because notifications were lost.
    pub(super) fn admit_overrun(&mut self, now: Duration, begun: &mut Begun) -> bool {
        let words = || ("notifications", "more changes than can be read".to_owned());
        let may = self.may(Part::Notifications, now, words, begun);
        self.postponed.device |= !may;
        may
    }

    fn may(
        &mut self,
        part: Part,
        now: Duration,
        words: impl FnOnce() -> (&'static str, String),
        begun: &mut Begun,
    ) -> bool {
        let burst = if matches!(part, Part::Entry(_)) { ENTRY_BURST } else { BURST };
        let Verdict::Wait { until, begins } = self.fights.ask_for(part, burst, now) else { return true };
        self.due = Some(self.due.map_or(until, |due| due.min(until)));
        if begins {
            let (kind, example) = words();
            begun.entry(kind).or_insert(example);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state::{Operation, Route};
    use crate::model::{MacAddr, Mtu};

    const NOW: Duration = Duration::from_secs(100);

    fn steps() -> Vec<DeviceStep> {
        vec![DeviceStep::SetMtu(Mtu::try_from(1450).unwrap()), DeviceStep::SetMac(MacAddr::new([2; 6]))]
    }

    #[test]
    fn only_what_is_fought_over_waits_and_it_is_told_once() {
        let (mut contest, mut begun) = (Contest::default(), Begun::new());
        for _ in 0..BURST {
            assert_eq!(contest.admit_steps(steps()[..1].to_vec(), NOW, &mut begun).unwrap().len(), 1);
        }
        assert_eq!((begun.len(), contest.due()), (0, None));
        assert_eq!(contest.admit_steps(steps(), NOW, &mut begun).unwrap(), steps()[1..]);
        assert_eq!(begun, [("MTU", "the device's MTU".to_owned())].into());
        assert_eq!(contest.due(), Some(NOW + Duration::from_secs(10)));
        assert_eq!(contest.take(), Postponed { device: true, ..Postponed::default() });
        assert_eq!((contest.take(), contest.due()), (Postponed::default(), None));
    }

    #[test]
    fn a_device_that_may_not_be_made_usable_is_left_alone_altogether() {
        let (mut contest, mut begun) = (Contest::default(), Begun::new());
        for _ in 0..BURST {
            contest.admit_steps(vec![DeviceStep::SetUp], NOW, &mut begun);
        }
        assert_eq!(contest.admit_steps([steps(), vec![DeviceStep::SetUp]].concat(), NOW, &mut begun), None);
    }

    #[test]
    fn entries_are_told_apart() {
        let (mut contest, mut begun) = (Contest::default(), Begun::new());
        let put = |slot| Operation::PutRoute(Route::overlay(format!("10.200.{slot}.0/24").parse().unwrap()));
        for round in 0..=ENTRY_BURST {
            let mut plan = Plan { operations: vec![put(2)], ..Plan::default() };
            contest.admit_operations(&mut plan, NOW, &mut begun);
            assert_eq!(plan.operations.len(), usize::from(round < ENTRY_BURST));
        }
        let mut plan = Plan { operations: vec![put(2), put(3)], ..Plan::default() };
        contest.admit_operations(&mut plan, NOW, &mut begun);
        assert_eq!(plan.operations, [put(3)]);
        assert_eq!(contest.take().entries, [put(2).key()].into());
        assert_eq!(begun, [("route", "10.200.2.0/24".to_owned())].into());
    }
}
