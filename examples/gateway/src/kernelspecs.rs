//! `/api/kernelspecs` and `/kernelspecs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jupyter_protocol::InstalledKernelspec;
use jupyter_protocol::kernelspec::kernelspecs_model;
use serde::Deserialize;
use serde_json::Value;

use crate::Gateway;
use crate::error::ApiError;

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    user: Option<String>,
}

fn find(gateway: &Gateway, name: &str) -> Result<InstalledKernelspec, ApiError> {
    gateway
        .manager
        .specs()
        .remove(name)
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("Kernel spec does not exist: {name}")))
}

/// All of them; jupyter_server with a user name asks for `user=NAME/SPEC` where it means one.
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, ApiError> {
    if let Some((_, name)) = query.user.as_deref().and_then(|user| user.split_once('/')) {
        return Ok(Json(find(&gateway, name)?.model("")));
    }
    let default = gateway.manager.default_spec().unwrap_or_default();
    Ok(Json(kernelspecs_model(&default, gateway.manager.specs().values(), "")))
}

pub(crate) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(find(&gateway, &name)?.model("")))
}

pub(crate) async fn resource(
    State(gateway): State<Arc<Gateway>>,
    Path((name, path)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let missing = || ApiError::new(StatusCode::NOT_FOUND, format!("{name} has no resource {path}"));
    let file = find(&gateway, &name)?.resource(&path).map_err(|_| missing())?;
    let content_type = match file.extension().and_then(|extension| extension.to_str()) {
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        Some("js") => "text/javascript",
        Some("css") => "text/css",
        _ => "application/octet-stream",
    };
    let data = tokio::fs::read(file).await.map_err(|_| missing())?;
    Ok(([(header::CONTENT_TYPE, content_type)], data).into_response())
}
