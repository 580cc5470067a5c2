//! A Jupyter gateway: the REST API and the WebSockets that JupyterLab needs of its `JUPYTER_GATEWAY_URL`, over a
//! [`Manager`]'s kernels, as an axum router to embed.

mod auth;
mod environment;
mod error;
mod kernels;
mod kernelspecs;
mod websocket;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use kernel_provider::manager::Manager;
use serde_json::json;
use tokio::sync::watch;

use error::ApiError;

/// What the handlers share.
pub struct Gateway {
    manager: Manager,
    token: Option<String>,
    closing: watch::Sender<bool>,
}

impl Gateway {
    /// A gateway to the manager's kernels. Where `token` is `None` nobody is asked for one.
    #[must_use]
    pub fn new(manager: Manager, token: Option<String>) -> Self {
        Self {
            manager,
            token,
            closing: watch::Sender::new(false),
        }
    }

    /// Ends all WebSocket connections, now and from now on.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    async fn closing(&self) {
        // The sender is `self`, so waiting cannot fail.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }
}

/// The gateway's routes.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/api", get(version))
        .route("/api/kernelspecs", get(kernelspecs::list))
        .route("/api/kernelspecs/{name}", get(kernelspecs::one))
        .route("/kernelspecs/{name}/{*path}", get(kernelspecs::resource))
        .route("/api/kernels", get(kernels::list).post(kernels::start))
        .route("/api/kernels/{id}", get(kernels::one).delete(kernels::end))
        .route("/api/kernels/{id}/interrupt", post(kernels::interrupt))
        .route("/api/kernels/{id}/restart", post(kernels::restart))
        .route("/api/kernels/{id}/channels", get(websocket::channels))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(gateway.clone(), auth::require))
        .with_state(gateway)
}

async fn version() -> impl IntoResponse {
    let version = env!("CARGO_PKG_VERSION");
    Json(json!({"version": version, "gateway_version": version}))
}

async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "")
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "")
}
