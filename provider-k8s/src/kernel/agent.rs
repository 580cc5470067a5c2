//! Kernels with an agent: their end, restarts in place and shutdown over the link.

use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kernel_provider::agent::{ANSWER_DEADLINE, Answer, Control, Link};
use kernel_provider::{Exit, ExitCause, LaunchError, Phase, ProviderError};
use tokio::time::timeout;

use super::{EXIT_EVENT_TIMEOUT, K8sKernel};
use crate::names;
use crate::phase::{self, PodPhase};
use crate::pod_cache::CachedPod;
use crate::route::Route;
use crate::start::LaunchContext;

/// How long an agent may take to deliver its last entries and end, after its kernel was shut down.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(10);

/// Whether the pod with this UID, and with it its agent, has ended or is being deleted.
fn is_over(cached: &CachedPod, uid: &str) -> bool {
    // A starting pod counts as alive, because an agent may answer before its container is reported to run.
    cached.is_absent(uid) || cached.present().is_some_and(|pod| !phase::is_alive(pod))
}

/// The exit that the agent reported last, if the kernel has not started again.
fn reported_exit(link: &Link) -> Option<Exit> {
    match &link.phase().borrow().phase {
        Phase::Exited(exit) => Some(exit.clone()),
        _ => None,
    }
}

/// Waits until the agent reports the kernel's end.
pub(super) async fn follow_agent(kernel: Weak<K8sKernel>, link: Arc<Link>) {
    let mut phase = link.phase();
    loop {
        phase.mark_unchanged();
        if let Some(exit) = reported_exit(&link) {
            if let Some(kernel) = kernel.upgrade() {
                kernel.agent_reported(exit).await;
            }
            return;
        }
        if phase.changed().await.is_err() {
            return;
        }
    }
}

impl Route {
    /// How the kernel ended, as far as its agent has reported.
    pub(crate) fn reported_exit(&self) -> Option<Exit> {
        reported_exit(&self.agent()?.link())
    }

    /// Whether the kernel's agent has no undelivered entries, or there is no agent.
    pub(crate) async fn is_delivered(&self) -> bool {
        let Some(agent) = self.agent() else { return true };
        let welcome = timeout(ANSWER_DEADLINE, agent.link().welcome()).await;
        matches!(welcome, Ok(Ok(welcome)) if welcome.is_delivered)
    }
}

impl K8sKernel {
    /// The route to the current pod.
    pub(super) fn route(&self) -> Arc<Route> {
        Arc::clone(&crate::lock(&self.state).route)
    }

    /// Records the kernel's end. If the agent ended the kernel because its pod was deleted, the cause is derived from
    /// the pod.
    async fn agent_reported(&self, mut exit: Exit) {
        let is_ending = crate::lock(&self.state).is_ending;
        let is_deleted = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        if exit.cause == ExitCause::Requested && !is_ending && !is_deleted(&self.pod()) {
            let uid = names::uid(&self.pod()).to_owned();
            let mut updates = self.cluster.pod_cache.subscribe(self.id);
            // Wait until the watch has shown the deletion or the end. `is_ok` drops the guard that `wait_for` returns.
            let _ = timeout(EXIT_EVENT_TIMEOUT, updates.wait_for(|cached| is_over(cached, &uid)))
                .await
                .is_ok();
        }
        let now = self.cluster.pod_cache.subscribe(self.id).borrow().pod.clone();
        let pod = now
            .filter(|now| names::uid(now) == names::uid(&self.pod()))
            .unwrap_or_else(|| self.pod());
        if !is_ending && is_deleted(&pod) {
            exit.cause = phase::removal_cause(&pod);
        } else if let (ExitCause::Requested, PodPhase::Ended(cause)) = (&exit.cause, phase::assess(&pod, &[])) {
            exit.cause = cause;
        }
        self.pod_ended(exit);
    }

    /// Whether the agent can be asked to end or restart the kernel.
    fn has_running_agent(&self, route: &Route, pod: &Pod) -> bool {
        route.agent().is_some() && phase::is_alive(pod)
    }

    /// Ends the kernel and starts it again in the same pod.
    ///
    /// Returns `false` if the pod cannot be kept; the pod may be gone then.
    pub(super) async fn restart_by_agent(
        &self,
        context: &LaunchContext<'_>,
        grace: Duration,
    ) -> Result<bool, LaunchError> {
        let (route, pod) = (self.route(), self.pod());
        let is_kept = names::annotation(&pod, names::RESTART) == Some(names::IN_PLACE);
        let (Some(agent), true) = (route.agent(), is_kept && self.has_running_agent(&route, &pod)) else {
            return Ok(false);
        };
        let mut updates = self.cluster.pod_cache.subscribe(self.id);
        let restarted = tokio::select! {
            restarted = agent.launched(Control::Restart { grace }) => Some(restarted),
            _ = updates.wait_for(|cached| is_over(cached, names::uid(&pod))) => return Ok(false),
            () = tokio::time::sleep_until(context.deadline) => None,
        };
        let restarted = match restarted {
            Some(restarted) => restarted,
            None => Err(LaunchError::TimedOut {
                timeout: context.timeout,
                output: agent.link().output().await.unwrap_or_default(),
            }),
        };
        match restarted {
            Ok(()) => Ok(true),
            Err(LaunchError::Provider(ProviderError::Gone(_))) => Ok(false),
            Err(error) => {
                // The pod of a kernel that does not answer in time is removed, as after a failed start in a new pod.
                if matches!(error, LaunchError::TimedOut { .. })
                    && let Err(error) = self.cluster.end(&pod, Duration::ZERO, &mut updates).await
                {
                    tracing::warn!(kernel = %self.id, %error, "cannot remove the pod of a restarted kernel that does not answer");
                }
                Err(error)
            }
        }
    }

    /// Asks the agent to end the kernel. A separate task removes the pod once the agent has delivered its last entries
    /// and ended, or after [`DELIVERY_DEADLINE`].
    ///
    /// Returns `None` if there is no running agent, or it does not answer.
    pub(super) async fn shutdown_by_agent(self: &Arc<Self>, grace: Duration) -> Option<Exit> {
        let (route, pod) = (self.route(), self.pod());
        let agent = route.agent().filter(|_| self.has_running_agent(&route, &pod))?;
        let mut updates = self.cluster.pod_cache.subscribe(self.id);
        let link = agent.link();
        let asked = tokio::select! {
            answer = timeout(grace + ANSWER_DEADLINE, link.control(Control::Shutdown { grace })) => answer,
            _ = updates.wait_for(|cached| is_over(cached, names::uid(&pod))) => return None,
        };
        let Ok(Ok(Answer::Ended(exit))) = asked else {
            return None;
        };
        // Held until the pod is gone, so that the next launch of the id does not find it.
        let launch_lock = match self.registry.upgrade() {
            Some(registry) => timeout(ANSWER_DEADLINE, registry.launch_lock(self.id)).await.ok(),
            None => None,
        };
        let kernel = Arc::clone(self);
        self.cluster.cleanup.spawn(async move {
            let ended = updates.wait_for(|cached| is_over(cached, names::uid(&pod)));
            let _ = timeout(DELIVERY_DEADLINE, ended).await;
            if let Err(error) = kernel.cluster.end(&pod, Duration::ZERO, &mut updates).await {
                tracing::warn!(kernel = %kernel.id, %error, "cannot remove the pod of a kernel that was shut down");
            }
            link.close();
            kernel.forget();
            drop(launch_lock);
        });
        Some(exit)
    }
}
