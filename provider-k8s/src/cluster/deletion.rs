//! Deletes pods, also those that cancelled launches may have left.

use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::{Backoff, KernelId};
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::ProviderError;
use kube::api::{DeleteParams, Preconditions};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Cluster, has_mark};
use crate::api_error::call;
use crate::names;
use crate::pod_cache::CachedPod;

/// How long a pod's deletion may take beyond its grace period.
const DELETION_DEADLINE: Duration = Duration::from_secs(30);
/// How long cleanup of a cancelled launch is retried.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(600);
/// How long an unanswered call may still be carried out. An API server times out after one minute.
pub(super) const LATE_CALL_WINDOW: Duration = Duration::from_secs(120);
/// The pauses before a failed cleanup is retried.
const CLEANUP_BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

impl Cluster {
    /// Deletes the pod with this UID. Does nothing if it is gone or was replaced.
    pub(crate) async fn delete(&self, pod: &Pod, grace: Duration) -> Result<(), ProviderError> {
        let name = names::name(pod);
        let seconds = u32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        let params = DeleteParams {
            grace_period_seconds: Some(seconds),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.delete_with(name, &params).await.map(drop)
    }

    /// Deletes a pod if it has not changed since `pod` was read, so a pod that was claimed since then stays.
    ///
    /// Returns whether the pod is gone or being deleted.
    pub(crate) async fn delete_unchanged(&self, pod: &Pod) -> Result<bool, ProviderError> {
        let params = DeleteParams {
            grace_period_seconds: Some(1),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: pod.metadata.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        self.delete_with(names::name(pod), &params).await
    }

    async fn delete_with(&self, name: &str, params: &DeleteParams) -> Result<bool, ProviderError> {
        match call(self.pods.delete(name, params)).await {
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) if !error.is_not_found() => Err(error.failed(format!("delete the pod {name}"))),
            _ => Ok(true),
        }
    }

    /// Deletes the pod with this UID and waits until it is gone, that is, until its node has ended its processes.
    ///
    /// With a `grace` of zero, the processes are killed after one second. If the node does not answer, the pod is then
    /// removed from the API only.
    pub(crate) async fn end(
        &self,
        pod: &Pod,
        grace: Duration,
        updates: &mut watch::Receiver<CachedPod>,
    ) -> Result<(), ProviderError> {
        let name = names::name(pod);
        // With a grace period of zero the pod would disappear from the API before its processes end.
        self.delete(pod, grace.max(Duration::from_secs(1))).await?;
        let is_gone = |cached: &CachedPod| cached.is_absent(names::uid(pod));
        let within = grace.saturating_add(DELETION_DEADLINE);
        if tokio::time::timeout(within, updates.wait_for(is_gone)).await.is_ok() {
            return Ok(());
        }
        if grace.is_zero() {
            self.delete(pod, Duration::ZERO).await?;
            if tokio::time::timeout(DELETION_DEADLINE, updates.wait_for(is_gone))
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        let reason = "the pod still exists; its node may be unreachable (a shutdown without a grace period removes the \
                      pod anyway)";
        Err(ProviderError::failed(format!("end the pod {name}"), reason))
    }

    /// Deletes the pod that a failed or cancelled launch may have left: the one with this name, if it carries `mark`.
    ///
    /// Retries failed calls for [`CLEANUP_DEADLINE`].
    pub(crate) async fn clean_up(&self, id: KernelId, name: &str, mark: &(&'static str, String)) {
        let deadline = Instant::now() + CLEANUP_DEADLINE;
        let mut backoff = CLEANUP_BACKOFF;
        let mut updates = self.pod_cache.subscribe(id);
        loop {
            let cleared = match call(self.pods.get_opt(name)).await {
                Ok(Some(pod)) if has_mark(&pod, mark) => self.end(&pod, Duration::ZERO, &mut updates).await,
                Ok(_) => Ok(()),
                Err(error) => Err(error.failed(format!("look for the pod {name}"))),
            };
            let Err(error) = cleared else {
                return;
            };
            if Instant::now() > deadline {
                tracing::error!(kernel = %id, %error, "cannot remove the pod of a cancelled launch");
                return;
            }
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    /// Deletes the pod with this name and `mark` if it appears later, after an unanswered call.
    pub(crate) async fn clean_up_late(&self, id: KernelId, name: &str, mark: &(&'static str, String)) {
        let mut updates = self.pod_cache.subscribe(id);
        let is_it = |pod: &Arc<Pod>| names::name(pod) == name && has_mark(pod, mark);
        let comes = async {
            let seen = tokio::time::timeout(
                LATE_CALL_WINDOW,
                updates.wait_for(|cached| cached.present().is_some_and(is_it)),
            );
            seen.await.is_ok_and(|seen| seen.is_ok())
        };
        if self.stop_late_cleanup.run_until_cancelled(comes).await == Some(true) {
            self.clean_up(id, name, mark).await;
        }
    }
}
