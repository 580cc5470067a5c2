//! `GET /api/status`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::Gateway;
use crate::model::timestamp;

/// Start time, last activity, and the numbers of kernels and connections.
pub(super) async fn status(State(gateway): State<Arc<Gateway>>) -> Json<Value> {
    let kernels = gateway.manager.list();
    let connections: usize = kernels.iter().map(|kernel| *kernel.connections().borrow()).sum();
    let newest = kernels.iter().map(|kernel| kernel.last_activity()).max();
    Json(json!({
        "started": timestamp(gateway.started),
        "last_activity": timestamp(gateway.last_activity(newest)),
        "kernels": kernels.len(),
        "connections": connections,
    }))
}
