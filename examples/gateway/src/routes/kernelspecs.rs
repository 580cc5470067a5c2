//! `/api/kernelspecs`, and kernelspec resources under `/kernelspecs`.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jupyter_protocol::InstalledKernelspec;
use kernel_manager::StartError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Gateway;
use crate::error::ApiError;
use crate::users::may_use;

/// Largest resource in bytes.
const MAX_RESOURCE: u64 = 16 << 20;

#[derive(Deserialize)]
pub(super) struct User {
    user: Option<String>,
}

/// Runs work that blocks on the file system.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed; its log says more",
        )
    })
}

fn not_found(name: &str) -> ApiError {
    let shown: String = name.chars().take(64).collect();
    ApiError::not_found(format!("Kernel spec {shown} not found"))
}

/// The kernelspec and its name, if this user may use it.
fn find(gateway: &Gateway, name: &str, user: Option<&str>) -> Result<InstalledKernelspec, ApiError> {
    let (name, mut spec) = gateway.manager.find_spec(name).map_err(|error| match error {
        StartError::BrokenSpec { .. } => ApiError::not_found(error.to_string()),
        _ => not_found(name),
    })?;
    if let Some(user) = user.filter(|user| !may_use(&spec, user)) {
        return Err(ApiError::forbidden(format!("{user} may not use the kernelspec {name}")));
    }
    spec.name = name;
    Ok(spec)
}

async fn model(gateway: &Gateway, spec: InstalledKernelspec) -> Result<Json<Value>, ApiError> {
    let prefix = gateway.options.base_url.prefix().to_owned();
    Ok(Json(blocking(move || spec.model(&prefix)).await?))
}

/// The kernelspecs that the user may use. With `KERNEL_USERNAME`, jupyter_server requests a single one here, by
/// appending its name to the user's: `?user=bob/python3`.
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Query(User { user }): Query<User>,
) -> Result<Json<Value>, ApiError> {
    let user = user.filter(|user| !user.is_empty());
    if let Some((user, name)) = user.as_deref().and_then(|user| user.split_once('/')) {
        return model(&gateway, find(&gateway, name, Some(user))?).await;
    }
    let specs = gateway.manager.specs();
    let prefix = gateway.options.base_url.prefix().to_owned();
    let models = blocking(move || {
        specs
            .into_iter()
            .filter(|(_, spec)| user.as_deref().is_none_or(|user| may_use(spec, user)))
            .map(|(name, mut spec)| {
                name.clone_into(&mut spec.name);
                (name, spec.model(&prefix))
            })
            .collect::<BTreeMap<_, _>>()
    })
    .await?;
    let default = gateway.manager.default_spec().unwrap_or_default();
    let mut body = json!({"default": default, "kernelspecs": models});
    let broken = gateway.manager.broken_specs();
    if !broken.is_empty() {
        body["broken"] = json!(broken);
    }
    Ok(Json(body))
}

pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Query(User { user }): Query<User>,
) -> Result<Json<Value>, ApiError> {
    model(&gateway, find(&gateway, &name, user.as_deref())?).await
}

pub(super) async fn resource(
    State(gateway): State<Arc<Gateway>>,
    Path((name, path)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let spec = find(&gateway, &name, None)?;
    let missing = || ApiError::not_found("the kernelspec has no such resource; its model lists those that it has");
    let (content_type, data) = blocking(move || {
        let file = spec.resource(&path).ok()?;
        if file.metadata().ok()?.len() > MAX_RESOURCE {
            return None;
        }
        Some((content_type(&file), std::fs::read(&file).ok()?))
    })
    .await?
    .ok_or_else(missing)?;
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "private, max-age=60"),
        // An SVG that is opened as a page must not run scripts in the gateway's origin.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        ),
    ];
    Ok((headers, data).into_response())
}

fn content_type(file: &FilePath) -> &'static str {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
