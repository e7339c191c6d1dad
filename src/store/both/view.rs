//! What is known of the two stores, key by key, and as one.
//!
//! Both a list and a watch bring it up to date, in whichever order: each store's part is always what that store held at one
//! position, and an event from before that position is not taken over. What has to be told about a key is therefore always
//! the key as it stands now, whatever event was the reason.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;

use crate::model::LeaseAttrs;
use crate::model::lease::{key_of, parse_key};
use crate::model::two_stores::{Collision, Holder, Origin};
use crate::store::{Event, Record, Revision, Snapshot};

/// One store's part.
#[derive(Debug, Clone, Default)]
struct Side {
    records: BTreeMap<String, Record>,
    /// Changes from here on are not in it yet. Some may come twice.
    next: Revision,
    cluster: u64,
}

/// Both parts; `None`: never read.
#[derive(Debug, Default)]
pub(super) struct View {
    v2: Option<Side>,
    v3: Option<Side>,
}

/// A record as the daemon gets to see it: its revisions say which store it comes from.
pub(super) fn of(origin: Origin, record: Record) -> Record {
    let (created, modified) = (origin.created(record.created), origin.modified(record.modified));
    Record { created, modified, ..record }
}

impl View {
    fn side(&self, origin: Origin) -> Option<&Side> {
        match origin {
            Origin::V2 => self.v2.as_ref(),
            Origin::V3 => self.v3.as_ref(),
        }
    }

    fn side_mut(&mut self, origin: Origin) -> &mut Option<Side> {
        match origin {
            Origin::V2 => &mut self.v2,
            Origin::V3 => &mut self.v3,
        }
    }

    /// What a store holds of a key.
    pub(super) fn record(&self, origin: Origin, name: &str) -> Option<&Record> {
        self.side(origin)?.records.get(name)
    }

    /// Where a watch of this store has to start; `None` while it was never read.
    pub(super) fn next(&self, origin: Origin) -> Option<Revision> {
        self.side(origin).map(|side| side.next)
    }

    /// A position in both stores. It is the same only if nothing has happened in either.
    pub(super) fn position(&self) -> Revision {
        let next = |origin| self.next(origin).unwrap_or(0);
        next(Origin::V2).wrapping_add(next(Origin::V3))
    }

    /// Takes over a whole list.
    pub(super) fn replace(&mut self, origin: Origin, snapshot: Snapshot) {
        let records = snapshot.records.into_iter().map(|record| (record.name.clone(), record)).collect();
        *self.side_mut(origin) = Some(Side { records, next: snapshot.next, cluster: snapshot.cluster });
    }

    /// Takes over an event, unless it is older than what is known. Returns the key's name.
    pub(super) fn apply(&mut self, origin: Origin, event: Event) -> String {
        let (name, revision, record) = match event {
            Event::Put(record) => (record.name.clone(), record.modified, Some(record)),
            Event::Delete(name, revision) => (name, revision, None),
        };
        let side = self.side_mut(origin).get_or_insert_default();
        if revision >= side.next {
            side.next = revision;
            match record {
                Some(record) => side.records.insert(name.clone(), record),
                None => side.records.remove(&name),
            };
        }
        name
    }

    /// How a key stands now, told because of a change in `origin`. `None`: it is no news, v2 decides.
    pub(super) fn news(&self, origin: Origin, name: &str) -> Option<Event> {
        match (self.record(Origin::V2, name), self.record(Origin::V3, name)) {
            (Some(_), _) if origin == Origin::V3 => None,
            (Some(record), _) => Some(Event::Put(of(Origin::V2, record.clone()))),
            (None, Some(record)) => Some(Event::Put(of(Origin::V3, record.clone()))),
            (None, None) => {
                let gone = self.next(origin).unwrap_or(0);
                Some(Event::Delete(name.to_owned(), origin.modified(gone)))
            }
        }
    }

    /// Everything: v2's records, and v3's where v2 has none.
    pub(super) fn snapshot(&self) -> Snapshot {
        let part = |origin| self.side(origin).into_iter().flat_map(|side| side.records.values());
        let decided = part(Origin::V2).map(|record| of(Origin::V2, record.clone()));
        let rest = part(Origin::V3).filter(|record| self.record(Origin::V2, &record.name).is_none());
        let records = decided.chain(rest.map(|record| of(Origin::V3, record.clone()))).collect();
        let partial = self.v2.is_none() || self.v3.is_none();
        Snapshot { records, next: self.position(), cluster: self.cluster(), partial }
    }

    /// One number for the clusters behind the two stores, mostly the same one: it changes when one of them is replaced.
    fn cluster(&self) -> u64 {
        let cluster = |origin| self.side(origin).map(|side| side.cluster);
        match (cluster(Origin::V2), cluster(Origin::V3)) {
            (Some(v2), Some(v3)) if v2 != v3 => v2 ^ v3.rotate_left(1),
            (v2, v3) => v2.or(v3).unwrap_or(0),
        }
    }

    /// Whether different nodes stand in a key.
    pub(super) fn collision(&self, name: &str) -> Option<Collision> {
        let (v2, v3) = (self.record(Origin::V2, name)?, self.record(Origin::V3, name)?);
        Collision::between(name, &v2.value, &v3.value)
    }

    /// The revision of a key's copy in v3, if it is one: the same node stands in both stores.
    pub(super) fn copy(&self, subnet: Ipv4Network) -> Option<Revision> {
        let name = key_of(subnet);
        let (_, v3) = (self.record(Origin::V2, &name)?, self.record(Origin::V3, &name)?);
        self.collision(&name).is_none().then_some(v3.modified)
    }

    /// Names that stand in both stores.
    pub(super) fn shared(&self) -> BTreeSet<String> {
        let v3 = self.side(Origin::V3).into_iter().flat_map(|side| side.records.keys());
        v3.filter(|name| self.record(Origin::V2, name).is_some()).cloned().collect()
    }

    /// A key of v3 that is ours although v2 gave its subnet to another node: the subnet and the key's revision.
    pub(super) fn to_give_way(&self, name: &str, own: &LeaseAttrs) -> Option<(Ipv4Network, Revision)> {
        let collision = self.collision(name)?;
        let ours = collision.v3.is(Holder::from(own));
        Some((parse_key(name).ok().filter(|_| ours)?, self.record(Origin::V3, name)?.modified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VxlanData;
    use crate::model::two_stores::Origin::{V2, V3};

    const NAME: &str = "10.200.1.0-24";

    fn attrs(host: u8) -> LeaseAttrs {
        let data = VxlanData { vni: 1, mac: crate::model::MacAddr::new([2, 0, 0, 0, 0, host]) };
        LeaseAttrs::vxlan([10, 8, 0, host].into(), data, None)
    }

    fn record(host: u8, modified: Revision) -> Record {
        let value = attrs(host).to_json().into_bytes();
        Record { name: NAME.to_owned(), value, created: modified, modified, lease: Some(7) }
    }

    fn list(records: &[Record], next: Revision) -> Snapshot {
        Snapshot { records: records.to_vec(), next, ..Snapshot::default() }
    }

    fn view(v2: &[Record], v3: &[Record]) -> View {
        let mut view = View::default();
        view.replace(V2, list(v2, 100));
        view.replace(V3, list(v3, 500));
        view
    }

    #[test]
    fn what_v2_says_is_news_and_what_v3_says_only_without_v2() {
        let (two, three) = (record(2, 99), record(3, 499));
        let put = |origin, record: &Record| Some(Event::Put(of(origin, record.clone())));
        for (v2, v3, told_of_v2, told_of_v3) in [
            (Some(&two), Some(&three), put(V2, &two), None),
            (Some(&two), None, put(V2, &two), None),
            (None, Some(&three), put(V3, &three), put(V3, &three)),
        ] {
            let slice = |record: Option<&Record>| record.cloned().into_iter().collect::<Vec<_>>();
            let view = view(&slice(v2), &slice(v3));
            assert_eq!((view.news(V2, NAME), view.news(V3, NAME)), (told_of_v2, told_of_v3), "{view:?}");
            assert_eq!(view.snapshot().records.len(), 1);
        }
        let gone = view(&[], &[]).news(V3, NAME);
        assert_eq!(gone, Some(Event::Delete(NAME.to_owned(), V3.modified(500))));
    }

    /// A watch that lags behind a list must not bring back what the list has seen go.
    #[test]
    fn events_from_before_a_list_change_nothing() {
        let mut view = view(&[], &[]);
        view.apply(V2, Event::Put(record(2, 98)));
        assert!(matches!(view.news(V2, NAME), Some(Event::Delete(..))));
        view.apply(V2, Event::Put(record(2, 100)));
        assert!(matches!(view.news(V2, NAME), Some(Event::Put(_))));
        // Another event of the same revision counts, an older one does not.
        view.apply(V2, Event::Delete(NAME.to_owned(), 99));
        assert!(view.record(V2, NAME).is_some());
        view.apply(V2, Event::Delete(NAME.to_owned(), 100));
        assert!(view.record(V2, NAME).is_none());
        // A store that was replaced counts from the start again.
        view.replace(V2, list(&[], 3));
        view.apply(V2, Event::Put(record(2, 4)));
        assert!(view.record(V2, NAME).is_some());
    }

    #[test]
    fn a_part_that_was_never_read_is_not_an_empty_one() {
        let mut view = View::default();
        view.replace(V2, list(&[], 100));
        assert_eq!((view.snapshot().partial, view.next(V3)), (true, None));
        view.replace(V3, list(&[], 500));
        assert_eq!((view.snapshot().partial, view.position()), (false, 600));
    }

    #[test]
    fn our_own_key_gives_way_only_to_another_node() {
        let subnet: Ipv4Network = "10.200.1.0/24".parse().unwrap();
        let contested = view(&[record(2, 99)], &[record(3, 499)]);
        assert_eq!(contested.to_give_way(NAME, &attrs(3)), Some((subnet, 499)));
        assert_eq!(contested.to_give_way(NAME, &attrs(2)), None, "the other one has to");
        assert_eq!(contested.copy(subnet), None);
        let copied = view(&[record(2, 99)], &[record(2, 499)]);
        assert_eq!((copied.to_give_way(NAME, &attrs(2)), copied.copy(subnet)), (None, Some(499)));
        assert_eq!(copied.shared().len(), 1);
    }
}
