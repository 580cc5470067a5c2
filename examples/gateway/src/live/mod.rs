//! `/live/{token}`: a read-only page of a kernel's cells, for anyone with the link.
//!
//! The page needs no token of the gateway, and gives access to nothing else. Its Content-Security-Policy allows only the
//! page's own script. The kernel's texts are inserted as text, and HTML outputs are in frames that run no scripts.

mod cells;
mod pages;
mod viewer;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use tracing::warn;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::Gateway;
use crate::error::OwnBody;
use crate::shares::Share;
use crate::trusted_header::PeerAddress;
use crate::wrong_tokens::ClientAddress;
use pages::Pages;
use viewer::{Viewer, event};

/// The page; `NONCE` stands for the nonce of its policy.
const PAGE: &str = include_str!("page.html");
const REFUSED: &str = include_str!("refused.html");
/// The most viewers of all pages at a time.
const MAX_VIEWERS: usize = 256;
/// The most viewers of one share, so that one link cannot use up [`MAX_VIEWERS`].
const MAX_VIEWERS_OF_SHARE: usize = 32;

/// The viewed pages.
pub(crate) struct Live {
    pages: Pages,
    viewers: Arc<Semaphore>,
    by_share: Mutex<HashMap<Uuid, Weak<Semaphore>>>,
}

impl Live {
    /// Returns the semaphore that limits the viewers of a share. It is dropped with the last viewer.
    fn viewers_of(&self, share: Uuid) -> Arc<Semaphore> {
        let mut by_share = kernel_provider::lock(&self.by_share);
        by_share.retain(|_, places| places.strong_count() > 0);
        if let Some(places) = by_share.get(&share).and_then(Weak::upgrade) {
            return places;
        }
        let places = Arc::new(Semaphore::new(MAX_VIEWERS_OF_SHARE));
        by_share.insert(share, Arc::downgrade(&places));
        places
    }
}

impl Default for Live {
    fn default() -> Self {
        Self {
            pages: Pages::default(),
            viewers: Arc::new(Semaphore::new(MAX_VIEWERS)),
            by_share: Mutex::default(),
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
        (status = 404, description = "Shares are turned off", body = String, content_type = "text/html"),
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
        (status = 404, description = "Shares are turned off", body = String, content_type = "text/html"),
        (status = 429, description = "Too many wrong links came from the client's address", body = String,
         content_type = "text/html"),
        (status = 503, description = "There are too many viewers, or the log cannot be read now", body = String,
         content_type = "text/html"),
    ),
)]
pub(crate) async fn events(
    State(gateway): State<Arc<Gateway>>,
    Path(LivePath { token }): Path<LivePath>,
    address: Option<Extension<ClientAddress>>,
    peer: Option<Extension<PeerAddress>>,
) -> Response {
    let share = match share_of(&gateway, &token, address).await {
        Ok(share) => share,
        Err(refusal) => return *refusal,
    };
    let of_share = gateway.live.viewers_of(share.id).try_acquire_owned();
    let (Ok(viewer), Ok(of_share)) = (gateway.live.viewers.clone().try_acquire_owned(), of_share) else {
        return html(StatusCode::SERVICE_UNAVAILABLE, REFUSED);
    };
    let id = share.kernel.id;
    let kernel = gateway.manager.get(id);
    let executions = match &kernel {
        Some(kernel) => Ok(Some(kernel.executions())),
        None => gateway.manager.past_executions(id).await,
    };
    let executions = match executions {
        Ok(Some(executions)) if executions.log().epoch() == share.kernel.epoch => executions,
        Ok(Some(_)) => return html(StatusCode::FORBIDDEN, REFUSED),
        Ok(None) if gateway.manager.may_run(id) => return html(StatusCode::SERVICE_UNAVAILABLE, REFUSED),
        Ok(None) => {
            gateway.shares.forget(id).await;
            return event_stream(Body::from(event("end", r#"{"reason":"log"}"#)));
        }
        Err(error) => {
            warn!(kernel_id = %id, %error, "a shared page cannot be read");
            return html(StatusCode::SERVICE_UNAVAILABLE, REFUSED);
        }
    };
    let Some(page) = gateway.live.pages.get(&gateway, &share.kernel, kernel, executions) else {
        return html(StatusCode::SERVICE_UNAVAILABLE, REFUSED);
    };
    if let Some(audit) = &gateway.options().audit {
        audit.view(&share, peer.map(|Extension(PeerAddress(peer))| peer)).await;
    }
    let (sender, mut events) = mpsc::channel(1);
    tokio::spawn(Viewer::new(gateway, share, page, [viewer, of_share]).run(sender));
    event_stream(Body::from_stream(futures::stream::poll_fn(move |context| {
        events.poll_recv(context).map(|event| event.map(Ok::<_, Infallible>))
    })))
}

fn event_stream(body: Body) -> Response {
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
    if !gateway.options().allow_shares {
        return Err(Box::new(html(StatusCode::NOT_FOUND, REFUSED)));
    }
    // Another kernel may have started with the id of a shared one.
    let is_same = |share: &Share| {
        let kernel = gateway.manager.get(share.kernel.id);
        kernel.is_none_or(|kernel| share.kernel.is(&kernel))
    };
    if let Some(share) = gateway.shares.find(token).filter(is_same) {
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
