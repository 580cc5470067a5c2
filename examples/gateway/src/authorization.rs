//! Who may do what: the table of routes, and the one function that decides.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use futures::StreamExt;
use jupyter_protocol::KernelId;
use kernel_log::{LogInfo, StoreError};
use kernel_manager::Kernel;
use uuid::Uuid;

use crate::Gateway;
use crate::error::ApiError;
use crate::identity::{Identity, Role};
use crate::launches::Launch;
use crate::routes::{no_such_kernel, no_such_session};
use crate::shares::{Share, SharedKernel};

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Tells facts about the gateway, or lists what the caller may see.
    Ask,
    /// Shows the gateway's metrics, which count the kernels of all users.
    Measure,
    /// Starts a kernel.
    Start,
    /// Uses the kernel that the path names.
    Kernel(Use),
    /// Uses the kernel of the session that the path names.
    Session(Use),
}

/// A use of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Sees that it exists, and its state.
    See,
    /// Interrupts, restarts or ends it.
    Control,
    /// Reads code and output.
    Read,
    /// Runs code.
    Run,
    /// Shares it, or removes its log.
    Manage,
}

/// What each route does. A route that is missing here serves only callers who may do everything.
pub(crate) const ROUTES: &[(Method, &str, Action)] = &[
    (Method::GET, "/api", Action::Ask),
    (Method::GET, "/api/status", Action::Ask),
    (Method::GET, "/api/me", Action::Ask),
    (Method::GET, "/api/spec.yaml", Action::Ask),
    (Method::GET, "/api/swagger.json", Action::Ask),
    (Method::GET, "/api/swagger.yaml", Action::Ask),
    (Method::GET, "/metrics", Action::Measure),
    (Method::GET, "/api/kernelspecs", Action::Ask),
    (Method::GET, "/api/kernelspecs/{name}", Action::Ask),
    (Method::GET, "/kernelspecs/{name}/{*path}", Action::Ask),
    (Method::GET, "/api/kernels", Action::Ask),
    (Method::POST, "/api/kernels", Action::Start),
    (Method::GET, "/api/kernels/{id}", Action::Kernel(Use::See)),
    (Method::DELETE, "/api/kernels/{id}", Action::Kernel(Use::Control)),
    (
        Method::POST,
        "/api/kernels/{id}/interrupt",
        Action::Kernel(Use::Control),
    ),
    (Method::POST, "/api/kernels/{id}/restart", Action::Kernel(Use::Control)),
    (Method::GET, "/api/kernels/{id}/progress", Action::Kernel(Use::See)),
    // A client of a WebSocket can send code.
    (Method::GET, "/api/kernels/{id}/channels", Action::Kernel(Use::Run)),
    (Method::GET, "/api/kernels/{id}/log", Action::Kernel(Use::Read)),
    (Method::GET, "/api/kernels/{id}/comms", Action::Kernel(Use::Read)),
    (Method::GET, "/api/kernels/{id}/executions", Action::Kernel(Use::Read)),
    (Method::POST, "/api/kernels/{id}/executions", Action::Kernel(Use::Run)),
    (
        Method::GET,
        "/api/kernels/{id}/executions/{msg_id}",
        Action::Kernel(Use::Read),
    ),
    (Method::GET, "/api/kernels/{id}/shares", Action::Kernel(Use::Manage)),
    (Method::POST, "/api/kernels/{id}/shares", Action::Kernel(Use::Manage)),
    (
        Method::DELETE,
        "/api/kernels/{id}/shares/{share}",
        Action::Kernel(Use::Manage),
    ),
    (Method::GET, "/api/logs", Action::Ask),
    (Method::DELETE, "/api/logs/{id}", Action::Kernel(Use::Manage)),
    (Method::GET, "/api/sessions", Action::Ask),
    (Method::POST, "/api/sessions", Action::Start),
    (Method::GET, "/api/sessions/{id}", Action::Session(Use::See)),
    // It can start a kernel and end another one.
    (Method::PATCH, "/api/sessions/{id}", Action::Session(Use::Run)),
    (Method::DELETE, "/api/sessions/{id}", Action::Session(Use::Control)),
];

/// What a route does; `None` if it is not in the table.
pub(crate) fn action_of(method: &Method, route: &str) -> Option<Action> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let found = ROUTES.iter().find(|(of, path, _)| of == method && *path == route);
    found.map(|(_, _, action)| *action)
}

/// Whether a route's answer is a WebSocket or an event stream.
pub(crate) fn is_connection(route: &str) -> bool {
    matches!(route, "/api/kernels/{id}/channels" | "/api/kernels/{id}/log")
}

/// How a caller is related to a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// It is the caller's.
    Own,
    /// Its owner shared it with the caller, with this share.
    Shared(Uuid),
    /// It is somebody else's.
    Other,
}

/// Decides whether a caller with this role and relation may use a kernel.
fn allows(role: Role, relation: Relation, wanted: Use) -> bool {
    matches!(
        (role, relation, wanted),
        (Role::Admin | Role::Server, ..)
            | (Role::Operator, _, Use::See | Use::Control)
            | (Role::User, Relation::Own, _)
            | (_, Relation::Own | Relation::Shared(_), Use::See | Use::Read)
    )
}

/// Whether a caller with this role may do something that concerns no single kernel.
pub(crate) fn allows_without_kernel(role: Role, action: Action) -> bool {
    match action {
        Action::Ask => true,
        Action::Measure => matches!(role, Role::Operator | Role::Admin | Role::Server),
        Action::Start => matches!(role, Role::User | Role::Admin | Role::Server),
        Action::Kernel(_) | Action::Session(_) => false,
    }
}

/// A running kernel, one that is being started, or the log of a past one.
#[derive(Clone)]
pub(crate) enum Subject {
    Kernel(Arc<Kernel>),
    Launch(Arc<Launch>),
    Log(LogInfo),
}

impl Subject {
    /// Finds what there is of a kernel. A damaged log counts as missing, because its owner is not known.
    pub(crate) async fn find(gateway: &Gateway, id: KernelId) -> Result<Option<Self>, ApiError> {
        if let Some(kernel) = gateway.manager.get(id) {
            return Ok(Some(Self::Kernel(kernel)));
        }
        // The log comes first, because another user may try to start a kernel with its id.
        match gateway.manager.logs().info(id).await {
            Ok(Some(log)) => return Ok(Some(Self::Log(log))),
            Ok(None) => {}
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(%error, "only admins can use the kernel's log");
                return Ok(None);
            }
            Err(error) => {
                tracing::error!(%error, "a log cannot be read");
                // The error has the path of the log.
                let message = "the kernel's log cannot be read; the gateway's log has the cause";
                return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message));
            }
        }
        let launch = gateway.launches.get(id).filter(|launch| !launch.is_ready());
        Ok(launch.map(Self::Launch))
    }

    pub(crate) fn owner(&self) -> Option<&str> {
        match self {
            Self::Kernel(kernel) => kernel.owner(),
            Self::Launch(launch) => launch.owner(),
            Self::Log(log) => log.owner.as_deref(),
        }
    }

    /// Whether a share is of this kernel, and not of another one with the same id.
    fn is_shared_as(&self, shared: &SharedKernel) -> bool {
        match self {
            Self::Kernel(kernel) => shared.is(kernel),
            Self::Launch(_) => false,
            Self::Log(log) => (shared.id, shared.epoch) == (log.id, log.epoch),
        }
    }

    fn id(&self) -> Option<KernelId> {
        match self {
            Self::Kernel(kernel) => Some(kernel.id()),
            Self::Launch(_) => None,
            Self::Log(log) => Some(log.id),
        }
    }
}

/// The permission to use a kernel. It ends with the caller's identity, and with the share if it comes from one.
#[derive(Clone)]
pub(crate) struct Permission {
    identity: Arc<Identity>,
    share: Option<Uuid>,
}

impl Permission {
    fn can_end(&self) -> bool {
        self.identity.can_end() || self.share.is_some()
    }

    /// Waits until the permission ends.
    pub(crate) async fn ended(self, gateway: Arc<Gateway>) {
        let unshared = async {
            match self.share {
                Some(share) => gateway.shares.ended(share).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.identity.ended() => {}
            () = unshared => {}
        }
    }

    /// Ends the response's body with the permission. Bodies of known length are already complete.
    pub(crate) fn limit(self, gateway: Arc<Gateway>, response: Response) -> Response {
        let is_stream = response.body().size_hint().exact().is_none();
        if !is_stream || !self.can_end() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(self.ended(gateway)))))
    }
}

/// Decides whether the caller may use the kernel: the only such decision, for requests, lists, and kernels that a body
/// names.
pub(crate) fn permission(
    gateway: &Gateway,
    identity: &Arc<Identity>,
    subject: &Subject,
    wanted: Use,
) -> Option<Permission> {
    let relation = relation(gateway, identity, subject);
    let share = match relation {
        // Those who may use it without the share keep it when the share ends.
        Relation::Shared(share) if !allows(identity.role, Relation::Other, wanted) => Some(share),
        _ => None,
    };
    allows(identity.role, relation, wanted).then(|| Permission {
        identity: identity.clone(),
        share,
    })
}

fn relation(gateway: &Gateway, identity: &Identity, subject: &Subject) -> Relation {
    if identity.is(subject.owner()) {
        return Relation::Own;
    }
    let id = subject.id().filter(|_| gateway.options().allow_shares);
    let share = id.and_then(|id| {
        let is_with_caller = |share: &Share| share.is_with(identity) && subject.is_shared_as(&share.kernel);
        gateway.shares.find_of_kernel(id, is_with_caller)
    });
    share.map_or(Relation::Other, Relation::Shared)
}

/// Whether the caller may use the running kernel.
pub(crate) fn may_use_kernel(gateway: &Gateway, identity: &Arc<Identity>, kernel: &Arc<Kernel>, wanted: Use) -> bool {
    permission(gateway, identity, &Subject::Kernel(kernel.clone()), wanted).is_some()
}

/// Checks a request against the table of routes.
///
/// # Errors
/// The response for a kernel or session that does not exist if the caller may not use it; 403 for routes that concern
/// no single kernel.
pub(crate) async fn check(
    gateway: &Gateway,
    identity: &Arc<Identity>,
    request: &mut Parts,
) -> Result<Permission, ApiError> {
    let unlimited = Permission {
        identity: identity.clone(),
        share: None,
    };
    // These may do everything, so requests that the table does not have get the router's own errors.
    if identity.acts_for_others() {
        return Ok(unlimited);
    }
    let Some(route) = request.extensions.get::<MatchedPath>().cloned() else {
        return Ok(unlimited);
    };
    let Some(action) = action_of(&request.method, route.as_str()) else {
        return Err(ApiError::not_found(""));
    };
    let id = match RawPathParams::from_request_parts(request, &()).await {
        Ok(params) => params
            .iter()
            .find(|(name, _)| *name == "id")
            .map(|(_, id)| id.to_owned()),
        Err(_) => None,
    }
    .unwrap_or_default();
    match action {
        Action::Kernel(wanted) => {
            let kernel = id.parse().map_err(|_| no_such_kernel(&id))?;
            let found = Subject::find(gateway, kernel).await?;
            let permission = found.and_then(|subject| permission(gateway, identity, &subject, wanted));
            permission.ok_or_else(|| no_such_kernel(&id))
        }
        Action::Session(wanted) => {
            let session = id.parse().ok().and_then(|id: Uuid| gateway.sessions.get(id));
            let session = session.ok_or_else(|| no_such_session(&id))?;
            let found = Subject::find(gateway, session.kernel).await?;
            let permission = found.and_then(|subject| permission(gateway, identity, &subject, wanted));
            permission.ok_or_else(|| no_such_session(&id))
        }
        _ if allows_without_kernel(identity.role, action) => Ok(unlimited),
        _ => Err(ApiError::forbidden(format!(
            "the role {} may not do this; ask an admin of the gateway",
            identity.role
        ))),
    }
}
