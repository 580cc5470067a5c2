//! Starts a pod from a manifest, or attaches to an existing pod, and waits until its kernel accepts connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jupyter_protocol::KernelId;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Event, Pod};
use kernel_provider::{ExitCause, LaunchError, LaunchStage, Progress, ProviderError};
use kube::api::PostParams;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::agent_route::AgentRoute;
use crate::api_error::{CallError, call};
use crate::cluster::Cluster;
use crate::manifest::Manifest;
use crate::names;
use crate::phase::{self, PodPhase, StartFailure, StartStep};
use crate::pod_cache::CachedPod;
use crate::route::Route;

/// A pod whose kernel accepts connections.
pub(crate) struct Ready {
    pub(crate) pod: Arc<Pod>,
    pub(crate) secret: BTreeMap<String, ByteString>,
    pub(crate) route: Route,
}

/// A launch, restart or attach in progress: its kernel, deadline and progress.
pub(crate) struct LaunchContext<'a> {
    pub(crate) cluster: &'a Arc<Cluster>,
    pub(crate) id: KernelId,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) progress: &'a Progress,
    /// Whether the kernel may also have a pod with another name, because a warm pod may have been claimed for it.
    pub(crate) may_have_rivals: bool,
}

/// Result of starting a pod.
pub(crate) enum StartOutcome {
    Ready(Box<Ready>),
    /// A pod with the kernel's name already exists.
    Exists,
    /// Another gateway has claimed a pod for the same kernel at the same time. This gateway's pod is being removed.
    Rival,
}

/// Guards a pod until its launch succeeds. Dropping the guard removes the pod, even if the call that creates the pod
/// has not been answered.
pub(crate) struct PodGuard {
    cluster: Arc<Cluster>,
    id: KernelId,
    name: String,
    /// An annotation that identifies the pods of this attempt.
    mark: (&'static str, String),
    /// The call that creates or claims the pod. It runs to completion even if the launch is cancelled, because the
    /// effect of a cancelled call would be unknown.
    pending_call: Option<JoinHandle<Result<Pod, CallError>>>,
    /// Whether the call may still be carried out later.
    may_appear_later: bool,
    /// Keeps the next launch of the id waiting until this pod is removed.
    launch_lock: Option<OwnedMutexGuard<()>>,
    is_disarmed: bool,
}

impl PodGuard {
    /// Guards the pod with this name. `call` creates the pod with this mark, or adds the mark to an existing pod.
    pub(crate) fn new(
        cluster: &Arc<Cluster>,
        id: KernelId,
        name: &str,
        mark: (&'static str, String),
        launch_lock: Option<OwnedMutexGuard<()>>,
        call: impl Future<Output = Result<Pod, CallError>> + Send + 'static,
    ) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            id,
            name: name.to_owned(),
            mark,
            pending_call: Some(tokio::spawn(call)),
            may_appear_later: false,
            launch_lock,
            is_disarmed: false,
        }
    }

    /// Waits for the result of the call.
    pub(crate) async fn result(&mut self) -> Result<Pod, CallError> {
        let Some(pending_call) = &mut self.pending_call else {
            return Err(CallError::TimedOut);
        };
        let result = call_result(pending_call).await;
        self.pending_call = None;
        self.may_appear_later = may_appear_later(&result);
        result
    }

    /// Keeps the pod, or accepts that it was never created. Returns the launch lock.
    pub(crate) fn disarm(mut self) -> Option<OwnedMutexGuard<()>> {
        self.is_disarmed = true;
        self.launch_lock.take()
    }
}

impl Drop for PodGuard {
    fn drop(&mut self) {
        if self.is_disarmed {
            return;
        }
        let (cluster, id, name) = (Arc::clone(&self.cluster), self.id, std::mem::take(&mut self.name));
        let mark = (self.mark.0, std::mem::take(&mut self.mark.1));
        let (pending_call, launch_lock, mut is_late) =
            (self.pending_call.take(), self.launch_lock.take(), self.may_appear_later);
        let tasks = self.cluster.cleanup.clone();
        let cleanup = async move {
            if let Some(mut pending_call) = pending_call {
                is_late = may_appear_later(&call_result(&mut pending_call).await);
            }
            cluster.clean_up(id, &name, &mark).await;
            drop(launch_lock);
            if is_late {
                cluster.clean_up_late(id, &name, &mark).await;
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(tasks.spawn_on(cleanup, &runtime)),
            Err(_) => {
                tracing::error!(kernel = %self.id, "a launch was cancelled outside the async runtime; its pod may remain")
            }
        }
    }
}

async fn call_result(pending_call: &mut JoinHandle<Result<Pod, CallError>>) -> Result<Pod, CallError> {
    // If the runtime stopped the task, the call's effect is unknown, as after a timeout.
    pending_call.await.unwrap_or(Err(CallError::TimedOut))
}

/// Whether the call failed but may have taken effect, or may still do so.
fn may_appear_later(result: &Result<Pod, CallError>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.code().is_none_or(|code| code >= 500))
}

/// Creates the pod and its Secret and waits for the kernel's sockets.
pub(crate) async fn start(
    context: &LaunchContext<'_>,
    manifest: Manifest,
    launch_lock: Option<OwnedMutexGuard<()>>,
) -> Result<StartOutcome, LaunchError> {
    let created = match create_pod(context, manifest, launch_lock).await? {
        CreateOutcome::Created(created) => created,
        CreateOutcome::Exists => return Ok(StartOutcome::Exists),
        CreateOutcome::Rival => return Ok(StartOutcome::Rival),
    };
    let (created, guard) = *created;
    let ready = created.ready(context).await?;
    guard.disarm();
    Ok(StartOutcome::Ready(Box::new(ready)))
}

/// Result of creating a pod and its Secret.
pub(crate) enum CreateOutcome {
    /// Both exist. Dropping the guard removes them.
    Created(Box<(CreatedPod, PodGuard)>),
    /// Same as [`StartOutcome::Exists`].
    Exists,
    /// Same as [`StartOutcome::Rival`].
    Rival,
}

/// A pod that exists together with its Secret.
pub(crate) struct CreatedPod {
    pub(crate) pod: Pod,
    secret: BTreeMap<String, ByteString>,
    updates: watch::Receiver<CachedPod>,
}

impl CreatedPod {
    /// Waits until the kernel accepts connections.
    pub(crate) async fn ready(mut self, context: &LaunchContext<'_>) -> Result<Ready, LaunchError> {
        let uid = names::uid(&self.pod);
        let (pod, ip, route) = wait_until_running(context, &mut self.updates, uid, Some(&self.secret)).await?;
        let route = match route {
            Some(route) => route,
            None => context.cluster.route(&pod, &ip, &self.secret)?,
        };
        wait_for_kernel(context, &mut self.updates, uid, &route).await?;
        // Use the pod's latest state.
        let pod = self.updates.borrow().present().cloned().unwrap_or(pod);
        Ok(Ready {
            pod,
            secret: self.secret,
            route,
        })
    }
}

/// Creates the pod and its Secret.
pub(crate) async fn create_pod(
    context: &LaunchContext<'_>,
    manifest: Manifest,
    launch_lock: Option<OwnedMutexGuard<()>>,
) -> Result<CreateOutcome, LaunchError> {
    let (cluster, id) = (context.cluster, context.id);
    let name = names::pod(id);
    let updates = cluster.pod_cache.subscribe(id);
    let attempt = names::annotation(&manifest.pod, names::ATTEMPT).unwrap_or_default();
    let mark = (names::ATTEMPT, attempt.to_owned());
    let (pods, pod, own) = (cluster.pods.clone(), manifest.pod.clone(), mark.clone());
    let pending_call = async move { Cluster::create(&pods, &pod, &own).await };
    let mut guard = PodGuard::new(cluster, id, &name, mark, launch_lock, pending_call);
    let made = within(context, guard.result()).await?;
    let pod = match made {
        Ok(pod) => pod,
        Err(error) if error.already_exists() => {
            guard.disarm();
            return Ok(CreateOutcome::Exists);
        }
        Err(error) => {
            // The API server has refused the call, so there is no pod to remove.
            if !guard.may_appear_later {
                guard.disarm();
            }
            return Err(error.launch_error("create", &format!("the pod {name}")));
        }
    };
    if context.may_have_rivals {
        let has_rivals = within(context, cluster.has_rivals(id, names::uid(&pod))).await?;
        if has_rivals.map_err(|error| error.launch_error("look for other pods of", &format!("the kernel {id}")))? {
            return Ok(CreateOutcome::Rival);
        }
    }
    let secret = manifest.secret(&pod);
    let made = within(context, call(cluster.secrets().create(&PostParams::default(), &secret))).await?;
    // The Secret's name is unique to this attempt, so an existing Secret was created by a retried call.
    if let Err(error) = made
        && !error.already_exists()
    {
        return Err(error.launch_error("create", &format!("the Secret of the pod {name}")));
    }
    let created = CreatedPod {
        pod,
        secret: manifest.secret,
        updates,
    };
    Ok(CreateOutcome::Created(Box::new((created, guard))))
}

/// Waits until the kernel of an existing pod accepts connections, and returns its pod, Secret and route.
pub(crate) async fn adopt(context: &LaunchContext<'_>, pod: &Pod) -> Result<Ready, LaunchError> {
    let cluster = context.cluster;
    let mut updates = cluster.pod_cache.subscribe(context.id);
    // The Secret is created after the pod, and no container starts before the Secret exists.
    let (pod, ip, _) = wait_until_running(context, &mut updates, names::uid(pod), None).await?;
    let secret = cluster.secret_of(&pod).await?;
    let route = cluster.route(&pod, &ip, &secret)?;
    let uid = names::uid(&pod).to_owned();
    wait_for_kernel(context, &mut updates, &uid, &route).await?;
    Ok(Ready { pod, secret, route })
}

/// Waits for a future, at most until the launch's deadline.
pub(crate) async fn within<T>(context: &LaunchContext<'_>, future: impl Future<Output = T>) -> Result<T, LaunchError> {
    tokio::time::timeout_at(context.deadline, future)
        .await
        .map_err(|_| LaunchError::TimedOut {
            timeout: context.timeout,
            output: "the API server did not answer".to_owned(),
        })
}

/// Waits until the pod's container runs, or its agent answers. Returns the pod, its address, and the route to the agent
/// if it was opened already.
///
/// The kubelet reports a running container up to a second late, so the provider connects to the agent as soon as the
/// pod has an address. `secret` is the data of the pod's Secret; `None` waits for the container only.
async fn wait_until_running(
    context: &LaunchContext<'_>,
    updates: &mut watch::Receiver<CachedPod>,
    uid: &str,
    secret: Option<&BTreeMap<String, ByteString>>,
) -> Result<(Arc<Pod>, String, Option<Route>), LaunchError> {
    let mut early: Option<(Route, BoxFuture<'static, ()>)> = None;
    let room_deadline = Instant::now() + context.cluster.options.wait_for_room;
    let (mut reported, mut was_seen) = (StartStep::Accepted, false);
    let mut last: Option<(Arc<Pod>, Vec<Event>)> = None;
    loop {
        let now = updates.borrow_and_update().clone();
        let pod = now.present().filter(|pod| names::uid(pod) == uid).cloned();
        let mut lacks_room = false;
        if let Some(pod) = pod {
            was_seen = true;
            let events = now.events_of(&pod);
            match phase::assess(&pod, &events) {
                PodPhase::Running { ip } => {
                    report(context.progress, &mut reported, StartStep::Scheduled);
                    context.progress.report(LaunchStage::Starting);
                    return Ok((pod, ip, early.map(|(route, _)| route)));
                }
                PodPhase::Starting(step) => {
                    report(context.progress, &mut reported, step);
                    if let (None, Some(secret), Some(ip)) = (&early, secret, phase::address(&pod)) {
                        early = early_route(context, &pod, ip, secret)?;
                    }
                }
                PodPhase::CannotStart(StartFailure::NoRoom(_)) if Instant::now() < room_deadline => lacks_room = true,
                PodPhase::CannotStart(failure) => return Err(failed(&pod, failure)),
                PodPhase::Ended(_) => return Err(died(context, &pod).await),
                PodPhase::Ending => {}
            }
            last = Some((pod, events));
        } else if was_seen {
            let cause = last
                .as_ref()
                .map_or(ExitCause::Deleted, |(pod, _)| phase::removal_cause(pod));
            return Err(LaunchError::died(cause, ""));
        }
        let until = if lacks_room {
            room_deadline.min(context.deadline)
        } else {
            context.deadline
        };
        let has_changed = tokio::select! {
            changed = tokio::time::timeout_at(until, updates.changed()) => changed.is_ok(),
            () = answered(&mut early) => match (early.take(), &last) {
                (Some((route, _)), Some((pod, _))) => {
                    report(context.progress, &mut reported, StartStep::Scheduled);
                    context.progress.report(LaunchStage::Starting);
                    let ip = phase::address(pod).unwrap_or_default().to_owned();
                    return Ok((Arc::clone(pod), ip, Some(route)));
                }
                _ => true,
            },
        };
        if !has_changed && Instant::now() >= context.deadline {
            let (pod, events) = last.unzip();
            return Err(timed_out(context, pod.as_deref(), &events.unwrap_or_default()).await);
        }
    }
}

/// Opens the route to the agent of a pod whose containers may not run yet. Returns the route with a future that ends
/// once the agent has answered, or `None` if the pod has no agent.
fn early_route(
    context: &LaunchContext<'_>,
    pod: &Pod,
    ip: &str,
    secret: &BTreeMap<String, ByteString>,
) -> Result<Option<(Route, BoxFuture<'static, ()>)>, ProviderError> {
    if !secret.contains_key(names::LAUNCH_KEY) {
        return Ok(None);
    }
    let route = context.cluster.route(pod, ip, secret)?;
    let link = route.agent().map(AgentRoute::link);
    Ok(link.map(|link| {
        let answered = async move { drop(link.welcome().await) };
        (route, answered.boxed())
    }))
}

async fn answered(early: &mut Option<(Route, BoxFuture<'static, ()>)>) {
    match early {
        Some((_, answered)) => answered.await,
        None => std::future::pending().await,
    }
}

/// Reports a start step, unless this step or a later one was already reported.
fn report(progress: &Progress, reported: &mut StartStep, step: StartStep) {
    if step <= *reported {
        return;
    }
    if *reported < StartStep::Scheduled {
        progress.report(LaunchStage::Scheduled);
    }
    if let StartStep::Pulling(what) = &step {
        progress.report(LaunchStage::Pulling(what.clone()));
    }
    *reported = step;
}

/// Waits until the kernel in a running pod accepts connections.
pub(crate) async fn wait_for_kernel(
    context: &LaunchContext<'_>,
    updates: &mut watch::Receiver<CachedPod>,
    uid: &str,
    route: &Route,
) -> Result<(), LaunchError> {
    let is_over = |cached: &CachedPod| {
        // A starting pod counts as alive, because an agent may answer before its container is reported to run.
        cached.is_absent(uid) || cached.present().is_some_and(|pod| !phase::is_alive(pod))
    };
    let last = updates.borrow().pod.clone();
    let ended = async {
        let ended = updates.wait_for(is_over).await;
        ended
            .ok()
            .and_then(|cached| cached.pod.clone())
            .filter(|pod| names::uid(pod) == uid)
    };
    let ended = tokio::select! {
        ready = route.ready() => return ready,
        ended = ended => ended,
        () = tokio::time::sleep_until(context.deadline) => {
            if let Some(agent) = route.agent() {
                agent.check_free()?;
                return Err(LaunchError::TimedOut {
                    timeout: context.timeout,
                    output: agent.link().output().await.unwrap_or_default(),
                });
            }
            return Err(timed_out(context, last.as_deref(), &[]).await);
        }
    };
    match ended.or(last) {
        Some(pod) => Err(died(context, &pod).await),
        None => Err(LaunchError::died(ExitCause::Deleted, "")),
    }
}

fn failed(pod: &Pod, failure: StartFailure) -> LaunchError {
    match failure {
        StartFailure::NoRoom(reason) => LaunchError::NoRoom { reason },
        StartFailure::Broken { reason, message } => {
            let kernel = pod.spec.as_ref().and_then(|spec| spec.containers.first());
            let image = kernel.and_then(|kernel| kernel.image.clone()).unwrap_or_default();
            LaunchError::CannotStart {
                what: format!("a pod of the image {image}"),
                reason: format!("{reason}: {message}"),
            }
        }
    }
}

async fn died(context: &LaunchContext<'_>, pod: &Pod) -> LaunchError {
    if pod.metadata.deletion_timestamp.is_some() {
        return LaunchError::died(phase::removal_cause(pod), "");
    }
    match phase::assess(pod, &[]) {
        PodPhase::CannotStart(failure) => failed(pod, failure),
        PodPhase::Ended(cause) => LaunchError::died(cause, context.cluster.output_for_error(pod).await),
        _ => LaunchError::died(ExitCause::Deleted, ""),
    }
}

/// Creates the timeout error with the kernel's output, or with Kubernetes' warnings, such as about a missing volume.
async fn timed_out(context: &LaunchContext<'_>, pod: Option<&Pod>, events: &[Event]) -> LaunchError {
    let is_running = pod.is_some_and(|pod| matches!(phase::assess(pod, &[]), PodPhase::Running { .. }));
    let output = match pod {
        Some(pod) if is_running => context.cluster.output_for_error(pod).await,
        _ => {
            let warnings = events.iter().filter(|event| event.type_.as_deref() == Some("Warning"));
            let texts: Vec<&str> = warnings.filter_map(|event| event.message.as_deref()).collect();
            texts.join("\n")
        }
    };
    LaunchError::TimedOut {
        timeout: context.timeout,
        output,
    }
}
