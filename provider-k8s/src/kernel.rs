//! A kernel's handle, and the task that watches its pod.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::{ConnectionInfo, KernelId};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDrop;

use crate::cluster::Cluster;
use crate::in_place_restart::RestartHold;
use crate::manifest::Manifest;
use crate::phase::{self, PodPhase};
use crate::pod_cache::CachedPod;
use crate::registry::Registry;
use crate::route::Route;
use crate::start::{self, LaunchContext, Ready, StartOutcome};
use crate::{names, plan};

/// How long a restarted kernel may take to accept connections. Its image is usually on the node already.
const RESTART_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause before the first retry of a failed restart. It is doubled for each further retry, up to [`MAX_RESTART_PAUSE`].
const RESTART_PAUSE: Duration = Duration::from_millis(250);
const MAX_RESTART_PAUSE: Duration = Duration::from_secs(8);
/// How long a pod is held for an announced restart, beyond the grace period.
const HOLD_MARGIN: Duration = Duration::from_secs(60);
/// How long a killed kernel may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// Time limit for the exit event after a pod's deletion. It is exceeded only if the watch is broken.
const EXIT_EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A kernel of a [`K8sProvider`](crate::K8sProvider).
pub(crate) struct K8sKernel {
    id: KernelId,
    cluster: Arc<Cluster>,
    registry: Weak<Registry>,
    phase: watch::Sender<Phase>,
    state: Mutex<KernelState>,
    /// Serializes restarts and shutdown.
    operation: tokio::sync::Mutex<()>,
    /// Cancels a restart in progress.
    cancel_restart: Notify,
}

struct KernelState {
    pod: Arc<Pod>,
    /// The connection file in the pod.
    file: ConnectionInfo,
    secret: BTreeMap<String, ByteString>,
    route: Arc<Route>,
    supervisor: Option<AbortOnDrop>,
    /// Holds the pod for an announced restart, with the task that waits for the kernel's end.
    restart_hold: Option<(RestartHold, AbortOnDrop)>,
    is_restarting: bool,
    /// Whether the kernel is being shut down.
    is_ending: bool,
}

impl K8sKernel {
    /// Creates the handle of a running kernel and starts to watch its pod.
    pub(crate) fn running(cluster: &Arc<Cluster>, registry: &Arc<Registry>, id: KernelId, ready: Ready) -> Arc<Self> {
        let kernel = Arc::new(Self {
            id,
            cluster: Arc::clone(cluster),
            registry: Arc::downgrade(registry),
            phase: watch::Sender::new(Phase::Running),
            state: Mutex::new(KernelState {
                pod: ready.pod,
                file: ready.file,
                secret: ready.secret,
                route: Arc::new(ready.route),
                supervisor: None,
                restart_hold: None,
                is_restarting: false,
                is_ending: false,
            }),
            operation: tokio::sync::Mutex::default(),
            cancel_restart: Notify::new(),
        });
        kernel.supervise();
        kernel
    }

    pub(crate) fn id(&self) -> KernelId {
        self.id
    }

    /// How the kernel ended, or `None` while it runs.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match &*self.phase.borrow() {
            Phase::Exited(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    fn pod(&self) -> Arc<Pod> {
        Arc::clone(&crate::lock(&self.state).pod)
    }

    fn check_running(&self) -> Result<(), ProviderError> {
        match self.exit() {
            Some(exit) => Err(ProviderError::Gone(exit.cause)),
            None => Ok(()),
        }
    }

    /// Starts to watch the kernel's current pod.
    fn supervise(self: &Arc<Self>) {
        let updates = self.cluster.pod_cache.subscribe(self.id);
        let task = tokio::spawn(supervise(Arc::downgrade(self), self.pod(), updates));
        crate::lock(&self.state).supervisor = Some(AbortOnDrop::new(task.abort_handle()));
    }

    /// Records the end of the pod's process, unless a restart is in progress.
    fn pod_ended(&self, exit: Exit) {
        if !crate::lock(&self.state).is_restarting {
            self.exited(exit);
        }
    }

    /// Records the end of the kernel.
    fn exited(&self, mut exit: Exit) {
        if crate::lock(&self.state).is_ending {
            exit.cause = ExitCause::Requested;
            if let Some(registry) = self.registry.upgrade() {
                registry.remove(self);
            }
        } else {
            tracing::info!(kernel = %self.id, cause = %exit.cause, "a kernel ended");
            remove_oldest_ended_pods(&self.cluster);
        }
        self.phase.send_replace(Phase::Exited(exit));
    }

    /// Returns the manifest for the restart if the kernelspec has changed since the pod was created.
    async fn updated_manifest(&self) -> Option<Manifest> {
        let cluster = Arc::clone(&self.cluster);
        let (id, pod, secret) = {
            let state = crate::lock(&self.state);
            (self.id, Arc::clone(&state.pod), state.secret.clone())
        };
        let planning = tokio::task::spawn_blocking(move || plan::updated_manifest(&cluster.config, id, &pod, &secret));
        planning.await.ok().flatten()
    }

    /// Holds the pod for a restart. Returns `None` if the pod cannot be kept.
    async fn hold_pod(&self, grace: Duration) -> Option<RestartHold> {
        let pod = self.pod();
        let is_kept = names::annotation(&pod, names::RESTART) == Some(names::IN_PLACE);
        if !is_kept || !matches!(phase::assess(&pod, &[]), PodPhase::Running { .. }) {
            return None;
        }
        match RestartHold::begin(&self.cluster, &pod, grace.saturating_add(HOLD_MARGIN)).await {
            Ok(hold) => Some(hold),
            Err(error) => {
                tracing::info!(kernel = %self.id, %error, "cannot restart in place; using a new pod");
                None
            }
        }
    }

    /// Holds the pod for an announced restart, if the restart can keep the pod.
    async fn prepare_restart(self: &Arc<Self>) {
        if self.exit().is_some() || self.updated_manifest().await.is_some() {
            return;
        }
        let Some(hold) = self.hold_pod(Duration::ZERO).await else {
            return;
        };
        let (kernel, ended) = (Arc::downgrade(self), hold.ended());
        let exit_task = tokio::spawn(async move {
            // If the pod ended too, its supervisor reports the exit.
            if let Some(cause) = ended.await
                && let Some(kernel) = kernel.upgrade()
            {
                kernel.pod_ended(Exit::new(cause));
            }
        });
        crate::lock(&self.state).restart_hold = Some((hold, AbortOnDrop::new(exit_task.abort_handle())));
    }

    /// Ends the kernel and starts it again in the same pod.
    ///
    /// Returns `false` if the pod cannot be kept; the pod may be gone then.
    async fn restart_in_place(&self, context: &LaunchContext<'_>, grace: Duration) -> Result<bool, LaunchError> {
        let restart_hold = crate::lock(&self.state).restart_hold.take();
        let pod = self.pod();
        let uid = names::uid(&pod);
        let hold = match restart_hold.map(|(hold, _)| hold).filter(|hold| hold.is_of(uid)) {
            Some(hold) => Some(hold),
            None => self.hold_pod(grace).await,
        };
        let Some(mut hold) = hold else {
            return Ok(false);
        };
        let ended = hold.ended();
        tokio::pin!(ended);
        if !grace.is_zero() {
            hold.signal("TERM").await;
        }
        let is_ended = match tokio::time::timeout(grace, &mut ended).await {
            Ok(ended) => ended.is_some(),
            Err(_) => {
                hold.signal("KILL").await;
                matches!(tokio::time::timeout(KILL_DEADLINE, ended).await, Ok(Some(_)))
            }
        };
        if !is_ended {
            return Ok(false);
        }
        hold.start_kernel().await;
        let (route, file) = {
            let state = crate::lock(&self.state);
            (Arc::clone(&state.route), state.file.clone())
        };
        let mut updates = self.cluster.pod_cache.subscribe(self.id);
        let opened = start::wait_for_sockets(context, &mut updates, uid, &file, &route).await;
        // A kernel that does not answer in time is removed, like one that does not start in a new pod.
        if let Err(LaunchError::TimedOut { .. }) = opened
            && let Err(error) = self.cluster.end(&pod, Duration::ZERO, &mut updates).await
        {
            tracing::warn!(kernel = %self.id, %error, "cannot remove the pod of a restarted kernel that does not answer");
        }
        opened.map(|()| true)
    }

    /// Starts the kernel in a new pod, after the old one was deleted.
    ///
    /// The pod is created from `updated` if there is one, and otherwise from the old pod. Transient errors are retried,
    /// because otherwise the kernel would be lost.
    async fn start_in_new_pod(
        &self,
        context: &LaunchContext<'_>,
        mut updated: Option<Manifest>,
        (pod, secret): (&Pod, &BTreeMap<String, ByteString>),
    ) -> Result<StartOutcome, LaunchError> {
        let mut pause = RESTART_PAUSE;
        loop {
            let launch_lock = match self.registry.upgrade() {
                // Wait until the previous attempt's pod is removed.
                Some(registry) => Some(start::within(context, registry.launch_lock(self.id)).await?),
                None => None,
            };
            let manifest = updated
                .take()
                .unwrap_or_else(|| Manifest::recreate(self.id, pod, secret));
            match start::start(context, manifest, launch_lock).await {
                Err(error)
                    if is_transient(&error)
                        && Instant::now() + pause < context.deadline
                        && pause <= MAX_RESTART_PAUSE =>
                {
                    tracing::warn!(kernel = %self.id, %error, "retrying a restart");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                outcome => return outcome,
            }
        }
    }

    async fn restart_now(self: &Arc<Self>, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let restarting = RestartGuard::begin(self)?;
        self.phase.send_replace(Phase::Restarting);
        let context = LaunchContext {
            cluster: &self.cluster,
            id: self.id,
            timeout: RESTART_TIMEOUT,
            deadline: Instant::now() + RESTART_TIMEOUT,
            progress: &progress,
            may_have_rivals: false,
        };
        let updated = self.updated_manifest().await;
        if updated.is_none() {
            match self.restart_in_place(&context, grace).await {
                Ok(true) => {
                    restarting.done(None);
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => {
                    restarting.failed(&error);
                    return Err(error);
                }
            }
        }
        let (pod, secret) = {
            let mut state = crate::lock(&self.state);
            state.restart_hold = None;
            (Arc::clone(&state.pod), state.secret.clone())
        };
        let mut updates = self.cluster.pod_cache.subscribe(self.id);
        self.cluster.end(&pod, grace, &mut updates).await?;
        let result = match self.start_in_new_pod(&context, updated, (&pod, &secret)).await {
            // A concurrent restart or launch of the same kernel has created its pod first.
            Ok(StartOutcome::Exists | StartOutcome::Rival) => {
                let theirs = updates.borrow().present().cloned();
                match theirs {
                    Some(theirs) => start::adopt(&context, &theirs).await,
                    None => Err(ProviderError::failed(
                        "restart the kernel",
                        "another pod with its name was created and is gone",
                    )
                    .into()),
                }
            }
            Ok(StartOutcome::Ready(ready)) => Ok(*ready),
            Err(error) => Err(error),
        };
        match result {
            Ok(ready) => {
                restarting.done(Some(ready));
                Ok(())
            }
            Err(error) => {
                restarting.failed(&error);
                Err(error)
            }
        }
    }
}

/// Whether a retry may succeed, because the API server did not answer, or the old pod's resources are not free yet.
fn is_transient(error: &LaunchError) -> bool {
    matches!(error, LaunchError::Provider(_) | LaunchError::NoRoom { .. })
}

/// Removes the pods of kernels that ended by themselves, except the newest.
fn remove_oldest_ended_pods(cluster: &Arc<Cluster>) {
    // Pods that cannot start may still be waiting for room; their launch removes them.
    let is_over = |pod: &Arc<Pod>| matches!(phase::assess(pod, &[]), PodPhase::Ended(_));
    let mut ended: Vec<_> = cluster
        .pod_cache
        .pods()
        .into_iter()
        .map(|(_, pod)| pod)
        // The pool reconciler handles warm pods.
        .filter(|pod| names::pool(pod).is_none() && is_over(pod))
        .collect();
    ended.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
    let excess = ended.len().saturating_sub(cluster.config.keep_ended);
    ended.truncate(excess);
    if ended.is_empty() {
        return;
    }
    let cluster = Arc::clone(cluster);
    // Not joined: each call has a time limit.
    tokio::spawn(async move {
        for pod in ended {
            if let Err(error) = cluster.delete(&pod, Duration::ZERO).await {
                tracing::debug!(%error, "cannot remove the pod of an ended kernel");
            }
        }
    });
}

/// A restart in progress. Dropping it cancels the restart.
struct RestartGuard<'a> {
    kernel: &'a Arc<K8sKernel>,
    exit: Exit,
    is_over: bool,
}

impl<'a> RestartGuard<'a> {
    fn begin(kernel: &'a Arc<K8sKernel>) -> Result<Self, ProviderError> {
        let mut state = crate::lock(&kernel.state);
        if state.is_ending {
            return Err(ProviderError::Gone(ExitCause::Requested));
        }
        state.is_restarting = true;
        let cancelled = "it was ended for a restart that was cancelled".to_owned();
        Ok(Self {
            kernel,
            exit: Exit::new(ExitCause::Unknown(cancelled)),
            is_over: false,
        })
    }

    /// Completes the restart. `ready` is the new pod, or `None` if the old one was kept.
    fn done(mut self, ready: Option<Ready>) {
        self.is_over = true;
        {
            let mut state = crate::lock(&self.kernel.state);
            state.is_restarting = false;
            if let Some(ready) = ready {
                state.pod = ready.pod;
                state.file = ready.file;
                state.secret = ready.secret;
                state.route = Arc::new(ready.route);
            }
        }
        self.kernel.phase.send_replace(Phase::Running);
        self.kernel.supervise();
    }

    fn failed(mut self, error: &LaunchError) {
        self.exit = error.exit_after_restart();
    }
}

impl Drop for RestartGuard<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        crate::lock(&self.kernel.state).is_restarting = false;
        let pod = self.kernel.pod();
        let still_exists = {
            let updates = self.kernel.cluster.pod_cache.subscribe(self.kernel.id);
            let cached = updates.borrow();
            let same = cached.present().filter(|now| names::uid(now) == names::uid(&pod));
            same.is_some_and(|now| matches!(phase::assess(now, &[]), PodPhase::Running { .. } | PodPhase::Ending))
        };
        if still_exists {
            // The old pod still exists. If it is being deleted, its supervisor reports the exit.
            self.kernel.phase.send_replace(Phase::Running);
            self.kernel.supervise();
        } else {
            self.kernel.exited(self.exit.clone());
        }
    }
}

/// Watches a pod until its kernel has ended.
async fn supervise(kernel: Weak<K8sKernel>, mut last: Arc<Pod>, mut updates: watch::Receiver<CachedPod>) {
    let uid = names::uid(&last).to_owned();
    loop {
        let now = updates.borrow_and_update().clone();
        if let Some(pod) = now.pod.filter(|pod| names::uid(pod) == uid) {
            last = pod;
            if let Some(kernel) = kernel.upgrade() {
                crate::lock(&kernel.state).pod = Arc::clone(&last);
            }
        }
        let is_present = !updates.borrow().is_absent(&uid);
        let is_deleted = last.metadata.deletion_timestamp.is_some();
        let ended = match phase::assess(&last, &[]) {
            _ if !is_present => Some(phase::removal_cause(&last)),
            // The pod is about to disappear, which ends its kernel.
            _ if is_deleted => None,
            PodPhase::Ended(cause) => Some(cause),
            PodPhase::CannotStart(failure) => Some(ExitCause::Unknown(format!("{failure:?}"))),
            _ => None,
        };
        if let Some(cause) = ended {
            let Some(kernel) = kernel.upgrade() else {
                return;
            };
            let output = if is_present {
                kernel.cluster.output_for_error(&last).await
            } else {
                String::new()
            };
            kernel.pod_ended(Exit::new(cause).with_output(output));
            return;
        }
        if updates.changed().await.is_err() {
            return;
        }
    }
}

/// The handle that the provider returns.
pub(crate) struct K8sKernelHandle(pub(crate) Arc<K8sKernel>);

#[async_trait]
impl KernelHandle for K8sKernelHandle {
    fn record(&self) -> KernelRecord {
        names::record(&self.0.cluster.config.name, self.0.id, &self.0.pod())
    }

    async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        self.0.check_running()?;
        let state = crate::lock(&self.0.state);
        Ok(state.route.connection(&state.file))
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    async fn output(&self) -> Result<String, ProviderError> {
        match (self.0.cluster.output(&self.0.pod()).await, self.0.exit()) {
            (Err(_), Some(exit)) => Ok(exit.output),
            (read, _) => read,
        }
    }

    async fn interrupt(&self) -> Result<Interrupt, ProviderError> {
        self.0.check_running()?;
        let pod = self.0.pod();
        if names::annotation(&pod, names::INTERRUPT) == Some("message") {
            return Ok(Interrupt::ByMessage);
        }
        match self.0.cluster.signal(&pod, "INT").await {
            Ok(()) => Ok(Interrupt::Signalled),
            Err(error) => {
                self.0.check_running()?;
                Err(error)
            }
        }
    }

    async fn prepare_restart(&self) {
        let _operation = self.0.operation.lock().await;
        self.0.prepare_restart().await;
    }

    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let _operation = self.0.operation.lock().await;
        tokio::select! {
            biased;
            () = self.0.cancel_restart.notified() => Err(ProviderError::Gone(ExitCause::Requested).into()),
            restarted = self.0.restart_now(grace, progress) => restarted,
        }
    }

    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError> {
        self.0.cancel_restart.notify_waiters();
        let _operation = self.0.operation.lock().await;
        let mut updates = self.0.cluster.pod_cache.subscribe(self.0.id);
        let pod = self.0.pod();
        if let Some(exit) = self.0.exit() {
            // The kernel ended earlier, and its pod is no longer needed.
            if !updates.borrow().is_absent(names::uid(&pod)) {
                self.0.cluster.end(&pod, Duration::ZERO, &mut updates).await?;
            }
            if let Some(registry) = self.0.registry.upgrade() {
                registry.remove(&self.0);
            }
            return Ok(exit);
        }
        crate::lock(&self.0.state).is_ending = true;
        self.0.cluster.end(&pod, grace, &mut updates).await?;
        tokio::time::timeout(EXIT_EVENT_TIMEOUT, self.wait())
            .await
            .map_err(|_| ProviderError::failed("end the kernel", "its pod is gone, but the watch has not reported it"))
    }
}
