//! Remembers what a server said when it broke off a TLS connection.
//!
//! With TLS 1.3 a refused client certificate is told after the handshake, when HTTP reads already; HTTP only reports
//! "connection closed" and drops the reason.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::Uri;
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::tls;

/// The last words of each server. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Alerts(Arc<Mutex<HashMap<String, AlertDescription>>>);

impl Alerts {
    /// The last words of the server of `url`, once.
    pub(super) fn take(&self, url: &Uri) -> Option<AlertDescription> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(url.authority()?.as_str())
    }

    /// Listens to the server of `url`.
    pub(super) fn listen(&self, url: &Uri, inner: TlsStream<TcpStream>) -> Heard {
        let server = url.authority().map(ToString::to_string).unwrap_or_default();
        Heard { inner, server, alerts: self.clone() }
    }

    fn remember(&self, server: &str, error: &io::Error) {
        if let Some(alert) = tls::alert(error) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(server.to_owned(), alert);
        }
    }
}

/// A TLS stream whose alerts are remembered.
#[derive(Debug)]
pub(super) struct Heard {
    inner: TlsStream<TcpStream>,
    server: String,
    alerts: Alerts,
}

/// Whether the server has closed. Who writes must not give up then: its last words are still unread, and reading ends soon.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &read {
            self.alerts.remember(&self.server, error);
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.inner).poll_write(cx, bytes) {
            Poll::Ready(Err(error)) if is_closed(&error) => Poll::Ready(Ok(bytes.len())),
            written => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_flush(cx) {
            Poll::Ready(Err(error)) if is_closed(&error) => Poll::Ready(Ok(())),
            flushed => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
