//! What lies between one node and the store, and what stops a node: delays, lost requests and answers, a line that is cut, a
//! process that is not scheduled. The store itself stays whole behind it.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::history;
use crate::model::two_stores::Origin;
use crate::store::key_value::{Batch, Broken, Changes, Grant, KeyValue, Listing, Opened, Refreshed, Write};
use crate::store::seeded::Random;
use crate::store::{Memory, Record, Revision, StoreError};

/// Holds a process up, as SIGSTOP or a suspended machine does: time goes on for everybody else, and for the store.
#[derive(Debug, Clone)]
pub(super) struct Gate(Arc<watch::Sender<Instant>>);

impl Gate {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Instant::now())))
    }

    /// Nothing of the process runs for so long.
    pub(super) fn stop_for(&self, time: Duration) {
        self.0.send_replace(Instant::now() + time);
    }

    async fn opened(&self) {
        let mut changed = self.0.subscribe();
        loop {
            let until = *changed.borrow_and_update();
            if until <= Instant::now() {
                return;
            }
            let _ = timeout_at(until, changed.changed()).await;
        }
    }

    async fn closed(&self) {
        let mut until = self.0.subscribe();
        if until.wait_for(|until| *until > Instant::now()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs `process` except while it is held up.
    pub(super) async fn run<T>(&self, process: impl Future<Output = T>) -> T {
        let mut process = pin!(process);
        loop {
            self.opened().await;
            tokio::select! {
                biased;
                () = self.closed() => {}
                ended = &mut process => return ended,
            }
        }
    }
}

/// One node's way to the store.
#[derive(Debug, Clone)]
pub(super) struct Link {
    memory: Memory,
    pub(super) gate: Gate,
    line: Arc<Mutex<Line>>,
    cut: watch::Sender<()>,
}

/// How bad the way is.
#[derive(Debug)]
struct Line {
    random: Random,
    down: bool,
    /// One request in so many is lost, and as many answers; 0: none.
    lossy: u64,
    /// Longest delay, each way.
    delay: Duration,
    /// The process is held up for so long when the next request has reached the store: its answer waits.
    stop: Option<Duration>,
    /// The same with the next renewal.
    stop_with_renewal: Option<Duration>,
}

/// What becomes of one request.
#[derive(Debug)]
struct Fate {
    there: Duration,
    back: Duration,
    request_lost: bool,
    answer_lost: bool,
    /// What is lost is noticed at once (a reset connection), not only at the deadline (silence).
    noticed: bool,
}

fn no_answer() -> StoreError {
    StoreError::Unreachable("simulation: no answer".to_owned())
}

impl Link {
    pub(super) fn new(memory: Memory, seed: u64) -> Self {
        let random = Random::new(seed);
        let delay = Duration::from_millis(3);
        let line = Line { random, down: false, lossy: 0, delay, stop: None, stop_with_renewal: None };
        let line = Arc::new(Mutex::new(line));
        Self { memory, gate: Gate::new(), line, cut: watch::Sender::new(()) }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_down(&self, down: bool) {
        self.line().down = down;
        self.cut.send_replace(());
    }

    pub(super) fn set_quality(&self, lossy: u64, delay: Duration) {
        let mut line = self.line();
        (line.lossy, line.delay) = (lossy, delay);
    }

    /// The next answer finds the process held up.
    pub(super) fn stop_with_next_answer(&self, time: Duration) {
        self.line().stop = Some(time);
    }

    /// The next renewal's answer finds the process held up.
    pub(super) fn stop_with_renewal(&self, time: Duration) {
        self.line().stop_with_renewal = Some(time);
    }

    /// A perfect way, and a process that runs.
    pub(super) fn heal(&self) {
        self.gate.stop_for(Duration::ZERO);
        self.set_quality(0, Duration::from_millis(3));
        let mut line = self.line();
        (line.down, line.stop, line.stop_with_renewal) = (false, None, None);
    }

    fn fate(&self) -> Fate {
        let mut line = self.line();
        let millis = u64::try_from(line.delay.as_millis()).unwrap() + 1;
        let mut delay = || Duration::from_millis(line.random.below(millis));
        let (there, back) = (delay(), delay());
        let (down, lossy) = (line.down, line.lossy);
        let mut lost = || lossy > 0 && line.random.once_in(lossy);
        let (request_lost, answer_lost) = (lost() || down, lost());
        Fate { there, back, request_lost, answer_lost, noticed: line.random.once_in(2) }
    }

    async fn call<T>(
        &self,
        by: Instant,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.gate.opened().await;
        let fate = self.fate();
        history::note(&fate);
        let talk = async {
            sleep(fate.there).await;
            let answer = if fate.request_lost { None } else { Some(call.await) };
            let stop = self.line().stop.take_if(|_| answer.is_some());
            stop.into_iter().for_each(|time| self.gate.stop_for(time));
            sleep(fate.back).await;
            match answer.filter(|_| !fate.answer_lost) {
                Some(answer) => answer,
                None if fate.noticed => Err(no_answer()),
                None => std::future::pending().await,
            }
        };
        let answer = timeout_at(by, talk).await.unwrap_or_else(|_| Err(no_answer()));
        history::note(answer.as_ref().err());
        self.gate.opened().await;
        answer
    }
}

impl KeyValue for Link {
    const ORIGIN: Origin = Origin::V3;
    type Changes = LinkChanges;

    async fn get(&self, key: &str, by: Instant) -> Result<Option<Record>, StoreError> {
        self.call(by, self.memory.get(key, by)).await
    }

    async fn list(&self, folder: &str, by: Instant) -> Result<Listing, StoreError> {
        self.call(by, self.memory.list(folder, by)).await
    }

    async fn grant(&self, ttl: Duration, by: Instant) -> Result<Grant, StoreError> {
        self.call(by, self.memory.grant(ttl, by)).await
    }

    async fn revoke(&self, lease: i64, by: Instant) -> Result<(), StoreError> {
        self.call(by, self.memory.revoke(lease, by)).await
    }

    async fn put(&self, write: &Write<'_>, by: Instant) -> Result<Option<Revision>, StoreError> {
        history::note(write);
        self.call(by, self.memory.put(write, by)).await
    }

    async fn refresh(
        &self,
        key: &str,
        modified: Revision,
        grant: Grant,
        by: Instant,
    ) -> Result<Refreshed, StoreError> {
        let refresh = async {
            let answer = self.memory.refresh(key, modified, grant, by).await;
            let stop = self.line().stop_with_renewal.take();
            stop.into_iter().for_each(|time| self.gate.stop_for(time));
            answer
        };
        self.call(by, refresh).await
    }

    async fn lifetime(&self, lease: i64, by: Instant) -> Result<Option<Duration>, StoreError> {
        self.call(by, self.memory.lifetime(lease, by)).await
    }

    async fn delete(&self, key: &str, modified: Revision, by: Instant) -> Result<bool, StoreError> {
        self.call(by, self.memory.delete(key, modified, by)).await
    }

    async fn watch(&self, folder: &str, from: Revision, by: Instant) -> Result<Opened<LinkChanges>, Broken> {
        let open = async { Ok(self.memory.watch(folder, from, by).await) };
        let opened = self.call(by, open).await.map_err(Broken::Failed)??;
        let changes = LinkChanges { inner: opened.changes, link: self.clone(), cut: self.cut.subscribe() };
        Ok(Opened { changes, revision: opened.revision, cluster: opened.cluster })
    }

    fn describe(&self) -> String {
        self.memory.describe()
    }
}

/// A watch over a [`Link`].
#[derive(Debug)]
pub(super) struct LinkChanges {
    inner: <Memory as KeyValue>::Changes,
    link: Link,
    cut: watch::Receiver<()>,
}

impl Changes for LinkChanges {
    async fn next(&mut self) -> Result<Batch, Broken> {
        let batch = tokio::select! {
            biased;
            _ = self.cut.changed() => Err(Broken::Failed(no_answer())),
            batch = self.inner.next() => batch,
        };
        let back = self.link.fate().back;
        history::note((back, batch.as_ref().ok().map(|batch| (batch.events.len(), batch.resume))));
        sleep(back).await;
        self.link.gate.opened().await;
        batch
    }
}
