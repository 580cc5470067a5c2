//! `GET /api`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Gateway;
use crate::model::{VERSION, features};

#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    version: &'static str,
    gateway_version: &'static str,
    /// Facts that other gateways do not report.
    #[schema(inline)]
    kernelmux: Kernelmux,
}

#[derive(Serialize, ToSchema)]
struct Kernelmux {
    /// Increases when a member changes incompatibly.
    version: u32,
    /// Names of features that other gateways do not have.
    features: Vec<&'static str>,
}

/// The gateway's version, under both names that clients use.
#[utoipa::path(
    get, path = "/api", tag = "api", operation_id = "version",
    responses((status = 200, description = "The version", body = Version)),
)]
pub(super) async fn version(State(gateway): State<Arc<Gateway>>) -> Json<Version> {
    let version = env!("CARGO_PKG_VERSION");
    Json(Version {
        version,
        gateway_version: version,
        kernelmux: Kernelmux {
            version: VERSION,
            features: features(&gateway.options()),
        },
    })
}
