//! `/api/kernels`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jupyter_protocol::KernelId;
use kernel_manager::{Kernel, RestartError};
use kernel_provider::{LaunchError, ProviderError};
use serde_json::Value;

use crate::Gateway;
use crate::error::ApiError;
use crate::limits::{JsonObject, text};
use crate::{model, start};

pub(super) fn find(gateway: &Gateway, id: &str) -> Result<Arc<Kernel>, ApiError> {
    id.parse::<KernelId>()
        .ok()
        .and_then(|id| gateway.manager.get(id))
        .ok_or_else(|| not_found(id))
}

pub(super) fn not_found(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    ApiError::not_found(format!("Kernel does not exist: {shown}"))
}

/// 403 if kernels, sessions and logs may not be listed.
pub(super) fn may_list(gateway: &Gateway) -> Result<(), ApiError> {
    if gateway.options.list_kernels {
        Ok(())
    } else {
        Err(ApiError::forbidden("listing is disabled; ask for a kernel by its id"))
    }
}

pub(super) async fn list(State(gateway): State<Arc<Gateway>>) -> Result<Json<Vec<Value>>, ApiError> {
    may_list(&gateway)?;
    let kernels = gateway.manager.list();
    Ok(Json(kernels.iter().map(|kernel| model::kernel(kernel)).collect()))
}

pub(super) async fn one(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(model::kernel(&*find(&gateway, &id)?)))
}

pub(super) async fn start(
    State(gateway): State<Arc<Gateway>>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let path = text(&body, "path")?;
    let kernel = start::start(&gateway, &body, path)
        .await
        .map_err(|no_kernel| no_kernel.into_api_error(StatusCode::BAD_REQUEST))?;
    let location = format!("{}/api/kernels/{}", gateway.options.base_url.prefix(), kernel.id());
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(model::kernel(&kernel)),
    )
        .into_response())
}

/// Runs to completion even if the client disconnects: half a restart would leave no kernel.
async fn run_to_completion<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, ApiError> {
    tokio::spawn(work).await.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed; its log says more",
        )
    })
}

pub(super) async fn end(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
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

pub(super) async fn interrupt(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let kernel = find(&gateway, &id)?;
    match run_to_completion(async move { kernel.interrupt().await }).await? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(failed(&id, &error)),
    }
}

pub(super) async fn restart(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let kernel = find(&gateway, &id)?;
    let restarting = kernel.clone();
    match run_to_completion(async move { restarting.restart().await }).await? {
        Ok(()) => Ok(Json(model::kernel(&kernel))),
        Err(error) => Err(failed(&id, &error)),
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
