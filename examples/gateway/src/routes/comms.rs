//! `/api/kernels/{id}/comms`: the open comms of a kernel, such as its widgets.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kernel_manager::Comm;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::executions::unreadable;
use super::kernels::{KernelPath, find};
use crate::Gateway;
use crate::error::ApiError;

/// The open comms.
#[derive(Serialize, ToSchema)]
#[schema(as = Comms)]
pub(super) struct CommsModel {
    /// Each after the comms that its state refers to.
    comms: Vec<CommModel>,
}

/// An open comm.
#[derive(Serialize, ToSchema)]
#[schema(as = Comm)]
struct CommModel {
    comm_id: String,
    /// The name of its target, such as jupyter.widget.
    target_name: String,
    /// The data of a comm_open that recreates it: state and buffer_paths for a widget.
    #[schema(value_type = Object)]
    data: Map<String, Value>,
    /// The metadata of its comm_open.
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// The binary parts of the state in Base64, in the order of buffer_paths.
    buffers: Vec<String>,
}

impl From<Comm> for CommModel {
    fn from(comm: Comm) -> Self {
        let buffers = comm.buffers.iter().map(|buffer| BASE64_STANDARD.encode(buffer));
        Self {
            buffers: buffers.collect(),
            comm_id: comm.comm_id,
            target_name: comm.target_name,
            data: comm.data,
            metadata: comm.metadata,
        }
    }
}

/// The open comms of a kernel with their current state, also while the kernel is busy.
#[utoipa::path(
    get, path = "/api/kernels/{id}/comms", tag = "kernels", operation_id = "list_comms", params(KernelPath),
    responses(
        (status = 200, description = "The comms", body = CommsModel),
        (status = 404, description = "There is no such kernel"),
        (status = 500, description = "The log cannot be read"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
) -> Result<Response, ApiError> {
    let comms = find(&gateway, &id)?.comms().await.map_err(unreadable)?;
    // Serializing megabytes of state occupies a processor, so the limits apply.
    let response = gateway.output_limits.run(move || {
        let comms = comms.into_iter().map(CommModel::from).collect();
        Json(CommsModel { comms }).into_response()
    });
    let response = response.await;
    response.map_err(|error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the comms cannot be listed: {error}"),
        )
    })
}
