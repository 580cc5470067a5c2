//! `GET /healthz`: whether the gateway accepts requests. Probes need no token.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::Gateway;
use crate::error::ApiError;

/// Whether the gateway accepts requests; for probes, which need no token.
///
/// A full disk or an unreachable cluster does not count: kernels and their output continue, so a restart would not
/// help.
#[utoipa::path(
    get, path = "/healthz", tag = "api", operation_id = "health",
    responses(
        (status = 200, description = "It accepts requests", body = String),
        (status = 503, description = "It is shutting down"),
    ),
)]
pub(super) async fn health(State(gateway): State<Arc<Gateway>>) -> Result<&'static str, ApiError> {
    if *gateway.closing.borrow() {
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the gateway is shutting down",
        ));
    }
    Ok("ok\n")
}
