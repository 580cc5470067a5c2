//! `/api/kernelspecs`, and kernelspec resources under `/kernelspecs`.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jupyter_protocol::{InstalledKernelspec, Kernelspec};
use kernel_manager::StartError;
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::Object;
use utoipa::{IntoParams, ToSchema};

use crate::Gateway;
use crate::error::ApiError;
use crate::identity::Caller;
use crate::identity::Identity;
use crate::model::one_of;
use crate::users::KernelUser;

/// Largest resource in bytes.
const MAX_RESOURCE: u64 = 16 << 20;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UserQuery {
    /// Only kernelspecs that this user may use. A client that may not act for others can name only itself.
    #[param(nullable = false)]
    user: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct KernelspecPath {
    /// The kernelspec's name.
    name: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ResourcePath {
    /// The kernelspec's name.
    name: String,
    /// The file, below the kernelspec's folder.
    path: String,
}

/// The kernelspecs that can be started.
#[derive(Serialize, ToSchema)]
#[schema(as = Kernelspecs)]
pub(super) struct KernelspecsModel {
    /// The kernelspec of starts without a name.
    default: String,
    kernelspecs: BTreeMap<String, KernelspecModel>,
    /// Errors of kernelspecs that cannot be used, by name; absent if there are none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    broken: BTreeMap<String, String>,
}

/// A kernelspec.
#[derive(Serialize, ToSchema)]
#[schema(as = Kernelspec)]
pub(super) struct KernelspecModel {
    name: String,
    #[schema(value_type = KernelspecFile)]
    spec: Kernelspec,
    /// The addresses of its files: kernel.js, kernel.css, and each logo-* under its name without the extension.
    resources: BTreeMap<String, String>,
}

impl KernelspecModel {
    /// Blocks on the file system.
    fn new(spec: InstalledKernelspec, base_url: &str) -> Self {
        let resources = spec.resource_urls(base_url);
        let InstalledKernelspec { name, spec, .. } = spec;
        Self { name, spec, resources }
    }
}

/// The content of a kernel.json.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of `jupyter_protocol::Kernelspec`, which has none")]
struct KernelspecFile {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    display_name: String,
    language: String,
    #[schema(schema_with = interrupt_mode)]
    interrupt_mode: String,
    #[schema(value_type = Object)]
    metadata: (),
    kernel_protocol_version: String,
}

fn interrupt_mode() -> Object {
    one_of(["signal", "message"])
}

/// Runs work that blocks on the file system.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed; its log has the cause",
        )
    })
}

fn not_found(name: &str) -> ApiError {
    let shown: String = name.chars().take(64).collect();
    ApiError::not_found(format!("Kernel spec {shown} not found"))
}

/// The kernelspec and its name, if the user may use it.
fn find(gateway: &Gateway, name: &str, user: &KernelUser) -> Result<InstalledKernelspec, ApiError> {
    let (name, mut spec) = gateway.manager.find_spec(name).map_err(|error| match error {
        StartError::BrokenSpec { .. } => ApiError::not_found(error.to_string()),
        _ => not_found(name),
    })?;
    if !user.may_use(&name, &spec) {
        return Err(user.refusal(&name));
    }
    spec.name = name;
    Ok(spec)
}

/// The user that the request is for, if it names the user `claimed`.
fn user_of(gateway: &Gateway, caller: &Identity, claimed: Option<String>) -> Result<KernelUser, ApiError> {
    let name = caller.acting_for(claimed)?;
    Ok(KernelUser::new(gateway.options(), caller, name))
}

async fn model(gateway: &Gateway, spec: InstalledKernelspec) -> Result<Json<KernelspecModel>, ApiError> {
    let prefix = gateway.options().base_url.prefix().to_owned();
    Ok(Json(blocking(move || KernelspecModel::new(spec, &prefix)).await?))
}

/// The kernelspecs that the user may use.
#[utoipa::path(
    get, path = "/api/kernelspecs", tag = "kernelspecs", operation_id = "list_kernelspecs", params(UserQuery),
    responses(
        (status = 200, description = "All kernelspecs, and the name of the default one", body = KernelspecsModel),
        (status = 403, description = "The user may not use the kernelspec, or the client may not act for the user"),
        (status = 404, description = "There is no such kernelspec"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
    Query(UserQuery { user }): Query<UserQuery>,
) -> Result<Response, ApiError> {
    let user = user.filter(|user| !user.is_empty());
    // With `KERNEL_USERNAME`, jupyter_server requests a single kernelspec here, by appending its name to the user's:
    // `?user=bob/python3`.
    if let Some((user, name)) = user.as_deref().and_then(|user| user.split_once('/')) {
        let user = user_of(&gateway, &caller, Some(user.to_owned()))?;
        return Ok(model(&gateway, find(&gateway, name, &user)?).await?.into_response());
    }
    let user = user_of(&gateway, &caller, user)?;
    let specs = gateway.manager.specs();
    let prefix = gateway.options().base_url.prefix().to_owned();
    let kernelspecs = blocking(move || {
        specs
            .into_iter()
            .filter(|(name, spec)| user.may_use(name, spec))
            .map(|(name, mut spec)| {
                name.clone_into(&mut spec.name);
                (name, KernelspecModel::new(spec, &prefix))
            })
            .collect()
    })
    .await?;
    let body = KernelspecsModel {
        default: gateway.manager.default_spec().unwrap_or_default(),
        kernelspecs,
        broken: gateway.manager.broken_specs(),
    };
    Ok(Json(body).into_response())
}

/// One kernelspec.
#[utoipa::path(
    get, path = "/api/kernelspecs/{name}", tag = "kernelspecs", operation_id = "get_kernelspec",
    params(KernelspecPath, UserQuery),
    responses(
        (status = 200, description = "The kernelspec", body = KernelspecModel),
        (status = 403, description = "The user may not use the kernelspec"),
        (status = 404, description = "There is no such kernelspec"),
    ),
)]
pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelspecPath { name }): Path<KernelspecPath>,
    Extension(caller): Caller,
    Query(UserQuery { user }): Query<UserQuery>,
) -> Result<Json<KernelspecModel>, ApiError> {
    let user = user_of(&gateway, &caller, user)?;
    model(&gateway, find(&gateway, &name, &user)?).await
}

/// A file of a kernelspec, such as its logo.
#[utoipa::path(
    get, path = "/kernelspecs/{name}/{*path}", tag = "kernelspecs", operation_id = "get_kernelspec_resource",
    params(ResourcePath),
    responses(
        (status = 200, description = "The file", content(
            ("image/png"), ("image/svg+xml"), ("text/javascript"), ("text/css"), ("application/octet-stream"),
        )),
        (status = 403, description = "The user may not use the kernelspec"),
        (status = 404, description = "There is no such kernelspec or file"),
    ),
)]
pub(super) async fn resource(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
    Path(ResourcePath { name, path }): Path<ResourcePath>,
) -> Result<Response, ApiError> {
    let user = KernelUser::new(gateway.options(), &caller, caller.name.clone());
    let spec = find(&gateway, &name, &user)?;
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
