//! Several members of one cluster: tries each in turn until one answers, and stays with the one that did.
//!
//! Knows deadlines and whose turn it is; what is asked is a function the caller gives.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{StoreError, random};

/// How long one member may take; one that answers within a second is slow, not dead.
const TRY: Duration = Duration::from_millis(2500);
/// Pause before members are asked again that are up but cannot serve (no leader, busy).
const PAUSE: Duration = Duration::from_millis(200);

/// Why one attempt at one member failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The store answered: no. Another member would say the same.
    Refused(String),
    /// No connection, or it broke: try the next member.
    Dead(String),
    /// The member is up but cannot serve now: try the next, and this one again.
    Busy(String),
    /// What is known about the connection (a token) is out of date: connect anew and try again.
    Stale(String),
    /// A file or option is unusable.
    Config(String),
}

/// Opens connections of one protocol.
pub(super) trait Connect: Send + Sync + 'static {
    /// What requests are made on. Clones share it.
    type Connection: Clone + Send + Sync + 'static;

    /// Connects (or prepares to) and logs in.
    fn connect(&self, url: &Uri) -> impl Future<Output = Result<Self::Connection, Failure>> + Send;

    /// What the member said when it broke off the last connection.
    fn last_words(&self, url: &Uri) -> Option<String>;
}

/// The members of one cluster.
pub(super) struct Endpoints<C: Connect> {
    shared: Arc<Shared<C>>,
}

struct Shared<C: Connect> {
    connect: C,
    members: Vec<Member<C::Connection>>,
    /// The member that answered last.
    pinned: AtomicUsize,
    moved: watch::Sender<()>,
}

/// Tells when the connections that were open at its making are not to be waited for any longer.
pub(super) struct Moved(watch::Receiver<()>);

impl Moved {
    /// Waits for that. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

struct Member<T> {
    url: Uri,
    connection: Mutex<Option<T>>,
}

impl<C: Connect> Clone for Endpoints<C> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: Clone> Member<T> {
    fn connection(&self) -> Option<T> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, connection: Option<T>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    fn label(&self) -> String {
        self.url.to_string().trim_end_matches('/').to_owned()
    }
}

impl<C: Connect> Endpoints<C> {
    /// Shuffles the members, so that not every node asks the same one.
    pub(super) fn new(connect: C, mut urls: Vec<Uri>) -> Self {
        random::shuffle(&mut urls);
        let members = urls.into_iter().map(|url| Member { url, connection: Mutex::default() }).collect();
        let (pinned, moved) = (AtomicUsize::new(0), watch::Sender::default());
        Self { shared: Arc::new(Shared { connect, members, pinned, moved }) }
    }

    /// Forgets every connection: it may begin at an address that this host has no longer, and then nothing but time would tell.
    /// What waits for an answer on one of them is asked again on another.
    pub(super) fn reconnect(&self) {
        self.shared.members.iter().for_each(|member| member.set(None));
        self.shared.moved.send_replace(());
    }

    /// For what is kept open beyond a call.
    pub(super) fn moved(&self) -> Moved {
        Moved(self.shared.moved.subscribe())
    }

    /// The members, for logs.
    pub(super) fn describe(&self) -> String {
        let mut labels: Vec<_> = self.shared.members.iter().map(Member::label).collect();
        labels.sort();
        labels.join(", ")
    }

    /// Makes `attempt` at one member after the other until one succeeds or refuses, at most until `by`.
    ///
    /// An attempt may have had its effect although its answer got lost: it must bear being made twice.
    pub(super) async fn call<T, F, A>(&self, doing: &str, by: Instant, attempt: F) -> Result<T, StoreError>
    where
        F: Fn(C::Connection) -> A + Send + Sync,
        A: Future<Output = Result<T, Failure>> + Send,
        T: Send,
    {
        let mut failures: Vec<Option<Failure>> = vec![None; self.shared.members.len()];
        let mut pause = PAUSE;
        loop {
            if let Some(answer) = self.round(by, &attempt, &mut failures).await {
                return answer.map_err(|reason| StoreError::Refused { doing: doing.to_owned(), reason });
            }
            let again =
                failures.iter().any(|failure| matches!(failure, Some(Failure::Busy(_) | Failure::Stale(_))));
            if !again || Instant::now() + pause >= by {
                return Err(self.summary(&failures));
            }
            tokio::time::sleep(random::jitter(pause)).await;
            pause *= 2;
        }
    }

    /// Asks each member once, the pinned one first. `None`: none could serve.
    async fn round<T, F, A>(
        &self,
        by: Instant,
        attempt: &F,
        failures: &mut [Option<Failure>],
    ) -> Option<Result<T, String>>
    where
        F: Fn(C::Connection) -> A + Send + Sync,
        A: Future<Output = Result<T, Failure>> + Send,
    {
        let first = self.shared.pinned.load(Ordering::Relaxed);
        let count = self.shared.members.len();
        for turn in 0..count {
            let index = (first + turn) % count;
            let member = self.shared.members.get(index)?;
            let left = by.saturating_duration_since(Instant::now());
            let limit = TRY.min(left / u32::try_from(count - turn).unwrap_or(u32::MAX));
            if limit.is_zero() {
                break;
            }
            let failure = match self.attempt(member, limit, attempt).await {
                Ok(answer) => {
                    self.shared.pinned.store(index, Ordering::Relaxed);
                    return Some(Ok(answer));
                }
                Err(Failure::Refused(reason)) => return Some(Err(reason)),
                Err(failure) => failure,
            };
            tracing::debug!(endpoint = member.label(), ?failure, "etcd member cannot serve");
            if let Some(slot) = failures.get_mut(index) {
                *slot = Some(failure);
            }
        }
        None
    }

    async fn attempt<T, F, A>(
        &self,
        member: &Member<C::Connection>,
        limit: Duration,
        attempt: &F,
    ) -> Result<T, Failure>
    where
        F: Fn(C::Connection) -> A + Send + Sync,
        A: Future<Output = Result<T, Failure>> + Send,
    {
        let (mut moved, known) = (self.moved(), member.connection());
        let mut answer = match known.clone() {
            Some(connection) => tokio::select! {
                answer = in_time(limit, attempt(connection)) => answer,
                () = moved.wait() => Err(Failure::Stale("this host's address has changed".to_owned())),
            },
            None => match in_time(limit, self.shared.connect.connect(&member.url)).await {
                Ok(connection) => {
                    member.set(Some(connection.clone()));
                    in_time(limit, attempt(connection)).await
                }
                Err(failure) => Err(failure),
            },
        };
        if let Err(Failure::Dead(reason)) = &mut answer {
            self.explain(member, known.is_some(), reason);
            // Only the connection may be dead: that is no verdict on the member.
            if known.is_some() {
                answer = Err(Failure::Stale(std::mem::take(reason)));
            }
        }
        if matches!(answer, Err(Failure::Dead(_) | Failure::Stale(_) | Failure::Config(_))) {
            // A half-open connection would swallow the next request too.
            member.set(None);
        }
        answer
    }

    /// Adds what is known beyond HTTP's words. A connection that has worked speaks the right protocol.
    fn explain(&self, member: &Member<C::Connection>, has_worked: bool, reason: &mut String) {
        if let Some(words) = self.shared.connect.last_words(&member.url) {
            *reason = words;
        } else if !has_worked && is_cut(reason) && member.url.scheme_str() == Some("http") {
            reason.push_str(" (is this port TLS? then use https://)");
        }
    }

    fn summary(&self, failures: &[Option<Failure>]) -> StoreError {
        let mut reasons = Vec::new();
        for (member, failure) in self.shared.members.iter().zip(failures) {
            let reason = match failure {
                Some(Failure::Config(reason)) => return StoreError::Config(reason.clone()),
                Some(
                    Failure::Dead(reason)
                    | Failure::Busy(reason)
                    | Failure::Stale(reason)
                    | Failure::Refused(reason),
                ) => reason,
                None => "not asked: out of time",
            };
            reasons.push(format!("{}: {reason}", member.label()));
        }
        reasons.sort();
        StoreError::Unreachable(reasons.join("; "))
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::Dead(format!("no answer within {:.1} s", limit.as_secs_f32()))),
    }
}

/// Whether these are HTTP's words for a connection that the server closed without an answer.
fn is_cut(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    ["connection closed", "broken pipe", "connection reset"].iter().any(|words| reason.contains(words))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Members that say their name; all but the `alive` ones are dead.
    struct Named {
        alive: &'static [&'static str],
    }

    impl Connect for Named {
        type Connection = String;

        async fn connect(&self, url: &Uri) -> Result<String, Failure> {
            let name = url.host().unwrap().to_owned();
            if self.alive.contains(&name.as_str()) { Ok(name) } else { Err(Failure::Dead("down".to_owned())) }
        }

        fn last_words(&self, _: &Uri) -> Option<String> {
            None
        }
    }

    fn members(alive: &'static [&'static str]) -> Endpoints<Named> {
        let urls = ["a", "b", "c", "d"].map(|name| format!("http://{name}:1/").parse().unwrap());
        Endpoints::new(Named { alive }, urls.to_vec())
    }

    #[test]
    fn a_connection_without_an_answer_is_known_by_the_words_of_http_and_of_the_system() {
        for words in [
            "connection closed before message completed",
            "Connection reset by peer (os error 104)",
            "broken pipe",
        ] {
            assert!(is_cut(words), "{words}");
        }
        assert!(!is_cut("Connection refused (os error 111)"));
    }

    async fn who_answers(members: &Endpoints<Named>) -> Result<String, StoreError> {
        members.call("ask", Instant::now() + Duration::from_secs(10), async |name| Ok(name)).await
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_do_not_all_ask_the_same_member() {
        let mut asked = BTreeSet::new();
        for _ in 0..200 {
            asked.insert(who_answers(&members(&["a", "b", "c", "d"])).await.unwrap());
        }
        assert_eq!(asked.len(), 4, "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_member_that_answered_is_asked_again_and_a_dead_one_costs_nothing() {
        for _ in 0..20 {
            let all = members(&["a", "b", "c", "d"]);
            let first = who_answers(&all).await.unwrap();
            for _ in 0..5 {
                assert_eq!(who_answers(&all).await.unwrap(), first);
            }
            assert_eq!(who_answers(&members(&["c"])).await.unwrap(), "c");
        }
        let error = who_answers(&members(&[])).await.unwrap_err().to_string();
        let each = ["a", "b", "c", "d"].map(|name| format!("http://{name}:1: down")).join("; ");
        assert_eq!(error, format!("no etcd endpoint answers: {each}"));
    }
}
