//! `GET /healthz`: whether the gateway takes requests, for probes, which have no token.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::Gateway;
use crate::error::ApiError;

/// 503 from when it was asked to end. That it answers is otherwise all there is to know: neither a disk that is full nor
/// a cluster that is away is a reason to start it anew, for kernels and their output go on meanwhile.
pub(super) async fn health(State(gateway): State<Arc<Gateway>>) -> Result<&'static str, ApiError> {
    if *gateway.closing.borrow() {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway ends"));
    }
    Ok("ok\n")
}
