//! `/live/{token}`: a read-only page of a kernel's cells, for those who have the link.
//!
//! The page needs no token of the gateway, and gives access to nothing else. Its policy runs no script but its own. All
//! texts of the kernel get into it as text; HTML outputs are in frames that run no scripts.

mod snapshot;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::Gateway;
use crate::error::OwnBody;
use crate::model::timestamp;
use crate::shares::Share;
use crate::wrong_tokens::ClientAddress;
use snapshot::{Page, Pages, Snapshot};

/// The page; `NONCE` stands for the nonce of its policy.
const PAGE: &str = include_str!("page.html");
const REFUSED: &str = include_str!("refused.html");
/// The most viewers of all pages at a time.
const MAX_VIEWERS: usize = 256;
/// Idle time before a comment shows that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The viewed pages.
pub(crate) struct Live {
    pages: Pages,
    viewers: Arc<Semaphore>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            pages: Pages::default(),
            viewers: Arc::new(Semaphore::new(MAX_VIEWERS)),
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct LivePath {
    /// The token of a share.
    token: String,
}

/// The page of a share.
#[utoipa::path(
    get, path = "/live/{token}", tag = "shares", operation_id = "live_page", params(LivePath),
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        (status = 403, description = "The link is not valid", body = String, content_type = "text/html"),
        (status = 429, description = "Too many wrong links came from the client's address", body = String,
         content_type = "text/html"),
    ),
)]
pub(crate) async fn page(
    State(gateway): State<Arc<Gateway>>,
    Path(LivePath { token }): Path<LivePath>,
    address: Option<Extension<ClientAddress>>,
) -> Response {
    match share_of(&gateway, &token, address).await {
        Ok(_) => html(StatusCode::OK, PAGE),
        Err(refusal) => *refusal,
    }
}

/// The cells of a share and their changes, as server-sent events: state, order, cell, end.
#[utoipa::path(
    get, path = "/live/{token}/events", tag = "shares", operation_id = "live_events", params(LivePath),
    responses(
        (status = 200, description = "The events", body = String, content_type = "text/event-stream"),
        (status = 403, description = "The link is not valid", body = String, content_type = "text/html"),
        (status = 429, description = "Too many wrong links came from the client's address", body = String,
         content_type = "text/html"),
        (status = 503, description = "There are too many viewers", body = String, content_type = "text/html"),
    ),
)]
pub(crate) async fn events(
    State(gateway): State<Arc<Gateway>>,
    Path(LivePath { token }): Path<LivePath>,
    address: Option<Extension<ClientAddress>>,
) -> Response {
    let share = match share_of(&gateway, &token, address).await {
        Ok(share) => share,
        Err(refusal) => return *refusal,
    };
    let Ok(viewer) = gateway.live.viewers.clone().try_acquire_owned() else {
        return html(StatusCode::SERVICE_UNAVAILABLE, REFUSED);
    };
    let kernel = gateway.manager.get(share.kernel);
    let executions = match &kernel {
        Some(kernel) => Some(kernel.executions()),
        None => gateway.manager.past_executions(share.kernel).await.unwrap_or(None),
    };
    let Some(executions) = executions else {
        return html(StatusCode::FORBIDDEN, REFUSED);
    };
    let Some(page) = gateway.live.pages.get(share.kernel, kernel, executions) else {
        return html(StatusCode::SERVICE_UNAVAILABLE, REFUSED);
    };
    let stream = Viewer {
        snapshot: page.snapshot(),
        _page: page,
        _viewer: viewer,
        revocations: gateway.shares.revocations(),
        gateway,
        share,
        sent: HashMap::new(),
        order: Vec::new(),
        state: Arc::default(),
        ready: VecDeque::from([Bytes::from_static(b"retry: 2000\n\n")]),
        is_over: false,
    };
    let body = Body::from_stream(futures::stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    }));
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// The share of the token. Guesses are slowed down like those of the gateway's token.
async fn share_of(
    gateway: &Gateway,
    token: &str,
    address: Option<Extension<ClientAddress>>,
) -> Result<Share, Box<Response>> {
    if let Some(share) = gateway.shares.find(token) {
        return Ok(share);
    }
    if let Some(Extension(address)) = address {
        let now = Instant::now();
        if let Some(wait) = gateway.wrong_tokens.locked_out(address, now) {
            let mut response = html(StatusCode::TOO_MANY_REQUESTS, REFUSED);
            let seconds = HeaderValue::from(wait.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
            return Err(Box::new(response));
        }
        sleep(gateway.wrong_tokens.count(address, now)).await;
    }
    Err(Box::new(html(StatusCode::FORBIDDEN, REFUSED)))
}

/// A page with a policy that allows its own script and styles, and nothing from elsewhere.
fn html(status: StatusCode, page: &str) -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = (status, page.replace("NONCE", &nonce)).into_response();
    let headers: &mut HeaderMap = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("x-robots-tag", HeaderValue::from_static("noindex, nofollow"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response.extensions_mut().insert(OwnBody);
    response
}

/// The events of one viewer.
struct Viewer {
    gateway: Arc<Gateway>,
    share: Share,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    revocations: watch::Receiver<u64>,
    /// The versions of the cells that were sent.
    sent: HashMap<Arc<str>, u64>,
    order: Vec<Arc<str>>,
    state: Arc<str>,
    ready: VecDeque<Bytes>,
    is_over: bool,
    _page: Arc<Page>,
    _viewer: OwnedSemaphorePermit,
}

impl Viewer {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.gateway.shares.is_valid(self.share.id) {
                return (!std::mem::replace(&mut self.is_over, true)).then(|| event("end", r#"{"reason":"link"}"#));
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            let expires = (self.share.expires - chrono::Utc::now()).to_std().unwrap_or_default();
            let gateway = self.gateway.clone();
            tokio::select! {
                biased;
                // The page connects to the next gateway.
                () = gateway.closing() => return None,
                _ = self.revocations.changed() => {}
                () = sleep(expires) => {}
                changed = timeout(KEEP_ALIVE, self.snapshot.changed()) => match changed {
                    Err(_) => return Some(Bytes::from_static(b": keep-alive\n\n")),
                    Ok(Err(_)) if self.snapshot.borrow().has_ended => {}
                    // The page connects again and reads the log from the start.
                    Ok(Err(_)) => return None,
                    Ok(Ok(())) => self.take_changes(),
                },
            }
        }
    }

    fn take_changes(&mut self) {
        let snapshot = self.snapshot.borrow_and_update().clone();
        if snapshot.state != self.state {
            self.state = snapshot.state.clone();
            let path = &self.share.path;
            let expires = timestamp(self.share.expires);
            let facts = json!({"path": path, "expires": expires}).to_string();
            // Both are objects.
            let (facts, state) = (&facts[..facts.len() - 1], snapshot.state.get(1..).unwrap_or("}"));
            self.ready.push_back(event("state", &format!("{facts},{state}")));
        }
        let order: Vec<Arc<str>> = snapshot.cells.iter().map(|cell| cell.id.clone()).collect();
        if order != self.order {
            self.ready.push_back(event(
                "order",
                &json!(order.iter().map(|id| &**id).collect::<Vec<_>>()).to_string(),
            ));
            self.sent.retain(|id, _| order.contains(id));
            self.order = order;
        }
        for cell in &snapshot.cells {
            if self.sent.insert(cell.id.clone(), cell.version) != Some(cell.version) {
                self.ready.push_back(event("cell", &cell.json));
            }
        }
        if snapshot.has_ended {
            self.ready.push_back(event("end", r#"{"reason":"kernel"}"#));
            self.is_over = true;
        }
    }
}

/// An event. JSON without whitespace has no line breaks.
fn event(name: &str, json: &str) -> Bytes {
    format!("event: {name}\ndata: {json}\n\n").into()
}
