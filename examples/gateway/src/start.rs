//! Starts kernels from request bodies, for `/api/kernels` and `/api/sessions`.

use std::sync::Arc;
use std::time::Instant;

use axum::http::StatusCode;
use jupyter_protocol::KernelId;
use kernel_log::{LogInfo, StoreError};
use kernel_manager::{Kernel, StartError, StartRequest};
use kernel_provider::{LaunchError, Progress};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use crate::Gateway;
use crate::environment::{self, Environment};
use crate::error::ApiError;
use crate::identity::{Identity, Role};
use crate::profiles::{self, Resources};
use crate::rates::Limited;
use crate::traces;
use crate::users::KernelUser;

/// Longest kernelspec name to look up, in bytes.
const MAX_NAME: usize = 256;

/// The kernel to start.
#[derive(Deserialize, ToSchema)]
#[serde(expecting = "an object")]
pub(crate) struct NewKernel {
    /// The name of the kernelspec; the default one if absent.
    pub(crate) name: Option<String>,
    /// The path of the notebook below the gateway's working directory. The kernel starts in its folder, or in the
    /// nearest existing folder above.
    pub(crate) path: Option<String>,
    #[schema(schema_with = env)]
    pub(crate) env: Option<Map<String, Value>>,
    /// The kernel's id, a UUID of any version; a random one if absent.
    #[schema(format = Uuid)]
    pub(crate) kernel_id: Option<String>,
}

/// The schema of a new kernel's environment.
pub(crate) fn env() -> Object {
    let value = ObjectBuilder::new().schema_type(Type::String).max_length(Some(4_096));
    ObjectBuilder::new()
        .additional_properties(Some(value))
        .description(Some(
            "Environment variables. KERNEL_* and those that --client-envs of the gateway names are passed to the \
             kernel; others are ignored. KERNEL_ID, KERNEL_LAUNCH_TIMEOUT (seconds), KERNEL_USERNAME, \
             KERNEL_WORKING_DIR and KERNEL_PROFILE (one of the kernelspec's metadata.kernelmux.profiles, by name) also \
             determine how the kernel is started.",
        ))
        .build()
}

/// Why no kernel was started.
pub(crate) enum NoKernel {
    /// The kernelspec does not exist; the text lists those that do.
    NoSuchSpec(String),
    /// Any other error.
    Refused(ApiError),
}

impl From<ApiError> for NoKernel {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl NoKernel {
    /// Converts this to an error, with the given status for an unknown kernelspec.
    pub(crate) fn into_api_error(self, status: StatusCode) -> ApiError {
        match self {
            Self::NoSuchSpec(message) => ApiError::new(status, message),
            Self::Refused(error) => error,
        }
    }
}

/// Starts a kernel of the caller, or of the user that the caller names and may act for.
///
/// If the client disconnects, the start continues; the kernel can be found by its id or in the list.
pub(crate) async fn start(
    gateway: &Gateway,
    caller: &Identity,
    NewKernel {
        name,
        path,
        env,
        kernel_id,
    }: NewKernel,
) -> Result<Arc<Kernel>, NoKernel> {
    let options = gateway.options();
    let env = Environment::read(&env.unwrap_or_default(), &options)?;
    let chosen = kernel_id
        .map(|id| environment::kernel_id("kernel_id", &id))
        .transpose()?;
    if let (Some(chosen), Some(id)) = (chosen, env.id)
        && chosen != id
    {
        return Err(ApiError::bad_request("kernel_id and KERNEL_ID differ").into());
    }
    let id = chosen.or(env.id).unwrap_or_else(KernelId::random);

    let name = name.filter(|name| !name.is_empty());
    if name.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
        return Err(ApiError::bad_request(format!("a kernelspec's name has at most {MAX_NAME} bytes")).into());
    }
    let Some(name) = name.or_else(|| gateway.manager.default_spec()) else {
        let none = "there are no kernelspecs; install one, for example with `pip install ipykernel`";
        return Err(NoKernel::NoSuchSpec(none.to_owned()));
    };
    let (name, spec) = gateway.manager.find_spec(&name).map_err(refused)?;
    let owner = match caller.acting_for(env.username)? {
        Some(owner) => {
            check_log_has_owner(gateway, caller, id).await?;
            Some(owner)
        }
        // The new kernel continues the log of an earlier one with this id.
        None => owner_of_log(gateway, id)
            .await?
            .or_else(|| options.default_owner.clone()),
    };
    let user = KernelUser::new(options.clone(), caller, owner);
    if !user.may_use(&name, &spec) {
        return Err(user.refusal(&name).into());
    }
    let groups = user.memberships();
    groups.check_profile(env.variables.get(profiles::VARIABLE).map(String::as_str))?;
    if groups.has_profiles()
        && let Some(variable) = Resources::variables().find(|variable| env.variables.contains_key(variable))
    {
        let message = format!("the resource profile sets {variable}; leave it out of the request");
        return Err(ApiError::forbidden(message).into());
    }
    if let Some(image) = env.variables.get("KERNEL_IMAGE") {
        groups.check_image(image)?;
    }

    let counted = user.name.as_deref().unwrap_or("users without a name");
    if let Err(refusal) = gateway.rates.count(Limited::Starts, counted) {
        gateway.metrics.refusal("starts");
        return Err(refusal.error().into());
    }
    let mut request = StartRequest::new(name);
    request.id = Some(id);
    request.groups = groups.names();
    request.env = env.variables;
    request.env.insert("KERNEL_GATEWAY".to_owned(), "1".to_owned());
    request.env.insert("KERNEL_ID".to_owned(), id.to_string());
    if let Some(owner) = &user.name {
        request.env.insert("KERNEL_USERNAME".to_owned(), owner.clone());
    }
    request.owner.clone_from(&user.name);
    request.working_dir = env.working_dir.or_else(|| {
        let root = options.root_dir.as_deref()?;
        environment::dir_of(root, &path?)
    });
    if let Some(timeout) = env.timeout {
        request.timeout = timeout;
    }
    profiles::apply(&spec.spec, &mut request.env)?;
    if let Some(resources) = Resources::of(&request.env) {
        resources.annotate(&mut request.annotations);
    }
    let span = traces::of_start(id, &request.spec);
    // A request for a kernel that exists must not hide that kernel's progress.
    let launch = if gateway.has_kernel(id) {
        None
    } else {
        gateway
            .launches
            .begin(id, request.owner.as_deref(), &gateway.metrics, &span)
    };
    if let Some(launch) = launch.clone() {
        request = request.with_progress(Progress::new(move |stage| launch.report(stage)));
    }
    let (spec_name, metrics, began) = (request.spec.clone(), gateway.metrics.clone(), Instant::now());
    let (manager, shares, launches) = (
        gateway.manager.clone(),
        gateway.shares.clone(),
        gateway.launches.clone(),
    );
    // Completes even if the client disconnects, so that the progress has the outcome.
    let starting = tokio::spawn(async move {
        let started = manager.start(request).await;
        match &started {
            Err(StartError::LimitReached { .. }) => metrics.refusal("kernels"),
            Err(error) if is_refused(error) => {}
            started => metrics.start(&spec_name, started.is_ok(), began.elapsed()),
        }
        if let Err(error) = &started {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", error.to_string());
        }
        if let Ok(kernel) = &started {
            shares.forget_before(kernel).await;
        }
        if let Some(launch) = launch {
            match &started {
                Ok(_) => launch.ready(),
                Err(error) => {
                    launch.failed(error.to_string());
                    if is_refused(error) {
                        launches.withdraw(id, &launch);
                    }
                }
            }
        }
        started
    });
    starting.await.unwrap_or(Err(StartError::ShuttingDown)).map_err(refused)
}

/// Refuses an id whose log has no owner, because a new kernel would give it one, except for the role `server`. The
/// manager refuses logs of other owners.
async fn check_log_has_owner(gateway: &Gateway, caller: &Identity, id: KernelId) -> Result<(), NoKernel> {
    if caller.role == Role::Server {
        return Ok(());
    }
    match gateway.manager.logs().info(id).await {
        // The owner of a damaged log is not known.
        Ok(Some(LogInfo { owner: None, .. })) | Err(StoreError::Damaged { .. }) => {
            Err(refused(StartError::Duplicate(id)))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(ApiError::from(error).into()),
    }
}

/// The owner of the log with this id, if there is one.
async fn owner_of_log(gateway: &Gateway, id: KernelId) -> Result<Option<String>, NoKernel> {
    let log = gateway.manager.logs().info(id).await.map_err(ApiError::from)?;
    Ok(log.and_then(|log| log.owner))
}

/// Whether the error occurred before anything was started.
fn is_refused(error: &StartError) -> bool {
    matches!(
        error,
        StartError::Duplicate(_)
            | StartError::OtherOwner(_)
            | StartError::LimitReached { .. }
            | StartError::ShuttingDown
    )
}

fn refused(error: StartError) -> NoKernel {
    let status = match &error {
        StartError::NoSuchSpec { .. } | StartError::Launch(LaunchError::NoSuchSpec { .. }) => {
            return NoKernel::NoSuchSpec(error.to_string());
        }
        // The text does not tell whether the kernel of the other user runs.
        StartError::OtherOwner(id) => return refused(StartError::Duplicate(*id)),
        StartError::Duplicate(_) => StatusCode::CONFLICT,
        StartError::LimitReached { .. } => StatusCode::FORBIDDEN,
        StartError::Launch(LaunchError::BadRequest(_)) => StatusCode::BAD_REQUEST,
        StartError::ShuttingDown | StartError::Launch(LaunchError::NoRoom { .. }) => StatusCode::SERVICE_UNAVAILABLE,
        StartError::NoAnswer { .. } | StartError::Launch(LaunchError::TimedOut { .. }) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    tracing::warn!(%error, "a kernel could not be started");
    NoKernel::Refused(ApiError::new(status, error.to_string()))
}
