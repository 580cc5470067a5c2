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

use crate::cluster::Cluster;
use crate::link::Link;
use crate::manifest::Manifest;
use crate::names;
use crate::phase::{self, PodPhase, StartFailure, Step};
use crate::refusal::{CallError, call};
use crate::view::Sight;

/// A kernel that answers at its sockets.
pub(crate) struct Ready {
    pub(crate) pod: Arc<Pod>,
    pub(crate) file: ConnectionInfo,
    pub(crate) secret: BTreeMap<String, ByteString>,
    pub(crate) link: Link,
}

/// Where to look for the kernel, and until when.
pub(crate) struct Waiting<'a> {
    pub(crate) cluster: &'a Arc<Cluster>,
    pub(crate) id: KernelId,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) progress: &'a Progress,
    /// Whether the same kernel can be in a pod of another name, since one was claimed for it.
    pub(crate) may_have_rivals: bool,
}

/// What became of the attempt to make a pod.
pub(crate) enum Made {
    Ready(Box<Ready>),
    /// There is a pod of the kernel's name already.
    Exists,
    /// Another gateway has claimed a pod for the same kernel at the same time; this one is being removed.
    Rival,
}

/// A pod that is not handed over yet. Dropping this removes it, also where it is not known whether it was made.
pub(crate) struct Unfinished {
    cluster: Arc<Cluster>,
    id: KernelId,
    name: String,
    /// An annotation that no other attempt's pod has.
    mark: (&'static str, String),
    /// The call that makes it is not given up with the launch: what a given-up call did could never be known.
    making: Option<JoinHandle<Result<Pod, CallError>>>,
    /// Whether that call may be carried out later than now.
    may_come: bool,
    /// The next launch of the id waits until nothing is left of this one.
    turn: Option<OwnedMutexGuard<()>>,
    is_needed: bool,
}

impl Unfinished {
    /// A pod of this name is to get this mark by `call`.
    pub(crate) fn new(
        cluster: &Arc<Cluster>,
        id: KernelId,
        name: &str,
        mark: (&'static str, String),
        turn: Option<OwnedMutexGuard<()>>,
        call: impl Future<Output = Result<Pod, CallError>> + Send + 'static,
    ) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            id,
            name: name.to_owned(),
            mark,
            making: Some(tokio::spawn(call)),
            may_come: false,
            turn,
            is_needed: false,
        }
    }

    pub(crate) async fn made(&mut self) -> Result<Pod, CallError> {
        let Some(making) = &mut self.making else {
            return Err(CallError::TimedOut);
        };
        let made = outcome(making).await;
        self.making = None;
        self.may_come = may_come(&made);
        made
    }

    /// It stays, or was never made. The next launch of the id may go on, unless what is returned is kept.
    pub(crate) fn finish(mut self) -> Option<OwnedMutexGuard<()>> {
        self.is_needed = true;
        self.turn.take()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.is_needed {
            return;
        }
        let (cluster, id, name) = (Arc::clone(&self.cluster), self.id, std::mem::take(&mut self.name));
        let mark = (self.mark.0, std::mem::take(&mut self.mark.1));
        let (making, turn, mut is_late) = (self.making.take(), self.turn.take(), self.may_come);
        let tasks = self.cluster.clearing.clone();
        let clearing = async move {
            if let Some(mut making) = making {
                is_late = may_come(&outcome(&mut making).await);
            }
            cluster.clear_away(id, &name, &mark).await;
            drop(turn);
            if is_late {
                cluster.clear_away_late(id, &name, &mark).await;
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(tasks.spawn_on(clearing, &runtime)),
            Err(_) => {
                tracing::error!(kernel = %self.id, "a launch is given up outside of the async runtime: its pod is left")
            }
        }
    }
}

async fn outcome(making: &mut JoinHandle<Result<Pod, CallError>>) -> Result<Pod, CallError> {
    // A task that was ended by the runtime's end leaves the same question open as a call without an answer.
    making.await.unwrap_or(Err(CallError::TimedOut))
}

/// Whether a call left open what becomes of it.
fn may_come(made: &Result<Pod, CallError>) -> bool {
    made.as_ref()
        .is_err_and(|error| error.code().is_none_or(|code| code >= 500))
}

/// Makes the pod and its Secret and waits for the kernel's sockets.
pub(crate) async fn start(
    waiting: &Waiting<'_>,
    manifest: Manifest,
    turn: Option<OwnedMutexGuard<()>>,
) -> Result<Made, LaunchError> {
    let placed = match place(waiting, manifest, turn).await? {
        Place::Placed(placed) => placed,
        Place::Exists => return Ok(Made::Exists),
        Place::Rival => return Ok(Made::Rival),
    };
    let (placed, unfinished) = *placed;
    let ready = placed.ready(waiting).await?;
    unfinished.finish();
    Ok(Made::Ready(Box::new(ready)))
}

/// What became of the attempt to make a pod and its Secret.
pub(crate) enum Place {
    /// They are there; they go again when what guards them is dropped.
    Placed(Box<(Placed, Unfinished)>),
    /// As [`Made::Exists`].
    Exists,
    /// As [`Made::Rival`].
    Rival,
}

/// A pod that has all that it needs.
pub(crate) struct Placed {
    pub(crate) pod: Pod,
    file: ConnectionInfo,
    secret: BTreeMap<String, ByteString>,
    sight: watch::Receiver<Sight>,
}

impl Placed {
    /// Waits for the kernel's sockets.
    pub(crate) async fn ready(mut self, waiting: &Waiting<'_>) -> Result<Ready, LaunchError> {
        let uid = names::uid(&self.pod);
        let (pod, link) = wait_until_ready(waiting, &mut self.sight, uid, &self.file).await?;
        Ok(Ready {
            pod,
            file: self.file,
            secret: self.secret,
            link,
        })
    }
}

/// Makes the pod and its Secret.
pub(crate) async fn place(
    waiting: &Waiting<'_>,
    manifest: Manifest,
    turn: Option<OwnedMutexGuard<()>>,
) -> Result<Place, LaunchError> {
    let (cluster, id) = (waiting.cluster, waiting.id);
    let name = names::pod(id);
    let sight = cluster.view.sight(id);
    let attempt = names::annotation(&manifest.pod, names::ATTEMPT).unwrap_or_default();
    let mark = (names::ATTEMPT, attempt.to_owned());
    let (pods, pod, own) = (cluster.pods.clone(), manifest.pod.clone(), mark.clone());
    let making = async move { Cluster::create(&pods, &pod, &own).await };
    let mut unfinished = Unfinished::new(cluster, id, &name, mark, turn, making);
    let made = within(waiting, unfinished.made()).await?;
    let pod = match made {
        Ok(pod) => pod,
        Err(error) if error.already_exists() => {
            unfinished.finish();
            return Ok(Place::Exists);
        }
        Err(error) => {
            // An answer means that it was not made.
            if !unfinished.may_come {
                unfinished.finish();
            }
            return Err(error.launch_error(&format!("the pod {name}")));
        }
    };
    if waiting.may_have_rivals {
        let asked = within(waiting, cluster.has_rivals(id, names::uid(&pod))).await?;
        if asked.map_err(|error| error.launch_error("sure of the pod"))? {
            return Ok(Place::Rival);
        }
    }
    let secret = manifest.secret(&pod);
    let made = within(waiting, call(cluster.secrets().create(&PostParams::default(), &secret))).await?;
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
    let placed = Placed {
        pod,
        file,
        secret: manifest.secret,
        sight,
    };
    Ok(Place::Placed(Box::new((placed, unfinished))))
}

/// Takes hold of a pod that somebody made, once its kernel can be connected to.
pub(crate) async fn adopt(waiting: &Waiting<'_>, pod: &Pod) -> Result<Ready, LaunchError> {
    let cluster = waiting.cluster;
    let mut sight = cluster.view.sight(waiting.id);
    // Its Secret is made after the pod, and before anything in the pod runs.
    let (pod, ip) = wait_until_running(waiting, &mut sight, names::uid(pod)).await?;
    let (file, secret) = cluster.secret_of(&pod).await?;
    let link = cluster.link(&pod, &ip, &file)?;
    let uid = names::uid(&pod).to_owned();
    wait_for_sockets(waiting, &mut sight, &uid, &file, &link).await?;
    Ok(Ready {
        pod,
        file,
        secret,
        link,
    })
}

/// Waits, at most until the launch's time is over.
pub(crate) async fn within<T>(waiting: &Waiting<'_>, future: impl Future<Output = T>) -> Result<T, LaunchError> {
    tokio::time::timeout_at(waiting.deadline, future)
        .await
        .map_err(|_| LaunchError::TimedOut {
            timeout: waiting.timeout,
            output: "the API server has not answered".to_owned(),
        })
}

async fn wait_until_ready(
    waiting: &Waiting<'_>,
    sight: &mut watch::Receiver<Sight>,
    uid: &str,
    file: &ConnectionInfo,
) -> Result<(Arc<Pod>, Link), LaunchError> {
    let (pod, ip) = wait_until_running(waiting, sight, uid).await?;
    let link = waiting.cluster.link(&pod, &ip, file)?;
    wait_for_sockets(waiting, sight, uid, file, &link).await?;
    // The pod as it is by now.
    let pod = sight.borrow().present().cloned().unwrap_or(pod);
    Ok((pod, link))
}

async fn wait_until_running(
    waiting: &Waiting<'_>,
    sight: &mut watch::Receiver<Sight>,
    uid: &str,
) -> Result<(Arc<Pod>, String), LaunchError> {
    let room_deadline = Instant::now() + waiting.cluster.config.wait_for_room;
    let (mut reported, mut was_seen) = (Step::Accepted, false);
    let mut last: Option<(Arc<Pod>, Vec<Event>)> = None;
    loop {
        let now = sight.borrow_and_update().clone();
        let pod = now.present().filter(|pod| names::uid(pod) == uid).cloned();
        let mut lacks_room = false;
        if let Some(pod) = pod {
            was_seen = true;
            let events = now.events_of(&pod);
            match phase::assess(&pod, &events) {
                PodPhase::Running { ip } => {
                    report(waiting.progress, &mut reported, Step::Scheduled);
                    waiting.progress.report(LaunchStage::Starting);
                    return Ok((pod, ip));
                }
                PodPhase::Starting(step) => report(waiting.progress, &mut reported, step),
                PodPhase::CannotStart(StartFailure::NoRoom(_)) if Instant::now() < room_deadline => lacks_room = true,
                PodPhase::CannotStart(failure) => return Err(failed(&pod, failure)),
                PodPhase::Ended(_) => return Err(died(waiting, &pod).await),
                PodPhase::Ending => {}
            }
            last = Some((pod, events));
        } else if was_seen {
            let cause = last.as_ref().map_or(ExitCause::Deleted, |(pod, _)| phase::removal(pod));
            return Err(LaunchError::died(cause, ""));
        }
        let until = if lacks_room {
            room_deadline.min(waiting.deadline)
        } else {
            waiting.deadline
        };
        if tokio::time::timeout_at(until, sight.changed()).await.is_err() && Instant::now() >= waiting.deadline {
            let (pod, events) = last.unzip();
            return Err(timed_out(waiting, pod.as_deref(), &events.unwrap_or_default()).await);
        }
    }
}

/// Tells each step once, and none that was passed.
fn report(progress: &Progress, reported: &mut Step, step: Step) {
    if step <= *reported {
        return;
    }
    if *reported < Step::Scheduled {
        progress.report(LaunchStage::Scheduled);
    }
    if let Step::Pulling(what) = &step {
        progress.report(LaunchStage::Pulling(what.clone()));
    }
    *reported = step;
}

/// Waits until the kernel in a pod that runs can be connected to.
pub(crate) async fn wait_for_sockets(
    waiting: &Waiting<'_>,
    sight: &mut watch::Receiver<Sight>,
    uid: &str,
    file: &ConnectionInfo,
    link: &Link,
) -> Result<(), LaunchError> {
    let is_over = |sight: &Sight| {
        sight.lacks(uid)
            || sight
                .present()
                .is_some_and(|pod| !matches!(phase::assess(pod, &[]), PodPhase::Running { .. }))
    };
    let last = sight.borrow().pod.clone();
    let ended = async {
        let ended = sight.wait_for(is_over).await;
        ended
            .ok()
            .and_then(|sight| sight.pod.clone())
            .filter(|pod| names::uid(pod) == uid)
    };
    let ended = tokio::select! {
        () = link.ready(file) => return Ok(()),
        ended = ended => ended,
        () = tokio::time::sleep_until(waiting.deadline) => return Err(timed_out(waiting, last.as_deref(), &[]).await),
    };
    match ended.or(last) {
        Some(pod) => Err(died(waiting, &pod).await),
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

async fn died(waiting: &Waiting<'_>, pod: &Pod) -> LaunchError {
    if pod.metadata.deletion_timestamp.is_some() {
        return LaunchError::died(phase::removal(pod), "");
    }
    match phase::assess(pod, &[]) {
        PodPhase::CannotStart(failure) => failed(pod, failure),
        PodPhase::Ended(cause) => LaunchError::died(cause, waiting.cluster.evidence(pod).await),
        _ => LaunchError::died(ExitCause::Deleted, ""),
    }
}

/// With all that is known of why: the kernel's output, or what Kubernetes warned of, such as a volume that is missing.
async fn timed_out(waiting: &Waiting<'_>, pod: Option<&Pod>, events: &[Event]) -> LaunchError {
    let is_running = pod.is_some_and(|pod| matches!(phase::assess(pod, &[]), PodPhase::Running { .. }));
    let output = match pod {
        Some(pod) if is_running => waiting.cluster.evidence(pod).await,
        _ => {
            let warnings = events.iter().filter(|event| event.type_.as_deref() == Some("Warning"));
            let texts: Vec<&str> = warnings.filter_map(|event| event.message.as_deref()).collect();
            texts.join("\n")
        }
    };
    LaunchError::TimedOut {
        timeout: waiting.timeout,
        output,
    }
}
