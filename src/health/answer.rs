//! Which answer a path gets: from facts to a response, without waiting for anything.

use std::time::Duration;

use http::{StatusCode, header};
use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;

use crate::metrics::Metrics;
use crate::metrics::page;
use crate::status::{Status, ready};

/// The whole body at once.
pub(super) type Body = Full<Bytes>;

/// Does the loop make progress?
pub(super) const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";
const METRICS: &str = "/metrics";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What an answer depends on.
pub(super) struct Facts<'a> {
    /// The loop gave a sign of life. Only looked at for `/healthz`.
    pub(super) live: bool,
    pub(super) status: &'a Status,
    pub(super) metrics: &'a Metrics,
    pub(super) now: Duration,
}

/// The answer to any request for `path`, whatever its method.
pub(super) fn to(path: &str, facts: &Facts<'_>) -> Result<Response<Body>, http::Error> {
    match path {
        HEALTHZ if facts.live => plain(StatusCode::OK, "flanneld is running"),
        HEALTHZ => plain(StatusCode::SERVICE_UNAVAILABLE, "flanneld is stuck"),
        READYZ if ready(facts.status, facts.now) => plain(StatusCode::OK, "flanneld is ready"),
        READYZ => plain(StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
        METRICS => {
            let page = page::render(facts.status, facts.metrics, facts.now);
            response(StatusCode::OK, page::MEDIA_TYPE, Bytes::from(page))
        }
        _ => plain(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Result<Response<Body>, http::Error> {
    response(status, PLAIN, Bytes::from_static(text.as_bytes()))
}

fn response(status: StatusCode, media_type: &str, body: Bytes) -> Result<Response<Body>, http::Error> {
    Response::builder().status(status).header(header::CONTENT_TYPE, media_type).body(Full::new(body))
}
