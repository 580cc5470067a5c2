//! From a manifest to a pod whose kernel can be connected to, or to the reason why not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::ConnectionInfo;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Event, Pod};
use kernel_provider::KernelId;
use kernel_provider::provider::{ExitCause, LaunchError, LaunchStage, Progress, ProviderError};
use kube::api::PostParams;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::api_error::{CallError, call};
use crate::cluster::Cluster;
use crate::manifest::Manifest;
use crate::names;
use crate::phase::{self, PodPhase, StartFailure, StartStep};
use crate::pod_cache::CachedPod;
use crate::route::Route;

/// A kernel that answers at its sockets.
pub(crate) struct Ready {
    pub(crate) pod: Arc<Pod>,
    pub(crate) file: ConnectionInfo,
    pub(crate) secret: BTreeMap<String, ByteString>,
    pub(crate) route: Route,
}

/// Where to look for the kernel, and until when.
pub(crate) struct LaunchContext<'a> {
    pub(crate) cluster: &'a Arc<Cluster>,
    pub(crate) id: KernelId,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) progress: &'a Progress,
    /// Whether the same kernel can be in a pod of another name, since one was claimed for it.
    pub(crate) may_have_rivals: bool,
}

/// What became of the attempt to make a pod.
pub(crate) enum StartOutcome {
    Ready(Box<Ready>),
    /// There is a pod of the kernel's name already.
    Exists,
    /// Another gateway has claimed a pod for the same kernel at the same time; this one is being removed.
    Rival,
}

/// A pod that is not handed over yet. Dropping this removes it, also where it is not known whether it was made.
pub(crate) struct PodGuard {
    cluster: Arc<Cluster>,
    id: KernelId,
    name: String,
    /// An annotation that no other attempt's pod has.
    mark: (&'static str, String),
    /// The call that makes it is not given up with the launch: what a given-up call did could never be known.
    pending_call: Option<JoinHandle<Result<Pod, CallError>>>,
    /// Whether that call may be carried out later than now.
    may_appear_later: bool,
    /// The next launch of the id waits until nothing is left of this one.
    launch_lock: Option<OwnedMutexGuard<()>>,
    is_disarmed: bool,
}

impl PodGuard {
    /// A pod of this name is to get this mark by `call`.
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

    pub(crate) async fn result(&mut self) -> Result<Pod, CallError> {
        let Some(pending_call) = &mut self.pending_call else {
            return Err(CallError::TimedOut);
        };
        let made = call_result(pending_call).await;
        self.pending_call = None;
        self.may_appear_later = may_appear_later(&made);
        made
    }

    /// It stays, or was never made. The next launch of the id may go on, unless what is returned is kept.
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
                tracing::error!(kernel = %self.id, "a launch is given up outside of the async runtime: its pod is left")
            }
        }
    }
}

async fn call_result(pending_call: &mut JoinHandle<Result<Pod, CallError>>) -> Result<Pod, CallError> {
    // A task that was ended by the runtime's end leaves the same question open as a call without an answer.
    pending_call.await.unwrap_or(Err(CallError::TimedOut))
}

/// Whether a call left open what becomes of it.
fn may_appear_later(made: &Result<Pod, CallError>) -> bool {
    made.as_ref()
        .is_err_and(|error| error.code().is_none_or(|code| code >= 500))
}

/// Makes the pod and its Secret and waits for the kernel's sockets.
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

/// What became of the attempt to make a pod and its Secret.
pub(crate) enum CreateOutcome {
    /// They are there; they go again when what guards them is dropped.
    Created(Box<(CreatedPod, PodGuard)>),
    /// As [`StartOutcome::Exists`].
    Exists,
    /// As [`StartOutcome::Rival`].
    Rival,
}

/// A pod that has all that it needs.
pub(crate) struct CreatedPod {
    pub(crate) pod: Pod,
    file: ConnectionInfo,
    secret: BTreeMap<String, ByteString>,
    updates: watch::Receiver<CachedPod>,
}

impl CreatedPod {
    /// Waits for the kernel's sockets.
    pub(crate) async fn ready(mut self, context: &LaunchContext<'_>) -> Result<Ready, LaunchError> {
        let uid = names::uid(&self.pod);
        let (pod, route) = wait_until_ready(context, &mut self.updates, uid, &self.file).await?;
        Ok(Ready {
            pod,
            file: self.file,
            secret: self.secret,
            route,
        })
    }
}

/// Makes the pod and its Secret.
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
            // An answer means that it was not made.
            if !guard.may_appear_later {
                guard.disarm();
            }
            return Err(error.launch_error(&format!("the pod {name}")));
        }
    };
    if context.may_have_rivals {
        let asked = within(context, cluster.has_rivals(id, names::uid(&pod))).await?;
        if asked.map_err(|error| error.launch_error("sure of the pod"))? {
            return Ok(CreateOutcome::Rival);
        }
    }
    let secret = manifest.secret(&pod);
    let made = within(context, call(cluster.secrets().create(&PostParams::default(), &secret))).await?;
    // As with the pod: its name is of this attempt only.
    if let Err(error) = made
        && !error.already_exists()
    {
        return Err(error.launch_error(&format!("the Secret of the pod {name}")));
    }
    let file = manifest
        .secret
        .get(names::CONNECTION_KEY)
        .and_then(|file| serde_json::from_slice(&file.0).ok())
        .ok_or_else(|| ProviderError::failed("start a kernel", "its connection file is damaged"))?;
    let created = CreatedPod {
        pod,
        file,
        secret: manifest.secret,
        updates,
    };
    Ok(CreateOutcome::Created(Box::new((created, guard))))
}

/// Takes hold of a pod that somebody made, once its kernel can be connected to.
pub(crate) async fn adopt(context: &LaunchContext<'_>, pod: &Pod) -> Result<Ready, LaunchError> {
    let cluster = context.cluster;
    let mut updates = cluster.pod_cache.subscribe(context.id);
    // Its Secret is made after the pod, and before anything in the pod runs.
    let (pod, ip) = wait_until_running(context, &mut updates, names::uid(pod)).await?;
    let (file, secret) = cluster.secret_of(&pod).await?;
    let route = cluster.route(&pod, &ip, &file)?;
    let uid = names::uid(&pod).to_owned();
    wait_for_sockets(context, &mut updates, &uid, &file, &route).await?;
    Ok(Ready {
        pod,
        file,
        secret,
        route,
    })
}

/// Waits, at most until the launch's time is over.
pub(crate) async fn within<T>(context: &LaunchContext<'_>, future: impl Future<Output = T>) -> Result<T, LaunchError> {
    tokio::time::timeout_at(context.deadline, future)
        .await
        .map_err(|_| LaunchError::TimedOut {
            timeout: context.timeout,
            output: "the API server has not answered".to_owned(),
        })
}

async fn wait_until_ready(
    context: &LaunchContext<'_>,
    updates: &mut watch::Receiver<CachedPod>,
    uid: &str,
    file: &ConnectionInfo,
) -> Result<(Arc<Pod>, Route), LaunchError> {
    let (pod, ip) = wait_until_running(context, updates, uid).await?;
    let route = context.cluster.route(&pod, &ip, file)?;
    wait_for_sockets(context, updates, uid, file, &route).await?;
    // The pod as it is by now.
    let pod = updates.borrow().present().cloned().unwrap_or(pod);
    Ok((pod, route))
}

async fn wait_until_running(
    context: &LaunchContext<'_>,
    updates: &mut watch::Receiver<CachedPod>,
    uid: &str,
) -> Result<(Arc<Pod>, String), LaunchError> {
    let room_deadline = Instant::now() + context.cluster.config.wait_for_room;
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
                    return Ok((pod, ip));
                }
                PodPhase::Starting(step) => report(context.progress, &mut reported, step),
                PodPhase::CannotStart(StartFailure::NoRoom(_)) if Instant::now() < room_deadline => lacks_room = true,
                PodPhase::CannotStart(failure) => return Err(failed(&pod, failure)),
                PodPhase::Ended(_) => return Err(died(context, &pod).await),
                PodPhase::Ending => {}
            }
            last = Some((pod, events));
        } else if was_seen {
            let cause = last.as_ref().map_or(ExitCause::Deleted, |(pod, _)| phase::removal(pod));
            return Err(LaunchError::died(cause, ""));
        }
        let until = if lacks_room {
            room_deadline.min(context.deadline)
        } else {
            context.deadline
        };
        if tokio::time::timeout_at(until, updates.changed()).await.is_err() && Instant::now() >= context.deadline {
            let (pod, events) = last.unzip();
            return Err(timed_out(context, pod.as_deref(), &events.unwrap_or_default()).await);
        }
    }
}

/// Tells each step once, and none that was passed.
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

/// Waits until the kernel in a pod that runs can be connected to.
pub(crate) async fn wait_for_sockets(
    context: &LaunchContext<'_>,
    updates: &mut watch::Receiver<CachedPod>,
    uid: &str,
    file: &ConnectionInfo,
    route: &Route,
) -> Result<(), LaunchError> {
    let is_over = |cached: &CachedPod| {
        cached.is_absent(uid)
            || cached
                .present()
                .is_some_and(|pod| !matches!(phase::assess(pod, &[]), PodPhase::Running { .. }))
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
        () = route.ready(file) => return Ok(()),
        ended = ended => ended,
        () = tokio::time::sleep_until(context.deadline) => return Err(timed_out(context, last.as_deref(), &[]).await),
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
        return LaunchError::died(phase::removal(pod), "");
    }
    match phase::assess(pod, &[]) {
        PodPhase::CannotStart(failure) => failed(pod, failure),
        PodPhase::Ended(cause) => LaunchError::died(cause, context.cluster.output_for_error(pod).await),
        _ => LaunchError::died(ExitCause::Deleted, ""),
    }
}

/// With all that is known of why: the kernel's output, or what Kubernetes warned of, such as a volume that is missing.
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
