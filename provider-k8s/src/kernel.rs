//! A kernel, its handle, and the task that watches its pod.

mod agent;
mod restart;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::{ConnectionInfo, KernelId};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::agent::Link;
use kernel_provider::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError,
};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDrop;

use crate::agent_route::AgentRoute;
use crate::cluster::Cluster;
use crate::in_place_restart::RestartHold;
use crate::names;
use crate::phase::{self, PodPhase};
use crate::pod_cache::CachedPod;
use crate::registry::Registry;
use crate::route::Route;
use crate::start::Ready;

/// How long the watch may take to report a pod's deletion or end. It takes longer only if it is broken.
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
    secret: BTreeMap<String, ByteString>,
    route: Arc<Route>,
    supervisors: Vec<AbortOnDrop>,
    /// Holds the pod for an announced restart, with the task that waits for the kernel's end.
    restart_hold: Option<(RestartHold, AbortOnDrop)>,
    is_restarting: bool,
    /// Whether the kernel is being shut down.
    is_ending: bool,
}

impl K8sKernel {
    /// Creates the `K8sKernel` of a running pod and starts to watch the pod.
    pub(crate) fn running(cluster: &Arc<Cluster>, registry: &Arc<Registry>, id: KernelId, ready: Ready) -> Arc<Self> {
        let ended = ready.route.reported_exit();
        let kernel = Arc::new(Self {
            id,
            cluster: Arc::clone(cluster),
            registry: Arc::downgrade(registry),
            phase: watch::Sender::new(ended.map_or(Phase::Running, Phase::Exited)),
            state: Mutex::new(KernelState {
                pod: ready.pod,
                secret: ready.secret,
                route: Arc::new(ready.route),
                supervisors: Vec::new(),
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
        let mut tasks = vec![tokio::spawn(supervise(Arc::downgrade(self), self.pod(), updates))];
        if let Some(agent) = self.route().agent() {
            tasks.push(tokio::spawn(agent::follow_agent(Arc::downgrade(self), agent.link())));
        }
        let tasks = tasks.iter().map(|task| AbortOnDrop::new(task.abort_handle()));
        crate::lock(&self.state).supervisors = tasks.collect();
    }

    /// Records the end of the pod's process, unless a restart is in progress.
    fn pod_ended(&self, exit: Exit) {
        if !crate::lock(&self.state).is_restarting {
            self.exited(exit);
        }
    }

    /// Removes the kernel from the registry.
    fn forget(&self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.remove(self);
        }
    }

    /// Records the end of the kernel.
    fn exited(&self, mut exit: Exit) {
        // With an agent, the kernel's exit is recorded before its pod ends.
        if self.exit().is_some() {
            return;
        }
        if crate::lock(&self.state).is_ending {
            exit.cause = ExitCause::Requested;
            // With an agent, the pod still exists, and the kernel is forgotten once the pod is removed.
            if self.route().agent().is_none() {
                self.forget();
            }
        } else {
            tracing::info!(kernel = %self.id, cause = %exit.cause, "a kernel ended");
            remove_oldest_ended_pods(&self.cluster);
        }
        self.phase.send_replace(Phase::Exited(exit));
    }
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
    let excess = ended.len().saturating_sub(cluster.options.keep_ended);
    ended.truncate(excess);
    if ended.is_empty() {
        return;
    }
    let cluster = Arc::clone(cluster);
    // The task is not joined, because each call has a time limit.
    tokio::spawn(async move {
        for pod in ended {
            if let Err(error) = cluster.delete(&pod, Duration::ZERO).await {
                tracing::debug!(%error, "cannot remove the pod of an ended kernel");
            }
        }
    });
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
            // The exit is reported when the deleted pod is gone.
            _ if is_deleted => None,
            PodPhase::Ended(cause) => Some(cause),
            PodPhase::CannotStart(failure) => Some(ExitCause::Unknown(failure.to_string())),
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
            if let Some(agent) = kernel.route().agent() {
                agent.link().close();
            }
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
        names::record(&self.0.cluster.options.name, self.0.id, &self.0.pod())
    }

    async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        self.0.check_running()?;
        self.0.route().connection().await
    }

    fn agent(&self) -> Option<Arc<Link>> {
        self.0.route().agent().map(AgentRoute::link)
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    async fn output(&self) -> Result<String, ProviderError> {
        if let Some(agent) = self.0.route().agent() {
            return match self.0.exit() {
                Some(exit) => Ok(exit.output),
                None => Ok(agent.link().output().await?),
            };
        }
        match (self.0.cluster.output(&self.0.pod()).await, self.0.exit()) {
            (Err(_), Some(exit)) => Ok(exit.output),
            (read, _) => read,
        }
    }

    async fn interrupt(&self) -> Result<Interrupt, ProviderError> {
        self.0.check_running()?;
        if let Some(agent) = self.0.route().agent() {
            return Ok(agent.link().interrupt().await?);
        }
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
            let is_absent = updates.borrow().is_absent(names::uid(&pod));
            if is_absent || self.0.shutdown_by_agent(Duration::ZERO).await.is_none() {
                if !is_absent {
                    self.0.cluster.end(&pod, Duration::ZERO, &mut updates).await?;
                }
                self.0.forget();
            }
            return Ok(exit);
        }
        crate::lock(&self.0.state).is_ending = true;
        if let Some(exit) = self.0.shutdown_by_agent(grace).await {
            self.0.exited(exit);
            return Ok(self.wait().await);
        }
        self.0.cluster.end(&pod, grace, &mut updates).await?;
        self.0.forget();
        tokio::time::timeout(EXIT_EVENT_TIMEOUT, self.wait())
            .await
            .map_err(|_| ProviderError::failed("end the kernel", "its pod is gone, but the watch has not reported it"))
    }
}
