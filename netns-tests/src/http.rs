//! As much HTTP as it takes to ask a health server and etcd's v2 store.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks for a path and returns the status and the body. The caller's thread decides the network namespace.
///
/// # Errors
/// When the server does not answer with HTTP.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// Any request with a form as its body. HTTP/1.0, so that the answer does not come in chunks.
///
/// # Errors
/// When the server does not answer with HTTP.
pub fn request(address: SocketAddr, method: &str, path: &str, form: &str) -> Result<(u16, String)> {
    exchange(
        address,
        &format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\n\r\n{form}",
            form.len()
        ),
    )
}

fn exchange(address: SocketAddr, request: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("connect {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    let status = head.split_whitespace().nth(1).context("an answer without a status")?;
    Ok((status.parse().context("status")?, body.to_owned()))
}

/// The value of a metric in Prometheus text; 0 when it is not listed.
///
/// # Errors
/// When the value is no number.
pub fn metric(text: &str, name: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(Ok(0.0), |value| value.trim().parse().with_context(|| format!("metric {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_by_name_and_labels() {
        let text = "# TYPE a gauge\na{x=\"1\"} 3\nab 4.5\n";
        assert_eq!(metric(text, "a{x=\"1\"}").unwrap(), 3.0);
        assert_eq!(metric(text, "ab").unwrap(), 4.5);
        assert_eq!(metric(text, "a").unwrap(), 0.0);
    }
}
