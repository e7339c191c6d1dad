//! The rule of `etcd-api=auto`: in which of etcd's two stores the network is. Asks both stores and judges; chooses no connection.
//!
//! | `PREFIX/config` is in | live leases of other nodes in v2 | verdict |
//! |---|---|---|
//! | one store | | that store |
//! | both | some | v2 decides; our lease is kept in v3 as well |
//! | both | none | v3 |
//! | neither | | none: look again |
//!
//! Both hold a config while a cluster moves from v2 to v3, and afterwards. With `auto` v2 counts until nobody else lives there. A
//! node that followed v2 *alone*, though, would be cut off from every node that has gone on to v3 already: they do not see v2's
//! leases. The move would lose packets by a node that nobody remembered to set to `both`. So its lease is kept in v3 as well, and
//! who has moved counts as a peer. The config is never copied: that begins a move, and beginning one is the operator's.
//!
//! A store that does not answer may hold the config as well as not. Where v2 decides in any case, v3 is not waited for.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::pin::pin;

use super::beside::beside;
use super::etcd::Etcd;
use super::etcd_v2_json::NOT_SERVED;
use super::key_value::KeyValue;
use super::{LeaseStore, Record, StoreError};
use crate::model::two_stores::needs_v2;
use crate::model::{LeaseAttrs, NodeId};

/// So many nodes are named before the rest is counted.
const NAMED: usize = 3;

/// How our own lease is told from those of others before anything else is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ourselves {
    /// Our public IP, if the options name it.
    pub public_ip: Option<Ipv4Addr>,
    /// Our machine, if it has an id.
    pub node_id: Option<NodeId>,
}

impl Ourselves {
    fn wrote(self, attrs: &LeaseAttrs) -> bool {
        Some(attrs.public_ip) == self.public_ip || (attrs.node_id.is_some() && attrs.node_id == self.node_id)
    }
}

/// Where the network is, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// In v2 alone.
    V2(String),
    /// In v3.
    V3(String),
    /// In v2, which others may have left already.
    V2AndCopy(String),
    /// In neither.
    Missing(String),
}

/// What a store says when it is asked for the network config.
enum Holds {
    Yes,
    No,
    /// It answers, but not us: asking again is of no use.
    Closed(StoreError),
}

impl Holds {
    /// A store that does not answer may hold a config as well as not: that is an error, and never a "no".
    fn new(found: Result<Option<Vec<u8>>, StoreError>) -> Result<Self, StoreError> {
        match found {
            Ok(Some(_)) => Ok(Self::Yes),
            Ok(None) => Ok(Self::No),
            Err(StoreError::Refused { reason, .. }) if reason == NOT_SERVED => Ok(Self::No),
            Err(error @ StoreError::Refused { .. }) => Ok(Self::Closed(error)),
            Err(error) => Err(error),
        }
    }
}

/// Looks once. A lease of `own` does not keep v2 alive.
///
/// # Errors
/// When a store that has to be asked does not answer.
pub(super) async fn judge<P: KeyValue, S: KeyValue>(
    v2: &Etcd<P>,
    v3: &Etcd<S>,
    own: Ourselves,
) -> Result<Verdict, StoreError> {
    let key = v3.config_key();
    let mut asked = pin!(v3.network_config());
    let (in_v2, in_v3) = beside(v2.network_config(), asked.as_mut()).await;
    let (in_v2, in_v3) = (Holds::new(in_v2)?, in_v3.map(Holds::new));
    let in_v3 = match in_v3 {
        Some(Ok(holds)) => holds,
        unknown => {
            if matches!(in_v2, Holds::Yes)
                && let Some(others) = living(v2, own).await?
            {
                return Ok(Verdict::V2AndCopy(format!(
                    "{key} exists in the v2 store, where {others}: v2 decides. The v3 store does not answer; our lease is kept \
                     there as well as soon as it does"
                )));
            }
            let late = match unknown {
                Some(failed) => failed,
                None => {
                    tracing::info!(
                        "the v3 store does not answer yet, and without it the store cannot be chosen"
                    );
                    Holds::new(asked.await)
                }
            };
            late.map_err(|error| undecided(&in_v2, &key, error))?
        }
    };
    match (in_v2, in_v3) {
        (Holds::Yes, Holds::Yes) => compare(v2, v3, own, &key).await,
        (Holds::Yes, Holds::No) => Ok(Verdict::V2(format!("{key} exists only in the v2 store"))),
        (Holds::No, Holds::Yes) => Ok(Verdict::V3(format!("{key} exists only in the v3 store"))),
        (Holds::No, Holds::No) => {
            Ok(Verdict::Missing(format!("{key} exists neither in the v3 nor in the v2 store")))
        }
        (Holds::Yes, Holds::Closed(v3)) => {
            Ok(Verdict::V2(format!("{key} exists in the v2 store, and the v3 store is closed to us: {v3}")))
        }
        (Holds::Closed(v2), Holds::Yes) => {
            Ok(Verdict::V3(format!("{key} exists in the v3 store, and the v2 store is closed to us: {v2}")))
        }
        (Holds::Closed(error), _) | (_, Holds::Closed(error)) => Err(error),
    }
}

/// Whether neither store holds a network config. One "yes" is enough; a "no" needs both.
///
/// # Errors
/// When a store that has to be asked does not answer.
pub(super) async fn is_missing<P: KeyValue, S: KeyValue>(
    v2: &Etcd<P>,
    v3: &Etcd<S>,
) -> Result<bool, StoreError> {
    let in_v2 = Holds::new(v2.network_config().await)?;
    if matches!(in_v2, Holds::Yes) {
        return Ok(false);
    }
    match (in_v2, Holds::new(v3.network_config().await)?) {
        (_, Holds::Yes) => Ok(false),
        (Holds::Closed(error), _) | (_, Holds::Closed(error)) => Err(error),
        _ => Ok(true),
    }
}

/// Both hold a config, so a move is under way, or over.
async fn compare<P: KeyValue, S: KeyValue>(
    v2: &Etcd<P>,
    v3: &Etcd<S>,
    own: Ourselves,
    key: &str,
) -> Result<Verdict, StoreError> {
    let records = v2.list().await?.records;
    let unmoved = needing_v2(&records, own, &BTreeMap::new());
    let mut others = renewing(&unmoved);
    // Reservations never run out: those that v3 has as well are no sign of life.
    if others.is_empty() && !unmoved.is_empty() {
        let arrived = v3.list().await.map_err(|error| undecided(&Holds::Yes, key, error))?;
        let arrived = arrived.records.into_iter().map(|record| (record.name, record.value)).collect();
        others = needing_v2(&records, own, &arrived);
    }
    Ok(match in_words(&others) {
        Some(others) => Verdict::V2AndCopy(format!(
            "{key} exists in both stores, and in v2 {others}: v2 decides. Our lease is kept in v3 as well, for the nodes that \
             have moved there"
        )),
        None => {
            Verdict::V3(format!("{key} exists in both stores, and in v2 no other node holds a live lease"))
        }
    })
}

/// Other nodes' leases in v2 that v3 does not replace; `arrived`: what v3 holds, by name.
fn needing_v2<'a>(
    records: &'a [Record],
    own: Ourselves,
    arrived: &BTreeMap<String, Vec<u8>>,
) -> Vec<&'a Record> {
    let needed = |record: &&Record| {
        let there = arrived.get(&record.name).map(Vec::as_slice);
        needs_v2(|attrs| own.wrote(attrs), &record.value, record.lease.is_none(), there)
    };
    records.iter().filter(needed).collect()
}

/// Those that run out unless somebody renews them: whatever v3 holds, they keep v2 alive.
fn renewing<'a>(leases: &[&'a Record]) -> Vec<&'a Record> {
    leases.iter().copied().filter(|record| record.lease.is_some()).collect()
}

/// Other nodes that live in v2, in words.
async fn living<P: KeyValue>(v2: &Etcd<P>, own: Ourselves) -> Result<Option<String>, StoreError> {
    let records = v2.list().await?.records;
    Ok(in_words(&renewing(&needing_v2(&records, own, &BTreeMap::new()))))
}

/// `another node (10.8.0.112) holds a live lease`; `None` without any.
fn in_words(others: &[&Record]) -> Option<String> {
    let attrs = others.iter().filter_map(|record| LeaseAttrs::from_json(&record.value).ok());
    let mut addresses: Vec<Ipv4Addr> = attrs.map(|attrs| attrs.public_ip).collect();
    addresses.sort_unstable();
    let mut names: Vec<String> = addresses.iter().take(NAMED).map(ToString::to_string).collect();
    if let Some(more) = others.len().checked_sub(NAMED).filter(|&more| more > 0) {
        names.push(format!("{more} more"));
    }
    let names = names.join(", ");
    match others.len() {
        0 => None,
        1 => Some(format!("another node ({names}) holds a live lease")),
        count => Some(format!("{count} other nodes ({names}) hold live leases")),
    }
}

/// v3 did not answer, and its answer counts.
fn undecided(in_v2: &Holds, key: &str, error: StoreError) -> StoreError {
    match (in_v2, error) {
        (Holds::Yes, error @ (StoreError::Unreachable(_) | StoreError::Refused { .. })) => {
            StoreError::Undecided { key: key.to_owned(), error: Box::new(error) }
        }
        (_, error) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::model::{MacAddr, VxlanData};
    use crate::store::Memory;

    const CONFIG: &str = "/n/config";
    const DAY: Duration = Duration::from_secs(86_400);

    /// Both stores with a config, and what `leases` says in v2: a node, and whether it renews or has a reservation.
    fn stores(leases: &[(u8, bool)]) -> (Memory, Memory) {
        let (v2, v3) = (Memory::default(), Memory::default());
        v2.set(CONFIG, "{}", None);
        v3.set(CONFIG, "{}", None);
        for (node, renews) in leases {
            put(&v2, *node, renews.then_some(DAY));
        }
        (v2, v3)
    }

    fn put(store: &Memory, node: u8, ttl: Option<Duration>) {
        let data = VxlanData { vni: 1, mac: MacAddr::new([2, 0, 0, 0, 0, node]) };
        let attrs = LeaseAttrs::vxlan([10, 8, 0, node].into(), data, None);
        store.set(&format!("/n/subnets/10.200.{node}.0-24"), &attrs.to_json(), ttl);
    }

    /// What node 1 makes of it, and after how many seconds.
    async fn judged((v2, v3): &(Memory, Memory)) -> (Result<Verdict, StoreError>, u64) {
        let start = Instant::now();
        let own = Ourselves { public_ip: Some([10, 8, 0, 1].into()), node_id: None };
        let verdict = judge(&Etcd::new(v2.clone(), "/n"), &Etcd::new(v3.clone(), "/n"), own).await;
        (verdict, start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn while_another_node_lives_in_v2_that_decides_and_who_it_is_is_told() {
        let verdict = async |leases: &[(u8, bool)]| judged(&stores(leases)).await.0.unwrap();
        let kept = "v2 decides. Our lease is kept in v3 as well, for the nodes that have moved there";
        for (leases, others) in [
            (&[(1, true), (2, true)][..], "another node (10.8.0.2) holds a live lease"),
            (&[(3, true), (2, true), (4, false)], "2 other nodes (10.8.0.2, 10.8.0.3) hold live leases"),
            (&[(4, false)], "another node (10.8.0.4) holds a live lease"),
            (
                &[(2, true), (3, true), (4, true), (5, true), (6, true)],
                "5 other nodes (10.8.0.2, 10.8.0.3, 10.8.0.4, 2 more) hold live leases",
            ),
        ] {
            let expected = format!("{CONFIG} exists in both stores, and in v2 {others}: {kept}");
            assert_eq!(verdict(leases).await, Verdict::V2AndCopy(expected));
        }
        let alone = format!("{CONFIG} exists in both stores, and in v2 no other node holds a live lease");
        for leases in [&[][..], &[(1, true)], &[(1, false)]] {
            assert_eq!(verdict(leases).await, Verdict::V3(alone.clone()));
        }
        let ended = stores(&[(1, true)]);
        put(&ended.0, 2, Some(Duration::from_secs(5)));
        assert!(matches!(judged(&ended).await.0, Ok(Verdict::V2AndCopy(_))));
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(judged(&ended).await.0, Ok(Verdict::V3(alone)), "it has run out");
    }

    #[tokio::test(start_paused = true)]
    async fn a_v3_without_an_answer_is_not_waited_for_where_v2_decides_anyhow() {
        let expected = format!(
            "{CONFIG} exists in the v2 store, where another node (10.8.0.2) holds a live lease: v2 decides. The v3 store does not \
             answer; our lease is kept there as well as soon as it does"
        );
        let silent = stores(&[(1, true), (2, true)]);
        silent.1.set_silent(true);
        assert_eq!(judged(&silent).await, (Ok(Verdict::V2AndCopy(expected.clone())), 3));
        let dead = stores(&[(1, true), (2, true)]);
        dead.1.set_down(true);
        assert_eq!(judged(&dead).await, (Ok(Verdict::V2AndCopy(expected)), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn where_v3s_config_decides_its_answer_is_waited_for() {
        let words = format!(
            "{CONFIG} exists in the v2 store, where no other node is known to live: whether the v3 store holds it, too, decides, and \
             is waited for (etcd-api=v2 would not ask): no etcd endpoint answers: memory: unreachable on demand"
        );
        // Somebody else's reservation may be left over from before the move.
        for leases in [&[][..], &[(1, true)], &[(1, true), (2, false)]] {
            let silent = stores(leases);
            silent.1.set_silent(true);
            let (verdict, seconds) = judged(&silent).await;
            assert_eq!((verdict.unwrap_err().to_string(), seconds), (words.clone(), 10));
        }
        // With the config found, whether that reservation has moved is all that matters.
        let (v2, v3) = stores(&[(2, false)]);
        let (v2, unread) = (Etcd::new(v2, "/n"), Etcd::new(v3.clone(), "/n"));
        v3.set_down(true);
        let verdict = compare(&v2, &unread, Ourselves::default(), CONFIG).await;
        assert_eq!(verdict.unwrap_err().to_string(), words);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_of_v2_nothing_is_decided() {
        let silent = stores(&[(2, true)]);
        silent.0.set_silent(true);
        let (verdict, seconds) = judged(&silent).await;
        assert!(matches!(verdict, Err(StoreError::Unreachable(_))) && seconds == 10, "{verdict:?} {seconds}");
        // A "no" of v2 makes v3's answer count.
        let elsewhere = (Memory::default(), Memory::default());
        elsewhere.1.set_silent(true);
        let (verdict, _) = judged(&elsewhere).await;
        assert!(matches!(verdict, Err(StoreError::Unreachable(_))), "{verdict:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_config_is_missing_when_both_stores_say_so() {
        let missing = async |v2: &Memory, v3: &Memory| {
            is_missing(&Etcd::new(v2.clone(), "/n"), &Etcd::new(v3.clone(), "/n")).await
        };
        let (v2, v3) = (Memory::default(), Memory::default());
        assert_eq!(missing(&v2, &v3).await, Ok(true));
        v3.set(CONFIG, "{}", None);
        assert_eq!(missing(&v2, &v3).await, Ok(false));
        v3.set_silent(true);
        assert!(missing(&v2, &v3).await.is_err());
        v2.set(CONFIG, "{}", None);
        let start = Instant::now();
        assert_eq!((missing(&v2, &v3).await, start.elapsed().as_secs()), (Ok(false), 0), "v3 is not asked");
    }
}
