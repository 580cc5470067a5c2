//! `GET /api`.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    version: &'static str,
    gateway_version: &'static str,
}

/// The gateway's version, under both names that clients use.
#[utoipa::path(
    get, path = "/api", tag = "api", operation_id = "version",
    responses((status = 200, description = "The version", body = Version)),
)]
pub(super) async fn version() -> Json<Version> {
    let version = env!("CARGO_PKG_VERSION");
    Json(Version {
        version,
        gateway_version: version,
    })
}
