//! `/api/kernels`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::SecondsFormat;
use kernel_provider::KernelId;
use kernel_provider::manager::{Kernel, StartError, StartRequest};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::{Gateway, environment};

#[derive(Default, Deserialize)]
struct StartBody {
    name: Option<String>,
    kernel_id: Option<String>,
    env: Option<Map<String, Value>>,
}

fn model(kernel: &Kernel) -> Value {
    json!({
        "id": kernel.id(),
        "name": kernel.spec_name(),
        "last_activity": kernel.last_activity().to_rfc3339_opts(SecondsFormat::Micros, true),
        "execution_state": kernel.state().borrow().as_str(),
        "connections": *kernel.connections().borrow(),
    })
}

fn find(gateway: &Gateway, id: &str) -> Result<Arc<Kernel>, ApiError> {
    id.parse::<KernelId>()
        .ok()
        .and_then(|id| gateway.manager.get(id))
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("Kernel does not exist: {id}")))
}

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

pub(crate) async fn list(State(gateway): State<Arc<Gateway>>) -> Json<Vec<Value>> {
    Json(gateway.manager.list().iter().map(|kernel| model(kernel)).collect())
}

pub(crate) async fn one(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(model(&*find(&gateway, &id)?)))
}

pub(crate) async fn start(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Result<Response, ApiError> {
    let body: StartBody = if body.trim_ascii().is_empty() {
        StartBody::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is no such JSON: {error}")))?
    };
    let spec = body
        .name
        .filter(|name| !name.is_empty())
        .or_else(|| gateway.manager.default_spec());
    let mut request = StartRequest::new(spec.unwrap_or_default());
    environment::apply(&body.env.unwrap_or_default(), &mut request)?;
    if let Some(id) = body.kernel_id {
        let id = id.parse::<KernelId>();
        request.id = Some(id.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.to_string()))?);
    }
    let kernel = gateway.manager.start(request).await.map_err(|error| {
        let status = match &error {
            StartError::NoSuchSpec { .. } => StatusCode::NOT_FOUND,
            StartError::Duplicate(_) => StatusCode::CONFLICT,
            StartError::LimitReached { .. } => StatusCode::FORBIDDEN,
            StartError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    })?;
    let location = format!("/api/kernels/{}", kernel.id());
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(model(&kernel)),
    )
        .into_response())
}

pub(crate) async fn end(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    find(&gateway, &id)?.shutdown().await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn interrupt(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    find(&gateway, &id)?.interrupt().await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn restart(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let kernel = find(&gateway, &id)?;
    kernel.restart().await.map_err(failed)?;
    Ok(Json(model(&kernel)))
}
