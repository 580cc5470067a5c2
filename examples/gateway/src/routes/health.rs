//! `GET /healthz`: whether the gateway accepts requests. Probes need no token.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::Gateway;
use crate::error::ApiError;

/// 503 once the gateway is shutting down. A full disk or an unreachable cluster does not count: kernels and their
/// output continue, so a restart would not help.
pub(super) async fn health(State(gateway): State<Arc<Gateway>>) -> Result<&'static str, ApiError> {
    if *gateway.closing.borrow() {
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the gateway is shutting down",
        ));
    }
    Ok("ok\n")
}
