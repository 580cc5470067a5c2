//! `/api/logs`: the logs of running and past kernels.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jupyter_protocol::KernelId;
use kernel_log::RemoveError;
use serde_json::{Value, json};

use super::kernels::may_list;
use crate::Gateway;
use crate::error::ApiError;
use crate::model::timestamp;

/// The logs, most recently written first.
pub(super) async fn list(State(gateway): State<Arc<Gateway>>) -> Result<Json<Vec<Value>>, ApiError> {
    may_list(&gateway)?;
    let mut running: BTreeMap<KernelId, String> = BTreeMap::new();
    for kernel in gateway.manager.list() {
        running.insert(kernel.id(), kernel.spec_name().to_owned());
    }
    let mut logs = gateway.manager.logs().list().await?;
    logs.sort_by_key(|log| std::cmp::Reverse(log.updated));
    Ok(Json(
        logs.iter()
            .map(|log| {
                json!({
                    "kernel_id": log.id,
                    "name": running.get(&log.id),
                    "running": running.contains_key(&log.id),
                    "epoch": log.epoch,
                    "earliest": log.first,
                    "head": log.last,
                    "bytes": log.bytes,
                    "created": timestamp(log.created),
                    "updated": timestamp(log.updated),
                })
            })
            .collect(),
    ))
}

/// Removes the log of a past kernel.
pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let no_log = || ApiError::not_found(format!("there is no log of kernel {id}"));
    let kernel: KernelId = id.parse().map_err(|_| no_log())?;
    let logs = gateway.manager.logs();
    // A damaged log cannot be opened but can be removed.
    if gateway.manager.get(kernel).is_none() && matches!(logs.find(kernel).await, Ok(None)) {
        return Err(no_log());
    }
    match logs.remove(kernel).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error @ RemoveError::Open(_)) => Err(ApiError::new(StatusCode::CONFLICT, error.to_string())),
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
