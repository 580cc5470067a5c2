//! Restarts a kernel in its pod if the pod can be kept, otherwise in a new pod.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::Backoff;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{Exit, ExitCause, LaunchError, Phase, Progress, ProviderError};
use tokio::time::Instant;
use tokio_util::task::AbortOnDrop;

use super::K8sKernel;
use crate::in_place_restart::RestartHold;
use crate::manifest::Manifest;
use crate::phase::{self, PodPhase};
use crate::start::{self, LaunchContext, Ready, StartOutcome};
use crate::{names, plan};

/// How long a restarted kernel may take to accept connections. Its image is usually on the node already.
const RESTART_TIMEOUT: Duration = Duration::from_secs(120);
/// The pauses before a failed restart is retried.
const RESTART_BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(8));
const MAX_RESTART_RETRIES: u32 = 6;
/// How long a pod is held for a restart, in addition to the grace period.
const HOLD_MARGIN: Duration = Duration::from_secs(60);
/// How long a killed kernel may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

impl K8sKernel {
    /// Returns the manifest for the restart if the kernelspec has changed since the pod was created.
    async fn updated_manifest(&self) -> Option<Manifest> {
        let cluster = Arc::clone(&self.cluster);
        let (id, pod, secret) = {
            let state = crate::lock(&self.state);
            (self.id, Arc::clone(&state.pod), state.secret.clone())
        };
        let planning = tokio::task::spawn_blocking(move || plan::updated_manifest(&cluster.options, id, &pod, &secret));
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
    pub(super) async fn prepare_restart(self: &Arc<Self>) {
        // With an agent there is nothing to prepare.
        let has_agent = self.route().agent().is_some();
        if has_agent || self.exit().is_some() || self.updated_manifest().await.is_some() {
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
    /// Returns `false` if the pod cannot be kept. In that case, the pod may already be gone.
    async fn restart_in_place(&self, context: &LaunchContext<'_>, grace: Duration) -> Result<bool, LaunchError> {
        if self.route().agent().is_some() {
            return self.restart_by_agent(context, grace).await;
        }
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
        let route = self.route();
        let mut updates = self.cluster.pod_cache.subscribe(self.id);
        let opened = start::wait_for_kernel(context, &mut updates, uid, &route).await;
        // The pod of a kernel that does not answer in time is removed, as after a failed start in a new pod.
        if let Err(LaunchError::TimedOut { .. }) = opened
            && let Err(error) = self.cluster.end(&pod, Duration::ZERO, &mut updates).await
        {
            tracing::warn!(kernel = %self.id, %error, "cannot remove the pod of a restarted kernel that does not answer");
        }
        opened.map(|()| true)
    }

    /// Starts the kernel in a new pod, after the old one was deleted.
    ///
    /// Creates the pod from `updated` if there is one, and otherwise recreates the old pod. Transient errors are retried,
    /// because otherwise the kernel would be lost.
    async fn start_in_new_pod(
        &self,
        context: &LaunchContext<'_>,
        mut updated: Option<Manifest>,
        (pod, secret): (&Pod, &BTreeMap<String, ByteString>),
    ) -> Result<StartOutcome, LaunchError> {
        let mut backoff = RESTART_BACKOFF;
        loop {
            let launch_lock = match self.registry.upgrade() {
                // Wait until the previous attempt's pod is removed.
                Some(registry) => Some(start::within(context, registry.launch_lock(self.id)).await?),
                None => None,
            };
            // Each attempt needs a manifest of its own, because its objects have new names.
            let manifest = updated.unwrap_or_else(|| Manifest::recreate(self.id, pod, secret));
            match start::start(context, manifest, launch_lock).await {
                Err(error) if is_transient(&error) && backoff.retries() < MAX_RESTART_RETRIES => {
                    let pause = backoff.next_pause();
                    if Instant::now() + pause >= context.deadline {
                        return Err(error);
                    }
                    tracing::warn!(kernel = %self.id, %error, "retrying a restart");
                    tokio::time::sleep(pause).await;
                    updated = self.updated_manifest().await;
                }
                outcome => return outcome,
            }
        }
    }

    pub(super) async fn restart_now(self: &Arc<Self>, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
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
        // An agent whose kernel has ended would only wait for a reader of its last entries.
        let has_ended = self.route().reported_exit().is_some();
        let grace = if has_ended { Duration::ZERO } else { grace };
        self.cluster.end(&pod, grace, &mut updates).await?;
        let result = match self.start_in_new_pod(&context, updated, (&pod, &secret)).await {
            // A concurrent restart or launch of the same kernel has created its pod first.
            Ok(StartOutcome::Exists | StartOutcome::Rival) => {
                let theirs = updates.borrow().present().cloned();
                match theirs {
                    Some(theirs) => start::adopt(&context, &theirs).await,
                    None => Err(ProviderError::failed(
                        "restart the kernel",
                        "another pod with the kernel's name was created and is already gone",
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

/// A restart in progress. Dropping it without `done` records that the restart failed or was cancelled.
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
            same.is_some_and(|now| phase::is_alive(now) || phase::assess(now, &[]) == PodPhase::Ending)
        };
        let has_ended = self.kernel.route().reported_exit().is_some();
        if still_exists && !has_ended {
            // The old pod still exists. If it is being deleted, its supervisor reports the exit.
            self.kernel.phase.send_replace(Phase::Running);
            self.kernel.supervise();
        } else {
            self.kernel.exited(self.exit.clone());
        }
    }
}
