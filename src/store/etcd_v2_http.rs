//! HTTP for etcd's v2 API: connections, login, headers, and which failures are worth another member.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tower::util::BoxCloneSyncService;

use super::Revision;
use super::config::Config;
use super::connect::{Cause, ConnectError, Connector, Stream, root_cause};
use super::endpoints::{Connect, Failure};
use super::etcd_v2_json::{self as json, RawEvent, Reply};

/// Largest answer taken.
const LARGEST: usize = 64 << 20;
/// Unused connections are closed after this time.
const IDLE: Duration = Duration::from_secs(30);

type Dialer = BoxCloneSyncService<Uri, TokioIo<Stream>, ConnectError>;

/// How to reach a member.
pub(super) struct Dial {
    connector: Connector,
    authorization: Option<HeaderValue>,
}

/// One member.
#[derive(Clone)]
pub(super) struct Http {
    client: Client<Dialer, Full<Bytes>>,
    base: String,
    authorization: Option<HeaderValue>,
}

impl Dial {
    pub(super) fn new(config: &Config) -> Self {
        let authorization = config.login().and_then(|(user, password)| {
            let basic = STANDARD.encode(format!("{user}:{password}"));
            let mut value = HeaderValue::from_str(&format!("Basic {basic}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Self { connector: Connector::new(&config.tls, "http/1.1"), authorization }
    }
}

impl Connect for Dial {
    type Connection = Http;

    fn last_words(&self, url: &Uri) -> Option<String> {
        self.connector.last_words(url)
    }

    async fn connect(&self, url: &Uri) -> Result<Http, Failure> {
        let connector = self.connector.clone();
        let dialer = tower::service_fn(move |url: Uri| {
            let connecting = connector.clone().connect(url);
            async move { connecting.await.map(TokioIo::new) }
        });
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(BoxCloneSyncService::new(dialer));
        let base = url.to_string().trim_end_matches('/').to_owned();
        Ok(Http { client, base, authorization: self.authorization.clone() })
    }
}

/// An answer whose head has come.
pub(super) struct Pending {
    status: StatusCode,
    /// The store's index when it began to answer.
    pub(super) index: Revision,
    /// Which cluster answers.
    pub(super) cluster: u64,
    /// What time the member believes it is.
    pub(super) date: Option<String>,
    body: Incoming,
}

/// A whole answer.
pub(super) struct Answer {
    pub(super) index: Revision,
    pub(super) cluster: u64,
    body: Bytes,
}

impl Http {
    /// Makes a request and reads the whole answer.
    pub(super) async fn send(
        &self,
        method: Method,
        target: &str,
        form: Option<String>,
    ) -> Result<Answer, Failure> {
        let pending = self.begin(method, target, form).await?;
        let status = pending.status;
        let answer = pending.finish().await.map_err(Failure::Dead)?;
        match answer.reply() {
            // The member itself cannot serve: no leader, or the request timed out on its way through the quorum.
            Ok(Reply::Error { text, .. }) if status.is_server_error() => Err(Failure::Busy(text)),
            Err(reason) if status.is_server_error() => Err(Failure::Busy(reason)),
            _ => Ok(answer),
        }
    }

    /// Makes a request and returns as soon as the head of the answer is there.
    pub(super) async fn begin(
        &self,
        method: Method,
        target: &str,
        form: Option<String>,
    ) -> Result<Pending, Failure> {
        let mut request = Request::builder().method(method).uri(format!("{}{target}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if form.is_some() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = Full::new(Bytes::from(form.unwrap_or_default()));
        let request = request.body(body).map_err(|error| Failure::Refused(error.to_string()))?;
        let response = self.client.request(request).await.map_err(|error| of_error(&error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Refused(
                "the user may not do this, or user name or password are wrong (etcd-username, etcd-password)"
                    .to_owned(),
            )),
            // Following would hand the password to whoever is named there.
            status if status.is_redirection() => Err(Failure::Refused(redirected(response.headers()))),
            _ => Ok(Pending::new(response)),
        }
    }
}

fn of_error(error: &(dyn Error + 'static)) -> Failure {
    match root_cause(error) {
        Cause::Connect(ConnectError::Files(error)) => Failure::Config(error.to_string()),
        Cause::Connect(error) => Failure::Dead(error.to_string()),
        Cause::Other(reason) => Failure::Dead(reason),
    }
}

fn redirected(headers: &HeaderMap) -> String {
    let to = headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or("nowhere");
    format!("it redirects to {to}, which is not followed: name that server in etcd-endpoints")
}

fn number(headers: &HeaderMap, name: &str, radix: u32) -> u64 {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    text.and_then(|text| u64::from_str_radix(text, radix).ok()).unwrap_or(0)
}

impl Pending {
    fn new(response: Response<Incoming>) -> Self {
        let headers = response.headers();
        Self {
            status: response.status(),
            index: number(headers, "x-etcd-index", 10),
            cluster: number(headers, "x-etcd-cluster-id", 16),
            date: headers.get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned),
            body: response.into_body(),
        }
    }

    /// Reads the rest of the answer.
    pub(super) async fn finish(self) -> Result<Answer, String> {
        let body = Limited::new(self.body, LARGEST).collect().await.map_err(|error| error.to_string())?;
        Ok(Answer { index: self.index, cluster: self.cluster, body: body.to_bytes() })
    }
}

impl Answer {
    pub(super) fn is_empty(&self) -> bool {
        self.body.trim_ascii().is_empty()
    }

    pub(super) fn reply(&self) -> Result<Reply, String> {
        json::reply(&self.body)
    }

    pub(super) fn event(&self) -> Result<Result<RawEvent, Reply>, String> {
        json::poll(&self.body)
    }
}

/// Percent-encodes for paths and forms alike; slashes stay.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_and_paths_are_percent_encoded() {
        assert_eq!(encode("/n/10.1.0.0-24"), "/n/10.1.0.0-24");
        assert_eq!(encode(r#"{"a":"b c&d=é"}"#), "%7B%22a%22%3A%22b%20c%26d%3D%C3%A9%22%7D");
    }
}
