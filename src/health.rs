//! `/healthz`, `/readyz` and `/metrics` over HTTP/1.1. Reads the published state and asks the loop for a sign of life; changes
//! nothing.
//!
//! One request a connection, a bounded number of connections, and a bounded time for each: a slow or hostile client costs no
//! more than its socket for a few seconds.

mod answer;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;
use crate::status::Status;

/// A question whether the daemon's loop makes progress; it has to be answered from within the loop.
#[derive(Debug)]
pub struct Ping(oneshot::Sender<()>);

impl Ping {
    /// Answers. It does not matter whether somebody still waits.
    pub fn answer(self) {
        let _ = self.0.send(());
    }
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve health on {address}: {source}{}", cure(source))]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// What the server reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The published state.
    pub status: watch::Receiver<Status>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The way to the loop. Its buffer may be small: a full one counts as no answer in time.
    pub pings: mpsc::Sender<Ping>,
    /// The time by which [`Status`] is stamped: `CLOCK_BOOTTIME`.
    pub clock: fn() -> Duration,
}

/// How much a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections served at a time; more have to wait.
    pub connections: usize,
    /// How long a connection may last from its first byte to its last.
    pub connection: Duration,
    /// How long the loop may take to answer before it counts as stuck.
    pub answer: Duration,
    /// How long connections may go on after the stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            connection: Duration::from_secs(5),
            answer: Duration::from_secs(2),
            drain: Duration::from_millis(250),
        }
    }
}

/// Largest request head in bytes: the smallest bound hyper allows.
const HEAD: usize = 8192;
/// Pause after a failed accept. The usual reason is a lack of file descriptors, which does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Opens the socket.
///
/// # Errors
/// When the address is in use or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves until `stop` completes, then lets connections end for a moment.
pub async fn serve(listener: TcpListener, sources: Sources, limits: Limits, stop: impl Future<Output = ()>) {
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            stream = accept(&listener), if connections.len() < limits.connections => {
                connections.spawn(connection(stream, sources.clone(), limits));
            }
        }
    }
    drop(listener);
    let _ = timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => tracing::debug!(%error, "cannot accept a health connection"),
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Whatever goes wrong with a connection is its client's business.
async fn connection(stream: TcpStream, sources: Sources, limits: Limits) {
    let service = service_fn(move |request| respond(request, sources.clone(), limits.answer));
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(limits.connection, served).await;
}

async fn respond(
    request: Request<Incoming>,
    sources: Sources,
    patience: Duration,
) -> Result<Response<answer::Body>, http::Error> {
    let live = match request.uri().path() {
        answer::HEALTHZ => is_live(&sources.pings, patience).await,
        _ => true,
    };
    let status = sources.status.borrow().clone();
    answer::to(
        request.uri().path(),
        &answer::Facts { live, status: &status, metrics: &sources.metrics, now: (sources.clock)() },
    )
}

async fn is_live(pings: &mpsc::Sender<Ping>, patience: Duration) -> bool {
    let (ping, pong) = oneshot::channel();
    let asked = pings.try_send(Ping(ping)).is_ok();
    asked && matches!(timeout(patience, pong).await, Ok(Ok(())))
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; stop what listens there or choose another healthz-port",
        io::ErrorKind::AddrNotAvailable => "; choose a healthz-ip of this host",
        io::ErrorKind::PermissionDenied => "; choose a healthz-port above 1023 or run as root",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
