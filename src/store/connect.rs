//! One connection to one endpoint: TCP with keepalive, then TLS if the URL says so.
//!
//! TLS files are read for every connection, so a rotated certificate is used by the next one.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::alerts::Alerts;
use super::config::TlsFiles;
use super::tls::{self, TlsError};

/// A member that does not accept within this time is taken for dead.
const CONNECT: Duration = Duration::from_millis(1500);
/// Without an answer for this long a second attempt is made beside the first: while a network comes back the first packet is lost,
/// and TCP sends it again after a second only (RFC 6298).
const SECOND_ATTEMPT: Duration = Duration::from_millis(200);
/// TLS takes a few round trips and, on the server, a signature.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Bytes to and from a server, encrypted or not.
pub(super) trait Io: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// An open connection.
pub(super) type Stream = Pin<Box<dyn Io>>;

/// For HTTP's connection pool: nothing to tell about a connection.
impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Why there is no connection. The endpoint is named by whoever asked for it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the URL names no host")]
    NoHost,
    #[error("{0}")]
    Tcp(String),
    #[error("no TCP connection within {} s", CONNECT.as_secs_f32())]
    Silent,
    #[error("TLS: no answer within {} s (is this port plain HTTP?)", HANDSHAKE.as_secs())]
    SilentTls,
    #[error("TLS: the server broke off the handshake (is this port plain HTTP?)")]
    BrokenOff,
    #[error("TLS: {0}")]
    Handshake(String),
    #[error(transparent)]
    Files(#[from] TlsError),
}

/// Opens connections to the servers of one store.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    files: Arc<TlsFiles>,
    /// What to speak over TLS: `h2` or `http/1.1`.
    protocol: &'static str,
    alerts: Alerts,
}

impl Connector {
    pub(super) fn new(files: &TlsFiles, protocol: &'static str) -> Self {
        Self { files: Arc::new(files.clone()), protocol, alerts: Alerts::default() }
    }

    /// Why the server of `url` broke off the last connection, if it said so.
    pub(super) fn last_words(&self, url: &Uri) -> Option<String> {
        let alert = self.alerts.take(url)?;
        Some(ConnectError::Handshake(tls::alert_in_words(alert, &self.files)).to_string())
    }

    /// Connects to the host of `url`.
    pub(super) async fn connect(self, url: Uri) -> Result<Stream, ConnectError> {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let tls = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let tcp = tokio::time::timeout(CONNECT, twice(|| TcpStream::connect((host.as_str(), port))))
            .await
            .map_err(|_| ConnectError::Silent)?
            .map_err(|error| ConnectError::Tcp(plain(&error)))?;
        prepare(&tcp).map_err(|error| ConnectError::Tcp(plain(&error)))?;
        if !tls {
            return Ok(Box::pin(tcp));
        }
        let name = ServerName::try_from(host).map_err(|_| ConnectError::NoHost)?;
        let config = tls::client_config(&self.files, self.protocol)?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => Ok(Box::pin(self.alerts.listen(&url, stream))),
            Ok(Err(error))
                if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
            {
                Err(ConnectError::BrokenOff)
            }
            Ok(Err(error)) => Err(ConnectError::Handshake(match tls::alert(&error) {
                Some(alert) => tls::alert_in_words(alert, &self.files),
                None => tls::in_words(&error),
            })),
            Err(_) => Err(ConnectError::SilentTls),
        }
    }
}

/// Whichever attempt ends first; the second begins when the first is late.
async fn twice<F: Future>(attempt: impl Fn() -> F) -> F::Output {
    let mut first = pin!(attempt());
    match tokio::time::timeout(SECOND_ATTEMPT, &mut first).await {
        Ok(ended) => ended,
        Err(_) => tokio::select! {
            ended = first => ended,
            ended = attempt() => ended,
        },
    }
}

/// Requests are small and waited for. A peer that vanished without a word, or a way to it that lost its state, is noticed within
/// five seconds of silence: by the kernels on both sides, which wake no process for it. While events follow each other closely they
/// are acknowledged together: otherwise each costs a packet, sent by the system call that reads it. (After a pause the kernel
/// acknowledges each again, tcp(7).)
fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(3))
        .with_interval(Duration::from_secs(1))
        .with_retries(2);
    let socket = SockRef::from(tcp);
    socket.set_tcp_quickack(false)?;
    socket.set_tcp_keepalive(&keepalive)
}

/// `Connection refused` instead of `Connection refused (os error 111)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// The part of a chain of errors that says most: ours if there is one, else the innermost.
pub(super) fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> Cause<'a> {
    let mut current = error;
    loop {
        if let Some(ours) = current.downcast_ref::<ConnectError>() {
            return Cause::Connect(ours);
        }
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return Cause::Other(tls::in_words(io));
        }
        match current.source() {
            Some(source) => current = source,
            None => return Cause::Other(current.to_string()),
        }
    }
}

/// What [`root_cause`] found.
pub(super) enum Cause<'a> {
    Connect(&'a ConnectError),
    Other(String),
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_vanished_peer_is_noticed_by_keepalive() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&tcp).unwrap();
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap() && tcp.nodelay().unwrap() && !socket.tcp_quickack().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(3));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(1));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 2);
    }

    /// What `twice` makes of attempts that each end after a time of their own.
    async fn of(times: [u64; 2]) -> (usize, Duration) {
        let (count, start) = (AtomicUsize::new(0), tokio::time::Instant::now());
        let attempt = || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(times[number])).await;
                number
            }
        };
        (twice(attempt).await, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_whose_first_packet_is_lost_is_overtaken() {
        assert_eq!(of([1000, 3]).await, (1, Duration::from_millis(203)));
        assert_eq!(of([250, 1000]).await, (0, Duration::from_millis(250)));
        assert_eq!(of([3, 0]).await, (0, Duration::from_millis(3)));
    }
}
