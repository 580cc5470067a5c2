//! `GET /api`.

use axum::Json;
use serde_json::{Value, json};

/// The gateway's version, under both names that clients use.
pub(super) async fn version() -> Json<Value> {
    let version = env!("CARGO_PKG_VERSION");
    Json(json!({"version": version, "gateway_version": version}))
}
