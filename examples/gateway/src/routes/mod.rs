//! The routes.

mod api;
mod description;
mod event_stream;
mod execution_outputs;
mod executions;
mod health;
mod kernels;
mod kernelspecs;
mod logs;
mod me;
mod metrics;
mod sessions;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post};

pub(crate) use self::execution_outputs::OutputLimits;
use crate::error::ApiError;
use crate::{Gateway, auth, base_url, cors, error, limits, request_log, unread_body, websocket};

pub(crate) fn router(gateway: Arc<Gateway>) -> Router {
    let routes = Router::new()
        .route("/api", get(api::version))
        .route("/api/kernelspecs", get(kernelspecs::list))
        .route("/api/kernelspecs/{name}", get(kernelspecs::one))
        .route("/kernelspecs/{name}/{*path}", get(kernelspecs::resource))
        .route("/api/kernels", get(kernels::list).post(kernels::start))
        .route("/api/kernels/{id}", get(kernels::one).delete(kernels::end))
        .route("/api/kernels/{id}/interrupt", post(kernels::interrupt))
        .route("/api/kernels/{id}/restart", post(kernels::restart))
        .route("/api/kernels/{id}/channels", get(websocket::channels))
        .route("/api/kernels/{id}/log", get(event_stream::events))
        .route(
            "/api/kernels/{id}/executions",
            get(executions::list).post(executions::start),
        )
        .route("/api/kernels/{id}/executions/{msg_id}", get(executions::one))
        .route("/api/logs", get(logs::list))
        .route("/api/logs/{id}", delete(logs::remove))
        .route("/api/sessions", get(sessions::list).post(sessions::create))
        .route(
            "/api/sessions/{id}",
            get(sessions::one).patch(sessions::change).delete(sessions::end),
        )
        .route("/api/status", get(status::status))
        .route("/api/me", get(me::me))
        .route("/api/spec.yaml", get(description::yaml))
        .route("/api/swagger.json", get(description::json))
        .route("/api/swagger.yaml", get(description::yaml))
        .route("/metrics", get(metrics::metrics));
    let routes = routes
        .fallback(not_found)
        .layer(from_fn_with_state(gateway.clone(), auth::guard))
        // Without authentication.
        .route("/healthz", get(health::health))
        .layer(from_fn(request_log::note_route))
        .with_state(gateway.clone());
    // Around all routes, to see responses that no handler makes, such as 405 with `Allow`. Requests pass the last layer
    // first.
    Router::new()
        .fallback_service(routes)
        .layer(from_fn_with_state(gateway.clone(), base_url::strip))
        .layer(from_fn_with_state(gateway.clone(), cors::options))
        .layer(from_fn(limits::check))
        .layer(from_fn(unread_body::discard))
        .layer(from_fn(error::as_json))
        .layer(from_fn(error::plain_answers))
        .layer(from_fn_with_state(gateway.clone(), cors::expose))
        .layer(from_fn_with_state(gateway, request_log::record))
}

async fn not_found() -> ApiError {
    ApiError::not_found("")
}
