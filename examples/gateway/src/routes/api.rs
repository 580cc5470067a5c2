//! `GET /api`.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::model::{FEATURES, VERSION};

#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    version: &'static str,
    gateway_version: &'static str,
    /// What only this gateway says; its presence tells this gateway from others.
    #[schema(inline)]
    kernelmux: Kernelmux,
}

#[derive(Serialize, ToSchema)]
struct Kernelmux {
    /// Changes only with an incompatible member.
    version: u32,
    /// Names of what this gateway can do beyond others.
    #[schema(value_type = Vec<String>)]
    features: &'static [&'static str],
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
        kernelmux: Kernelmux {
            version: VERSION,
            features: FEATURES,
        },
    })
}
