//! `/api/kernels`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jupyter_protocol::KernelId;
use kernel_manager::{Kernel, RestartError};
use kernel_provider::{LaunchError, ProviderError};
use serde::Deserialize;
use tokio::time::timeout;
use tracing::debug;
use utoipa::IntoParams;

use crate::Gateway;
use crate::authorization::{Use, may_use_kernel};
use crate::error::ApiError;
use crate::identity::{Caller, Identity};
use crate::limits::JsonObject;
use crate::model::KernelModel;
use crate::start::{self, NewKernel};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct KernelPath {
    /// The kernel's id.
    #[param(format = Uuid)]
    pub(crate) id: String,
}

pub(super) fn find(gateway: &Gateway, id: &str) -> Result<Arc<Kernel>, ApiError> {
    id.parse::<KernelId>()
        .ok()
        .and_then(|id| gateway.manager.get(id))
        .ok_or_else(|| not_found(id))
}

pub(crate) fn not_found(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    ApiError::not_found(format!("Kernel does not exist: {shown}"))
}

/// 403 if kernels, sessions and logs may not be listed.
pub(super) fn may_list(gateway: &Gateway) -> Result<(), ApiError> {
    if gateway.options().list_kernels {
        Ok(())
    } else {
        Err(ApiError::forbidden("listing is disabled; ask for a kernel by its id"))
    }
}

/// The running kernels that the caller may see, oldest first.
pub(super) fn visible_kernels(gateway: &Gateway, caller: &Arc<Identity>) -> Vec<Arc<Kernel>> {
    let mut kernels = gateway.manager.list();
    kernels.retain(|kernel| may_use_kernel(gateway, caller, kernel, Use::See));
    kernels
}

/// The running kernels that the client may see, oldest first.
#[utoipa::path(
    get, path = "/api/kernels", tag = "kernels", operation_id = "list_kernels",
    responses(
        (status = 200, description = "All kernels", body = Vec<KernelModel>),
        (status = 403, description = "Kernels may not be listed"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
) -> Result<Json<Vec<KernelModel>>, ApiError> {
    may_list(&gateway)?;
    let kernels = visible_kernels(&gateway, &caller);
    let models = kernels.iter().map(|kernel| KernelModel::new(&gateway, kernel));
    Ok(Json(models.collect()))
}

/// How long measuring a kernel may take.
const USAGE_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct KernelQuery {
    /// Whether to measure the resources that the kernel uses.
    #[param(nullable = false)]
    #[serde(default)]
    usage: bool,
}

/// One kernel.
#[utoipa::path(
    get, path = "/api/kernels/{id}", tag = "kernels", operation_id = "get_kernel", params(KernelPath, KernelQuery),
    responses(
        (status = 200, description = "The kernel", body = KernelModel),
        (status = 400, description = "The query is malformed"),
        (status = 404, description = "There is no such kernel"),
    ),
)]
pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
    Query(KernelQuery { usage }): Query<KernelQuery>,
) -> Result<Json<KernelModel>, ApiError> {
    let kernel = find(&gateway, &id)?;
    let model = KernelModel::new(&gateway, &kernel);
    if !usage {
        return Ok(Json(model));
    }
    let usage = match timeout(USAGE_DEADLINE, kernel.handle().usage()).await {
        Ok(Ok(usage)) => usage,
        Ok(Err(error)) => {
            debug!(%error, "a kernel cannot be measured");
            None
        }
        Err(_) => None,
    };
    Ok(Json(model.with_usage(usage)))
}

/// Starts a kernel.
#[utoipa::path(
    post, path = "/api/kernels", tag = "kernels", operation_id = "start_kernel", request_body = Option<NewKernel>,
    responses(
        (status = 201, description = "The kernel; it has answered its first request", body = KernelModel,
         headers(("Location" = String, description = "The kernel's address"))),
        (status = 400, description = "The request is malformed, or there is no such kernelspec"),
        (status = 403, description = "The client may not start kernels or act for this user, the user may not use the \
         kernelspec, or there are too many kernels"),
        (status = 408, description = "The body did not arrive in time"),
        (status = 409, description = "A kernel with this id exists already, or its log belongs to another user"),
        (status = 413, description = "The body is too large"),
        (status = 500, description = "The kernel could not be started; the message has the cause and its last output"),
        (status = 503, description = "The gateway is shutting down, or there is no room for a kernel"),
        (status = 504, description = "The kernel did not answer in time"),
    ),
)]
pub(super) async fn start(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let kernel = start::start(&gateway, &caller, body.read()?)
        .await
        .map_err(|no_kernel| no_kernel.into_api_error(StatusCode::BAD_REQUEST))?;
    let location = format!("{}/api/kernels/{}", gateway.options().base_url.prefix(), kernel.id());
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(KernelModel::new(&gateway, &kernel)),
    )
        .into_response())
}

/// Runs to completion even if the client disconnects: half a restart would leave no kernel.
async fn run_to_completion<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, ApiError> {
    tokio::spawn(work).await.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed; its log has the cause",
        )
    })
}

/// Ends a kernel.
#[utoipa::path(
    delete, path = "/api/kernels/{id}", tag = "kernels", operation_id = "end_kernel", params(KernelPath),
    responses(
        (status = 204, description = "The kernel has ended"),
        (status = 404, description = "There is no such kernel"),
        (status = 500, description = "The kernel could not be ended"),
    ),
)]
pub(super) async fn end(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
) -> Result<StatusCode, ApiError> {
    let kernel = find(&gateway, &id)?;
    shut_down(kernel).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shuts a kernel down.
pub(super) async fn shut_down(kernel: Arc<Kernel>) -> Result<(), ApiError> {
    run_to_completion(async move { kernel.shutdown().await })
        .await?
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Interrupts the code that a kernel runs.
#[utoipa::path(
    post, path = "/api/kernels/{id}/interrupt", tag = "kernels", operation_id = "interrupt_kernel", params(KernelPath),
    responses(
        (status = 204, description = "The kernel was interrupted"),
        (status = 404, description = "There is no such kernel"),
        (status = 409, description = "The kernel is dead"),
        (status = 500, description = "The kernel could not be reached"),
    ),
)]
pub(super) async fn interrupt(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
) -> Result<StatusCode, ApiError> {
    let kernel = find(&gateway, &id)?;
    match run_to_completion(async move { kernel.interrupt().await }).await? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(failed(&id, &error)),
    }
}

/// Restarts a kernel under the same id; its clients stay connected.
#[utoipa::path(
    post, path = "/api/kernels/{id}/restart", tag = "kernels", operation_id = "restart_kernel", params(KernelPath),
    responses(
        (status = 200, description = "The kernel; it has answered its first request", body = KernelModel),
        (status = 404, description = "There is no such kernel"),
        (status = 409, description = "Its process or pod is gone; try again"),
        (status = 500, description = "The kernel could not be started; the message has the cause and its last output"),
        (status = 503, description = "The gateway is shutting down, or there is no room for a kernel"),
        (status = 504, description = "The kernel did not answer in time"),
        (status = 507, description = "Its log has no room; the kernel keeps running"),
    ),
)]
pub(super) async fn restart(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
    Path(KernelPath { id }): Path<KernelPath>,
) -> Result<Json<KernelModel>, ApiError> {
    let kernel = find(&gateway, &id)?;
    let restarting = kernel.clone();
    match run_to_completion(async move { restarting.restart().await }).await? {
        Ok(()) => Ok(Json(KernelModel::new(&gateway, &kernel))),
        Err(error) if may_use_kernel(&gateway, &caller, &kernel, Use::Read) => Err(failed(&id, &error)),
        // The error may have the kernel's last output.
        Err(error) => {
            Err(failed(&id, &error).with_message("the kernel was not restarted; its owner can see the cause"))
        }
    }
}

fn failed(id: &str, error: &RestartError) -> ApiError {
    let status = match error {
        // It was shut down after it was found.
        RestartError::ShutDown => return not_found(id),
        // It is dead; a restart may revive it.
        RestartError::Provider(ProviderError::Gone(_)) => StatusCode::CONFLICT,
        RestartError::Log(_) => StatusCode::INSUFFICIENT_STORAGE,
        RestartError::NoAnswer(_) | RestartError::Launch(LaunchError::TimedOut { .. }) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}
