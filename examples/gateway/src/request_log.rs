//! Logs and counts requests.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{debug, info};

use crate::Gateway;

/// How many bytes of a path are logged.
const MAX_PATH: usize = 256;

/// Logs and counts the request, without its query, which may contain a token.
pub(crate) async fn record(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    // A URI is ASCII, so any byte is a character boundary.
    let path = request.uri().path();
    let path = without_link(&path[..path.len().min(MAX_PATH)]);
    let response = next.run(request).await;
    let status = response.status();
    let took = began.elapsed();
    let route = response.extensions().get::<MatchedPath>().map(|matched| {
        // `/api/kernels/:id` is easier to write in a query than `/api/kernels/{id}`.
        matched.as_str().replace("{*", ":").replace('{', ":").replace('}', "")
    });
    gateway
        .metrics
        .request(&method, route.as_deref().unwrap_or("none"), status, took);
    // Frequent polls are not logged.
    if method.is_safe() && status.is_success() {
        debug!(%method, path, status = status.as_u16(), ?took, "request");
    } else {
        info!(%method, path, status = status.as_u16(), ?took, "request");
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
