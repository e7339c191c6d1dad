//! What time the members of etcd believe it is: the `Date` of an answer. No decision and no other use of it.

use std::time::{Duration, SystemTime};

use http::Method;
use tokio::time::timeout;

use super::config::Config;
use super::endpoints::Connect;
use super::etcd_v2_http::Dial;
use super::{StoreError, config_of};

/// How long one member may take.
const MEMBER: Duration = Duration::from_secs(3);

/// How far the clock of each member that answers is ahead of ours, in seconds, by endpoint. Right to a second or two.
///
/// # Errors
/// When the connection is misconfigured. A member that does not answer is left out.
pub async fn clocks(etcd: &crate::options::Etcd) -> Result<Vec<(String, i64)>, StoreError> {
    let config = config_of(etcd);
    let mut found = Vec::new();
    for url in config.urls()? {
        let name = url.to_string().trim_end_matches('/').to_owned();
        let ahead = timeout(MEMBER, ahead(&config, &url)).await;
        found.extend(ahead.ok().flatten().map(|ahead| (name, ahead)));
    }
    Ok(found)
}

#[expect(clippy::disallowed_methods, reason = "tells the operator about the wall clock, and nobody else")]
async fn ahead(config: &Config, url: &http::Uri) -> Option<i64> {
    let member = Dial::new(config).connect(url).await.ok()?;
    let answer = member.begin(Method::GET, "/version", None).await.ok()?;
    let theirs = httpdate::parse_http_date(answer.date.as_deref()?).ok()?;
    // A date has whole seconds: on average half of one has passed since.
    Some(difference(theirs + Duration::from_millis(500), SystemTime::now()))
}

/// Whole seconds from `ours` to `theirs`.
fn difference(theirs: SystemTime, ours: SystemTime) -> i64 {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match theirs.duration_since(ours) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A member with a clock of its own: nobody may set the one of this machine.
    async fn member(date: Option<SystemTime>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /version HTTP/1.1\r\n"));
            let date = date.map(|date| format!("Date: {}\r\n", httpdate::fmt_http_date(date)));
            let answer =
                format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\n{{}}", date.unwrap_or_default());
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        url
    }

    #[tokio::test]
    #[expect(
        clippy::disallowed_methods,
        reason = "members whose clocks are set to this time, or another one"
    )]
    async fn the_clock_of_each_member_that_answers_is_compared() {
        let now = SystemTime::now();
        let endpoints = [
            member(Some(now)).await,
            member(Some(now + Duration::from_secs(3600))).await,
            member(Some(now - Duration::from_secs(120))).await,
            member(None).await,
            "http://127.0.0.1:1".to_owned(),
        ];
        let etcd = crate::options::Etcd {
            endpoints: endpoints.iter().map(|url| crate::options::Endpoint::parse(url).unwrap()).collect(),
            api: super::super::Api::V3,
            prefix: crate::options::Prefix::clean("/n").unwrap(),
            tls: crate::options::Tls::default(),
            credentials: None,
        };
        let found = clocks(&etcd).await.unwrap();
        let close = |expected: i64, found: i64| (expected - found).abs() <= 30;
        assert_eq!(
            found.iter().map(|(url, _)| url).collect::<Vec<_>>(),
            endpoints[..3].iter().collect::<Vec<_>>()
        );
        assert!(close(0, found[0].1) && close(3600, found[1].1) && close(-120, found[2].1), "{found:?}");
    }
}
