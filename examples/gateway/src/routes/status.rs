//! `GET /api/status`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Gateway;
use crate::model::timestamp;

#[derive(Serialize, ToSchema)]
pub(super) struct Status {
    #[schema(format = DateTime)]
    started: String,
    /// The latest activity of any kernel.
    #[schema(format = DateTime)]
    last_activity: String,
    kernels: usize,
    connections: usize,
}

/// Start time, last activity, and the numbers of kernels and connections.
#[utoipa::path(
    get, path = "/api/status", tag = "api", operation_id = "status",
    responses((status = 200, description = "The status", body = Status)),
)]
pub(super) async fn status(State(gateway): State<Arc<Gateway>>) -> Json<Status> {
    let kernels = gateway.manager.list();
    let newest = kernels.iter().map(|kernel| kernel.last_activity()).max();
    Json(Status {
        started: timestamp(gateway.started),
        last_activity: timestamp(gateway.last_activity(newest)),
        kernels: kernels.len(),
        connections: kernels.iter().map(|kernel| *kernel.connections().borrow()).sum(),
    })
}
