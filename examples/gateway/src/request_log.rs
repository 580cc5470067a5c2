//! Logs and counts requests.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, debug, info};
use uuid::Uuid;

use crate::{Gateway, traces};

/// How many bytes of a path are logged.
const MAX_PATH: usize = 256;

/// The header with which a client or proxy names a request, and with which the answer names it.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest name of a request that is taken from its client, in bytes.
const MAX_REQUEST_ID: usize = 64;

/// Names a request in the log and in the audit log.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The client's name of the request if it is valid, or else a random one.
    fn of(request: &Request) -> Self {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        let given = request.headers().get(REQUEST_ID).filter(|given| {
            let given = given.as_bytes();
            !given.is_empty() && given.len() <= MAX_REQUEST_ID && given.iter().all(is_plain)
        });
        // A UUID is a valid value.
        Self(given.cloned().unwrap_or_else(|| {
            HeaderValue::try_from(Uuid::new_v4().to_string()).unwrap_or(HeaderValue::from_static("unknown"))
        }))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Names, logs and counts the request, without its query, which may contain a token.
pub(crate) async fn record(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    let began = Instant::now();
    let span = traces::of_request(&request, &id);
    let method = request.method().clone();
    // A URI is ASCII, so any byte is a character boundary.
    let path = request.uri().path();
    let path = without_link(&path[..path.len().min(MAX_PATH)]);
    let mut response = next.run(request).instrument(span.clone()).await;
    response.headers_mut().insert(REQUEST_ID, id.0.clone());
    let status = response.status();
    let took = began.elapsed();
    let route = response.extensions().get::<MatchedPath>().map(|matched| {
        // `/api/kernels/:id` is easier to write in a query than `/api/kernels/{id}`.
        matched.as_str().replace("{*", ":").replace('{', ":").replace('}', "")
    });
    let route = route.as_deref().unwrap_or("none");
    gateway.metrics.request(&method, route, status, took);
    traces::answered(&span, &method, route, status);
    // Frequent polls are not logged.
    if method.is_safe() && status.is_success() {
        debug!(%method, path, status = status.as_u16(), ?took, id = id.as_str(), "request");
    } else {
        info!(%method, path, status = status.as_u16(), ?took, id = id.as_str(), "request");
    }
    response
}

/// The path without the token of a share.
fn without_link(path: &str) -> String {
    const LIVE: &str = "/live/";
    match path.find(LIVE) {
        Some(place) => format!("{}…", &path[..place + LIVE.len()]),
        None => path.to_owned(),
    }
}

/// Attaches the route to the response, because only the router knows it.
pub(crate) async fn note_route(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}
