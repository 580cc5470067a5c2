//! `GET /api/status`.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::kernels::visible_kernels;
use crate::Gateway;
use crate::authorization::{Action, allows_without_kernel};
use crate::identity::Caller;
use crate::model::timestamp;

#[derive(Serialize, ToSchema)]
pub(super) struct Status {
    #[schema(format = DateTime)]
    started: String,
    /// The latest activity of any of the kernels.
    #[schema(format = DateTime)]
    last_activity: String,
    kernels: usize,
    connections: usize,
}

/// Start time, and the last activity, number and connections of the kernels that the client may see.
#[utoipa::path(
    get, path = "/api/status", tag = "api", operation_id = "status",
    responses((status = 200, description = "The status", body = Status)),
)]
pub(super) async fn status(State(gateway): State<Arc<Gateway>>, Extension(caller): Caller) -> Json<Status> {
    let kernels = visible_kernels(&gateway, &caller);
    let newest = kernels.iter().map(|kernel| kernel.last_activity()).max();
    let last_activity = if allows_without_kernel(caller.role, Action::Measure) {
        gateway.last_activity(newest)
    } else {
        newest.unwrap_or(gateway.started)
    };
    Json(Status {
        started: timestamp(gateway.started),
        last_activity: timestamp(last_activity),
        kernels: kernels.len(),
        connections: kernels.iter().map(|kernel| *kernel.connections().borrow()).sum(),
    })
}
