//! `/api/sessions`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jupyter_protocol::KernelId;
use kernel_manager::Kernel;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::kernels::{may_list, shut_down};
use crate::Gateway;
use crate::authorization::{Use, may_use_kernel};
use crate::error::ApiError;
use crate::identity::{Caller, Identity, Role};
use crate::limits::JsonObject;
use crate::model::KernelModel;
use crate::sessions::{Change, NotAdded, Session};
use crate::start::{self, NewKernel};

/// Longest path, name or type of a session, in bytes.
const MAX_TEXT: usize = 4_096;

/// A notebook, console or file and its kernel.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub(super) struct SessionModel {
    id: Uuid,
    path: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    kernel: KernelModel,
    /// The older form of path and name; absent unless the type is notebook.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline, nullable = false)]
    notebook: Option<Notebook>,
}

#[derive(Serialize, ToSchema)]
struct Notebook {
    path: String,
    name: String,
}

/// A session to open, or the changes to one.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewSession)]
#[serde(expecting = "an object")]
pub(super) struct SessionRequest {
    path: Option<String>,
    name: Option<String>,
    /// Such as notebook, console or file.
    #[serde(rename = "type")]
    kind: Option<String>,
    kernel: Option<SessionKernel>,
    /// The older form of a path with the type notebook.
    #[schema(inline)]
    notebook: Option<NotebookPath>,
}

#[derive(Deserialize, ToSchema)]
#[serde(expecting = "an object")]
struct NotebookPath {
    path: Option<String>,
}

/// The kernel of a session: a running one, or a new one.
#[derive(Default, Deserialize, ToSchema)]
#[serde(expecting = "an object")]
struct SessionKernel {
    /// The id of a running kernel.
    #[schema(format = Uuid)]
    id: Option<String>,
    /// The name of the kernelspec of a new kernel.
    name: Option<String>,
    #[schema(schema_with = start::env)]
    env: Option<Map<String, Value>>,
    /// The id of a new kernel; a random one if absent.
    #[schema(format = Uuid)]
    kernel_id: Option<String>,
}

impl SessionKernel {
    /// The user that a new kernel is for, if the request names one.
    fn username(&self) -> Option<String> {
        let named = self.env.as_ref()?.get("KERNEL_USERNAME")?.as_str()?;
        (!named.is_empty()).then(|| named.to_owned())
    }

    fn into_new(self, path: &str) -> NewKernel {
        NewKernel {
            name: self.name,
            path: Some(path.to_owned()),
            env: self.env,
            kernel_id: self.kernel_id,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SessionPath {
    /// The session's id.
    #[param(format = Uuid)]
    id: String,
}

/// The session with its kernel; `None` if the kernel has ended.
fn session_model(gateway: &Gateway, session: &Session) -> Option<SessionModel> {
    let kernel = gateway.manager.get(session.kernel)?;
    let notebook = (session.kind == "notebook").then(|| Notebook {
        path: session.path.clone(),
        name: session.name.clone(),
    });
    Some(SessionModel {
        id: session.id,
        path: session.path.clone(),
        name: session.name.clone(),
        kind: session.kind.clone(),
        kernel: KernelModel::new(gateway, &kernel),
        notebook,
    })
}

pub(crate) fn not_found(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    ApiError::not_found(format!("Session does not exist: {shown}"))
}

fn find(gateway: &Gateway, id: &str) -> Result<Session, ApiError> {
    id.parse::<Uuid>()
        .ok()
        .and_then(|id| gateway.sessions.get(id))
        .ok_or_else(|| not_found(id))
}

/// The sessions whose kernels run and may be seen by the client, oldest first.
#[utoipa::path(
    get, path = "/api/sessions", tag = "sessions", operation_id = "list_sessions",
    responses(
        (status = 200, description = "All sessions", body = Vec<SessionModel>),
        (status = 403, description = "Sessions may not be listed"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
) -> Result<Json<Vec<SessionModel>>, ApiError> {
    may_list(&gateway)?;
    let sessions = gateway.sessions.list(|kernel| {
        let kernel = gateway.manager.get(kernel);
        kernel.is_some_and(|kernel| may_use_kernel(&gateway, &caller, &kernel, Use::See))
    });
    Ok(Json(
        sessions
            .iter()
            .filter_map(|session| session_model(&gateway, session))
            .collect(),
    ))
}

/// One session.
#[utoipa::path(
    get, path = "/api/sessions/{id}", tag = "sessions", operation_id = "get_session", params(SessionPath),
    responses(
        (status = 200, description = "The session", body = SessionModel),
        (status = 404, description = "There is no such session"),
    ),
)]
pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path(SessionPath { id }): Path<SessionPath>,
) -> Result<Json<SessionModel>, ApiError> {
    let session = find(&gateway, &id)?;
    session_model(&gateway, &session)
        .map(Json)
        .ok_or_else(|| not_found(&id))
}

impl SessionRequest {
    /// Reads a body, with the older form turned into the newer one.
    fn read(body: JsonObject) -> Result<Self, ApiError> {
        let mut request: Self = body.read()?;
        if let Some(notebook) = request.notebook.take() {
            request.path = notebook.path.or(request.path);
            request.kind = Some("notebook".to_owned());
        }
        for (field, text) in [
            ("path", &request.path),
            ("name", &request.name),
            ("type", &request.kind),
        ] {
            if text.as_ref().is_some_and(|text| text.len() > MAX_TEXT) {
                let message = format!("{field:?} has more than {MAX_TEXT} bytes");
                return Err(ApiError::bad_request(message));
            }
        }
        Ok(request)
    }
}

fn missing(field: &str) -> ApiError {
    ApiError::bad_request(format!("Missing field in JSON data: {field}"))
}

/// Opens a session: the existing one of this path, otherwise a new one with its kernel.
#[utoipa::path(
    post, path = "/api/sessions", tag = "sessions", operation_id = "open_session", request_body = SessionRequest,
    responses(
        (status = 201, description = "The session", body = SessionModel,
         headers(("Location" = String, description = "The session's address"))),
        (status = 400, description = "The request is malformed"),
        (status = 403, description = "The client may not start kernels or act for this user, the user may not use the \
         kernelspec, or there are too many kernels or sessions"),
        (status = 408, description = "The body did not arrive in time"),
        (status = 409, description = "A kernel with this id exists already, or its log belongs to another user"),
        (status = 410, description = "The kernel has ended already"),
        (status = 413, description = "The body is too large"),
        (status = 500, description = "The kernel could not be started; the message has the cause and its last output"),
        (status = 501, description = "There is no such kernelspec"),
        (status = 503, description = "The gateway is shutting down, or there is no room for a kernel"),
        (status = 504, description = "The kernel did not answer in time"),
    ),
)]
pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let request = SessionRequest::read(body)?;
    let path = request.path.ok_or_else(|| missing("path"))?;
    let kind = request.kind.ok_or_else(|| missing("type"))?;
    let kernel = request.kernel.unwrap_or_default();
    let name = request.name.unwrap_or_default();
    let creating = find_or_create(gateway.clone(), caller, path, name, kind, kernel);
    // Continues if the client disconnects, so that no kernel is left without its session.
    let session = tokio::spawn(creating).await.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed; its log has the cause",
        )
    })??;
    let model = session_model(&gateway, &session)
        .ok_or_else(|| ApiError::new(StatusCode::GONE, "the session's kernel has already ended"))?;
    let location = format!("{}/api/sessions/{}", gateway.options().base_url.prefix(), session.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(model)).into_response())
}

/// The session of this path, or a new one.
async fn find_or_create(
    gateway: Arc<Gateway>,
    caller: Arc<Identity>,
    path: String,
    name: String,
    kind: String,
    mut kernel: SessionKernel,
) -> Result<Session, ApiError> {
    let has_kernel = |kernel| gateway.has_kernel(kernel);
    // Notebooks of different users may have the same path. The shared token is that of a server with one set of files,
    // unless it names the user.
    let named = kernel.username().filter(|_| caller.acts_for_others());
    let is_own = |kernel| {
        let kernel = gateway.manager.get(kernel);
        kernel.is_some_and(|kernel| match &named {
            Some(named) => kernel.owner() == Some(named),
            None => caller.role == Role::Server || caller.is(kernel.owner()),
        })
    };
    if let Some(session) = gateway.sessions.of_path(&path, is_own) {
        return Ok(session);
    }
    let (kernel, is_new) = match named_kernel(&gateway, &caller, kernel.id.take()) {
        NamedKernel::Found(kernel) => (kernel, false),
        NamedKernel::Unnamed => (start_kernel(&gateway, &caller, kernel, &path).await?, true),
        // The notebook's kernel has ended. As with jupyter_server, a new kernel starts under the same id.
        NamedKernel::Unknown(id) => {
            if id.parse::<KernelId>().is_ok() {
                kernel.kernel_id = Some(id);
            }
            (start_kernel(&gateway, &caller, kernel, &path).await?, true)
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
        .add(session, has_kernel, is_own)
        .map_err(|not_added| *not_added)
    {
        Ok(session) => Ok(session),
        // Another request for the same path was faster, or the kernel has too many sessions.
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
    /// No kernel that the caller may use has this id.
    Unknown(String),
    /// No id.
    Unnamed,
}

fn named_kernel(gateway: &Gateway, caller: &Arc<Identity>, id: Option<String>) -> NamedKernel {
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return NamedKernel::Unnamed;
    };
    let found = id.parse::<KernelId>().ok().and_then(|id| gateway.manager.get(id));
    let found = found.filter(|kernel| may_use_kernel(gateway, caller, kernel, Use::Run));
    found.map_or_else(
        || NamedKernel::Unknown(id.chars().take(64).collect()),
        NamedKernel::Found,
    )
}

/// Starts a kernel from the body's `kernel`. An unknown kernelspec is 501, as clients of sessions expect.
async fn start_kernel(
    gateway: &Gateway,
    caller: &Arc<Identity>,
    kernel: SessionKernel,
    path: &str,
) -> Result<Arc<Kernel>, ApiError> {
    start::start(gateway, caller, kernel.into_new(path))
        .await
        .map_err(|no_kernel| no_kernel.into_api_error(StatusCode::NOT_IMPLEMENTED))
}

/// Changes a session; the kernel that it no longer uses ends, unless another session uses it.
#[utoipa::path(
    patch, path = "/api/sessions/{id}", tag = "sessions", operation_id = "change_session", params(SessionPath),
    request_body = SessionRequest,
    responses(
        (status = 200, description = "The session", body = SessionModel),
        (status = 400, description = "The request is malformed, or there is no such kernel"),
        (status = 403, description = "The client may not start kernels or act for this user, the user may not use the \
         kernelspec, or there are too many kernels"),
        (status = 404, description = "There is no such session"),
        (status = 408, description = "The body did not arrive in time"),
        (status = 409, description = "A kernel with this id exists already, or its log belongs to another user"),
        (status = 413, description = "The body is too large"),
        (status = 500, description = "The kernel could not be started or ended; the message has the cause"),
        (status = 501, description = "There is no such kernelspec"),
        (status = 503, description = "The gateway is shutting down, or there is no room for a kernel"),
        (status = 504, description = "The kernel did not answer in time"),
    ),
)]
pub(super) async fn change(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
    Path(SessionPath { id }): Path<SessionPath>,
    body: JsonObject,
) -> Result<Json<SessionModel>, ApiError> {
    let session = find(&gateway, &id)?;
    let changing = changed(gateway, caller, session, SessionRequest::read(body)?);
    let model = tokio::spawn(changing).await.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway failed; its log has the cause",
        )
    })??;
    model.map(Json).ok_or_else(|| not_found(&id))
}

/// The session's model after the change; `None` if the session or its kernel no longer exists.
async fn changed(
    gateway: Arc<Gateway>,
    caller: Arc<Identity>,
    session: Session,
    request: SessionRequest,
) -> Result<Option<SessionModel>, ApiError> {
    let mut started_kernel = None;
    let kernel = match request.kernel {
        None => None,
        Some(mut wanted) => match named_kernel(&gateway, &caller, wanted.id.take()) {
            NamedKernel::Found(kernel) => Some(kernel.id()),
            NamedKernel::Unknown(id) => return Err(ApiError::bad_request(format!("No such kernel: {id}"))),
            NamedKernel::Unnamed if wanted.name.is_some() => {
                let kernel = start_kernel(&gateway, &caller, wanted, &session.path).await?;
                let id = kernel.id();
                started_kernel = Some(kernel);
                Some(id)
            }
            NamedKernel::Unnamed => None,
        },
    };
    let change = Change {
        path: request.path,
        name: request.name,
        kind: request.kind,
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

/// Ends a session, and its kernel unless another session uses it.
#[utoipa::path(
    delete, path = "/api/sessions/{id}", tag = "sessions", operation_id = "end_session", params(SessionPath),
    responses(
        (status = 204, description = "The session has ended"),
        (status = 404, description = "There is no such session"),
        (status = 410, description = "The kernel had ended before; the session is removed"),
        (status = 500, description = "The kernel could not be ended"),
    ),
)]
pub(super) async fn end(
    State(gateway): State<Arc<Gateway>>,
    Path(SessionPath { id }): Path<SessionPath>,
) -> Result<StatusCode, ApiError> {
    let session = find(&gateway, &id)?;
    let had_kernel = gateway.has_kernel(session.kernel);
    gateway.sessions.remove(session.id).ok_or_else(|| not_found(&id))?;
    if !had_kernel {
        return Err(ApiError::new(StatusCode::GONE, "Kernel deleted before session"));
    }
    end_unused(&gateway, session.kernel).await?;
    Ok(StatusCode::NO_CONTENT)
}
