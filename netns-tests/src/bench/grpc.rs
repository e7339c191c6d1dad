//! As much gRPC as a benchmark needs to load etcd and to measure it: HTTP/2 without TLS, one connection, messages as bytes.
//!
//! Not the client of the daemon, on purpose: what is measured and what measures share no code, and the lab, which installs
//! `protoc`, must build without it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

/// Nothing here takes longer on a working machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Large enough that flow control never waits for us.
const WINDOW: u32 = 64 << 20;

/// A connection. The socket stays in the network namespace of the thread that connected.
pub(super) struct Connection {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
}

impl Connection {
    pub(super) fn open(address: SocketAddr) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("a runtime")?;
        let requests = runtime.block_on(async {
            let socket = TcpStream::connect(address).await.with_context(|| format!("connect {address}"))?;
            socket.set_nodelay(true)?;
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
            let (requests, connection) = builder.handshake(socket).await.context("HTTP/2 handshake")?;
            // Its end shows in the requests.
            tokio::spawn(async move { drop(connection.await) });
            anyhow::Ok(requests)
        })?;
        Ok(Self { runtime, requests })
    }

    /// One message there, one back.
    pub(super) fn unary(&mut self, method: &str, message: &[u8]) -> Result<Vec<u8>> {
        let requests = &mut self.requests;
        let call = async {
            let mut body = send(requests, method, message, true).await?.0;
            let answer = Messages::default().next(&mut body).await?;
            let trailers = body.trailers().await?.unwrap_or_default();
            let status = trailers.get("grpc-status").map_or("", |status| status.to_str().unwrap_or("?"));
            ensure!(status == "0", "{method}: grpc-status {status}: {:?}", trailers.get("grpc-message"));
            answer.with_context(|| format!("{method}: no answer"))
        };
        self.runtime.block_on(async { tokio::time::timeout(DEADLINE, call).await })?
    }

    /// One message there, a stream of messages back until the connection is dropped.
    pub(super) fn stream(mut self, method: &str, message: &[u8]) -> Result<Streaming> {
        let (body, open) = self.runtime.block_on(send(&mut self.requests, method, message, false))?;
        Ok(Streaming { connection: self, body, messages: Messages::default(), _open: open })
    }
}

/// The answers of a call that goes on.
pub(super) struct Streaming {
    connection: Connection,
    body: RecvStream,
    messages: Messages,
    /// Ending our half would end the call.
    _open: h2::SendStream<Bytes>,
}

impl Streaming {
    /// The next message; `None` when the server ended the call or nothing came within `wait`.
    pub(super) fn next(&mut self, wait: Duration) -> Result<Option<Vec<u8>>> {
        let next = self.messages.next(&mut self.body);
        match self.connection.runtime.block_on(async { tokio::time::timeout(wait, next).await }) {
            Ok(message) => message,
            Err(_) => Ok(None),
        }
    }
}

async fn send(
    requests: &mut SendRequest<Bytes>,
    method: &str,
    message: &[u8],
    end: bool,
) -> Result<(RecvStream, h2::SendStream<Bytes>)> {
    let request = Request::post(format!("http://etcd/etcdserverpb.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut requests = requests.clone().ready().await?;
    let (response, mut stream) = requests.send_request(request, false)?;
    let length = u32::try_from(message.len()).context("message length")?;
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    stream.send_data(frame.freeze(), end)?;
    let response = response.await.with_context(|| format!("{method}: no response"))?;
    ensure!(response.status() == 200, "{method}: HTTP status {}", response.status());
    Ok((response.into_body(), stream))
}

/// Puts messages together from the pieces in which they arrive.
#[derive(Default)]
struct Messages(BytesMut);

impl Messages {
    async fn next(&mut self, body: &mut RecvStream) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = self.take() {
                return Ok(Some(message));
            }
            let Some(piece) = body.data().await else { return Ok(None) };
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            self.0.extend_from_slice(&piece);
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let (head, rest) = self.0.split_first_chunk::<5>()?;
        let [_, length @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        let message = rest.get(..length)?.to_vec();
        self.0.advance(5 + length);
        Some(message)
    }
}

/// A protobuf message under construction.
#[derive(Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    /// A length-delimited field: text, bytes or a message.
    pub(super) fn bytes(mut self, field: u8, value: &[u8]) -> Self {
        self.0.push((field << 3) | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// A number.
    pub(super) fn number(mut self, field: u8, value: u64) -> Self {
        self.0.push(field << 3);
        self.varint(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
    }
}

/// The fields of a protobuf message: number and value, nested ones as bytes.
pub(super) fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut found = Vec::new();
    while let Some(key) = read_varint(&mut bytes) {
        let value = match key & 7 {
            0 => read_varint(&mut bytes).map(Value::Number),
            2 => read_varint(&mut bytes).and_then(|length| {
                let (value, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
                bytes = rest;
                Some(Value::Bytes(value))
            }),
            _ => None,
        };
        let Some(value) = value else { break };
        found.push((key >> 3, value));
    }
    found
}

/// A field's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let inner = Message::default().number(2, 300).0;
        let outer = Message::default().bytes(1, b"key").bytes(3, &inner).number(4, u64::MAX).0;
        assert_eq!(
            fields(&outer),
            [(1, Value::Bytes(b"key")), (3, Value::Bytes(&inner)), (4, Value::Number(u64::MAX))]
        );
        assert_eq!(fields(&inner), [(2, Value::Number(300))]);
    }
}
