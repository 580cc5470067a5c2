//! `/api/sessions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jupyter_protocol::KernelId;
use kernel_manager::Kernel;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::kernels::{may_list, shut_down};
use crate::error::ApiError;
use crate::limits::{JsonObject, object, text};
use crate::sessions::{Change, NotAdded, Session};
use crate::{Gateway, model, start};

/// Longest path, name or type of a session, in bytes.
const MAX_TEXT: usize = 4_096;

/// The session with its kernel; `None` if the kernel has ended.
fn session_model(gateway: &Gateway, session: &Session) -> Option<Value> {
    let kernel = gateway.manager.get(session.kernel)?;
    let mut model = json!({
        "id": session.id,
        "path": session.path,
        "name": session.name,
        "type": session.kind,
        "kernel": model::kernel(&kernel),
    });
    if session.kind == "notebook" {
        // The older form.
        model["notebook"] = json!({"path": session.path, "name": session.name});
    }
    Some(model)
}

fn not_found(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    ApiError::not_found(format!("Session does not exist: {shown}"))
}

fn find(gateway: &Gateway, id: &str) -> Result<Session, ApiError> {
    id.parse::<Uuid>()
        .ok()
        .and_then(|id| gateway.sessions.get(id))
        .ok_or_else(|| not_found(id))
}

pub(super) async fn list(State(gateway): State<Arc<Gateway>>) -> Result<Json<Vec<Value>>, ApiError> {
    may_list(&gateway)?;
    let sessions = gateway.sessions.list(|kernel| gateway.lives(kernel));
    Ok(Json(
        sessions
            .iter()
            .filter_map(|session| session_model(&gateway, session))
            .collect(),
    ))
}

pub(super) async fn one(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let session = find(&gateway, &id)?;
    session_model(&gateway, &session)
        .map(Json)
        .ok_or_else(|| not_found(&id))
}

/// A field of at most [`MAX_TEXT`] bytes.
fn short_text(body: &Map<String, Value>, field: &str) -> Result<Option<String>, ApiError> {
    let text = text(body, field)?;
    if text.is_some_and(|text| text.len() > MAX_TEXT) {
        return Err(ApiError::bad_request(format!(
            "{field:?} has more than {MAX_TEXT} bytes"
        )));
    }
    Ok(text.map(str::to_owned))
}

/// `{path?, name?, type?}`, or the older form `{notebook: {path}}`.
struct SessionFields {
    path: Option<String>,
    name: Option<String>,
    kind: Option<String>,
}

impl SessionFields {
    fn read(body: &Map<String, Value>) -> Result<Self, ApiError> {
        let mut fields = Self {
            path: short_text(body, "path")?,
            name: short_text(body, "name")?,
            kind: short_text(body, "type")?,
        };
        if let Some(notebook) = object(body, "notebook")? {
            fields.path = short_text(notebook, "path")?.or(fields.path);
            fields.kind = Some("notebook".to_owned());
        }
        Ok(fields)
    }
}

fn missing(field: &str) -> ApiError {
    ApiError::bad_request(format!("Missing field in JSON data: {field}"))
}

pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let fields = SessionFields::read(&body)?;
    let path = fields.path.ok_or_else(|| missing("path"))?;
    let kind = fields.kind.ok_or_else(|| missing("type"))?;
    let kernel = object(&body, "kernel")?.cloned().unwrap_or_default();
    let name = fields.name.unwrap_or_default();
    let creating = find_or_create(gateway.clone(), path, name, kind, kernel);
    // Continues if the client disconnects, so that no kernel is left without its session.
    let session = tokio::spawn(creating).await.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed; its log says more",
        )
    })??;
    let model = session_model(&gateway, &session)
        .ok_or_else(|| ApiError::new(StatusCode::GONE, "the session's kernel has already ended"))?;
    let location = format!("{}/api/sessions/{}", gateway.options.base_url.prefix(), session.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(model)).into_response())
}

/// The session of this path, or a new one.
async fn find_or_create(
    gateway: Arc<Gateway>,
    path: String,
    name: String,
    kind: String,
    kernel: Map<String, Value>,
) -> Result<Session, ApiError> {
    let has_kernel = |kernel| gateway.lives(kernel);
    if let Some(session) = gateway.sessions.of_path(&path, has_kernel) {
        return Ok(session);
    }
    let (kernel, is_new) = match running(&gateway, &kernel)? {
        NamedKernel::Found(kernel) => (kernel, false),
        NamedKernel::Unnamed => (start_kernel(&gateway, &kernel, &path).await?, true),
        // The notebook's kernel has ended; as with jupyter_server, a new one starts under its id.
        NamedKernel::Unknown(id) => {
            let mut kernel = kernel;
            if id.parse::<KernelId>().is_ok() {
                kernel.insert("kernel_id".to_owned(), id.into());
            }
            (start_kernel(&gateway, &kernel, &path).await?, true)
        }
    };
    let session = Session {
        id: Uuid::new_v4(),
        path,
        name,
        kind,
        kernel: kernel.id(),
    };
    match gateway
        .sessions
        .add(session, has_kernel)
        .map_err(|not_added| *not_added)
    {
        Ok(session) => Ok(session),
        // Another request for the same path was faster, or there is no room, so the new kernel is not needed.
        Err(not_added) => {
            if is_new {
                shut_down(kernel).await?;
            }
            match not_added {
                NotAdded::Exists(session) => Ok(session),
                NotAdded::Full(error) => Err(error),
            }
        }
    }
}

/// The kernel named by `kernel.id` in the body.
enum NamedKernel {
    Found(Arc<Kernel>),
    /// No kernel has this id.
    Unknown(String),
    /// No id.
    Unnamed,
}

fn running(gateway: &Gateway, kernel: &Map<String, Value>) -> Result<NamedKernel, ApiError> {
    let Some(id) = text(kernel, "id")?.filter(|id| !id.is_empty()) else {
        return Ok(NamedKernel::Unnamed);
    };
    let found = id.parse::<KernelId>().ok().and_then(|id| gateway.manager.get(id));
    Ok(found.map_or_else(
        || NamedKernel::Unknown(id.chars().take(64).collect()),
        NamedKernel::Found,
    ))
}

/// Starts a kernel from the body's `kernel`. An unknown kernelspec is 501, as clients of sessions expect.
async fn start_kernel(gateway: &Gateway, kernel: &Map<String, Value>, path: &str) -> Result<Arc<Kernel>, ApiError> {
    start::start(gateway, kernel, Some(path))
        .await
        .map_err(|no_kernel| no_kernel.into_api_error(StatusCode::NOT_IMPLEMENTED))
}

pub(super) async fn change(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, ApiError> {
    let session = find(&gateway, &id)?;
    let fields = SessionFields::read(&body)?;
    let kernel = object(&body, "kernel")?.cloned();
    let changing = changed(gateway, session, fields, kernel);
    let model = tokio::spawn(changing).await.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed; its log says more",
        )
    })??;
    model.map(Json).ok_or_else(|| not_found(&id))
}

/// The session's model after the change; `None` if the session or its kernel no longer exists.
async fn changed(
    gateway: Arc<Gateway>,
    session: Session,
    fields: SessionFields,
    kernel: Option<Map<String, Value>>,
) -> Result<Option<Value>, ApiError> {
    let mut started_kernel = None;
    let kernel = match kernel {
        None => None,
        Some(wanted) => match running(&gateway, &wanted)? {
            NamedKernel::Found(kernel) => Some(kernel.id()),
            NamedKernel::Unknown(id) => return Err(ApiError::bad_request(format!("No such kernel: {id}"))),
            NamedKernel::Unnamed if text(&wanted, "name")?.is_some() => {
                let kernel = start_kernel(&gateway, &wanted, &session.path).await?;
                let id = kernel.id();
                started_kernel = Some(kernel);
                Some(id)
            }
            NamedKernel::Unnamed => None,
        },
    };
    let change = Change {
        path: fields.path,
        name: fields.name,
        kind: fields.kind,
        kernel,
    };
    let Some((before, after)) = gateway.sessions.change(session.id, change) else {
        if let Some(kernel) = started_kernel {
            shut_down(kernel).await?;
        }
        return Ok(None);
    };
    if before.kernel != after.kernel {
        end_unused(&gateway, before.kernel).await?;
    }
    Ok(session_model(&gateway, &after))
}

/// Ends a kernel that a session no longer uses, unless another session does.
async fn end_unused(gateway: &Gateway, kernel: KernelId) -> Result<(), ApiError> {
    match gateway.manager.get(kernel) {
        Some(kernel) if !gateway.sessions.uses(kernel.id()) => shut_down(kernel).await,
        _ => Ok(()),
    }
}

pub(super) async fn end(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let session = find(&gateway, &id)?;
    let had_kernel = gateway.lives(session.kernel);
    gateway.sessions.remove(session.id).ok_or_else(|| not_found(&id))?;
    if !had_kernel {
        return Err(ApiError::new(StatusCode::GONE, "Kernel deleted before session"));
    }
    end_unused(&gateway, session.kernel).await?;
    Ok(StatusCode::NO_CONTENT)
}
