//! `/api/logs`: the logs of running and past kernels.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use jupyter_protocol::KernelId;
use kernel_log::{Epoch, RemoveError, Seq};
use kernel_manager::Kernel;
use serde::Serialize;
use utoipa::ToSchema;

use super::kernels::{KernelPath, may_list};
use crate::Gateway;
use crate::authorization::{Subject, Use, permission};
use crate::error::ApiError;
use crate::identity::Caller;
use crate::model::timestamp;

/// A kernel's log.
#[derive(Serialize, ToSchema)]
#[schema(as = Log)]
pub(super) struct LogModel {
    #[schema(value_type = Uuid)]
    kernel_id: KernelId,
    /// The name of the kernelspec; null after the kernel has ended.
    name: Option<String>,
    running: bool,
    #[schema(value_type = String)]
    epoch: Epoch,
    #[schema(value_type = u64)]
    earliest: Seq,
    #[schema(value_type = u64)]
    head: Seq,
    bytes: u64,
    #[schema(format = DateTime)]
    created: String,
    #[schema(format = DateTime)]
    updated: String,
}

/// The logs that the client may see, most recently written first.
#[utoipa::path(
    get, path = "/api/logs", tag = "logs", operation_id = "list_logs",
    responses(
        (status = 200, description = "All logs", body = Vec<LogModel>),
        (status = 403, description = "Logs may not be listed"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
) -> Result<Json<Vec<LogModel>>, ApiError> {
    may_list(&gateway)?;
    let running: BTreeMap<KernelId, Arc<Kernel>> = gateway
        .manager
        .list()
        .into_iter()
        .map(|kernel| (kernel.id(), kernel))
        .collect();
    let mut logs = gateway.manager.logs().list().await?;
    logs.retain(|log| {
        let kernel = running.get(&log.id).cloned();
        let subject = kernel.map_or_else(|| Subject::Log(log.clone()), Subject::Kernel);
        permission(&gateway, &caller, &subject, Use::See).is_some()
    });
    logs.sort_by_key(|log| std::cmp::Reverse(log.updated));
    Ok(Json(
        logs.iter()
            .map(|log| LogModel {
                kernel_id: log.id,
                name: running.get(&log.id).map(|kernel| kernel.spec_name().to_owned()),
                running: running.contains_key(&log.id),
                epoch: log.epoch,
                earliest: log.first,
                head: log.last,
                bytes: log.bytes,
                created: timestamp(log.created),
                updated: timestamp(log.updated),
            })
            .collect(),
    ))
}

/// Removes the log of a past kernel.
#[utoipa::path(
    delete, path = "/api/logs/{id}", tag = "logs", operation_id = "remove_log", params(KernelPath),
    responses(
        (status = 204, description = "The log is removed"),
        (status = 404, description = "There is no such log"),
        (status = 409, description = "The kernel runs, or its log is being read"),
    ),
)]
pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
) -> Result<StatusCode, ApiError> {
    let no_log = || ApiError::not_found(format!("there is no log of kernel {id}"));
    let kernel: KernelId = id.parse().map_err(|_| no_log())?;
    let logs = gateway.manager.logs();
    // A damaged log cannot be opened but can be removed.
    if gateway.manager.get(kernel).is_none() && matches!(logs.find(kernel).await, Ok(None)) {
        return Err(no_log());
    }
    match logs.remove(kernel).await {
        Ok(()) => {
            gateway.shares.forget(kernel).await;
            Ok(StatusCode::NO_CONTENT)
        }
        Err(error @ RemoveError::Open(_)) => Err(ApiError::new(StatusCode::CONFLICT, error.to_string())),
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
