//! Warm pools: pods that are created ahead of launches, each with an idle kernel.
//!
//! A pool's pod is created like any other, with its own key and Secret. One of its labels contains the pool's name,
//! which is the fingerprint of the pod's manifest. A launch with the same fingerprint claims the pod with one
//! conditional patch, which removes this label. So the cluster records which pods are claimed, and restarted or
//! concurrent gateways share a pool.
//!
//! A gateway waits for the kernels of all pods in its pools, including pods that other gateways created, and reads the
//! pods' keys in advance. So a claim does not wait for the kernel.

mod pool_diff;
mod reconciler;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::Utc;
use jupyter_protocol::KernelId;
use kernel_provider::{LaunchError, LaunchRequest, LaunchStage};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::task::AbortOnDrop;

use crate::cluster::{Claim, Cluster};
use crate::manifest;
use crate::names;
use crate::phase;
use crate::settings::WarmPool;
use crate::start::{self, LaunchContext, PodGuard, Ready};

/// The warm pools of one provider.
pub(crate) struct Pools {
    ready: Arc<ReadyPods>,
    _reconciler: AbortOnDrop,
}

/// Pods that can be handed out, by the id in their name.
#[derive(Default)]
struct ReadyPods(Mutex<HashMap<KernelId, WarmPod>>);

struct WarmPod {
    pool: String,
    limits: WarmPool,
    ready: Ready,
}

/// Result of a claim.
pub(crate) enum ClaimOutcome {
    Ready(Box<Ready>),
    /// No pod can be claimed; the text gives the reason.
    Cold(String),
    /// Another gateway is launching the same kernel at the same time. The claimed pod is being removed.
    Rival,
}

impl Pools {
    /// Keeps the pools of these kernelspecs filled until this is dropped. The pods remain after that.
    pub(crate) fn start(cluster: &Arc<Cluster>, specs: watch::Receiver<Arc<kernel_provider::Specs>>) -> Self {
        let ready = Arc::new(ReadyPods::default());
        let reconciler = tokio::spawn(reconciler::run(Arc::clone(cluster), specs, Arc::clone(&ready)));
        Self {
            ready,
            _reconciler: AbortOnDrop::new(reconciler.abort_handle()),
        }
    }

    /// Claims a pod of the pool for the kernel.
    ///
    /// # Errors
    /// [`LaunchError::TimedOut`] if the API server does not answer before the launch's deadline.
    /// [`LaunchError::Provider`] if a call fails, or it is unknown whether the claim succeeded.
    /// [`LaunchError::CannotStart`] if the API server refuses to list pods.
    pub(crate) async fn claim(
        &self,
        context: &LaunchContext<'_>,
        pool: &str,
        request: &LaunchRequest,
        launch_lock: &mut Option<OwnedMutexGuard<()>>,
    ) -> Result<ClaimOutcome, LaunchError> {
        let (cluster, id) = (context.cluster, context.id);
        let claim = Claim {
            id,
            token: manifest::random_token(),
            owner: request.owner.clone(),
            annotations: request.annotations.clone(),
        };
        loop {
            let Some(mut ready) = self.ready.take(cluster, pool) else {
                return Ok(ClaimOutcome::Cold("the warm pool has no ready pod".to_owned()));
            };
            let patch = {
                let (cluster, pod) = (Arc::clone(cluster), Arc::clone(&ready.pod));
                let (pool, claim) = (pool.to_owned(), claim.clone());
                async move { cluster.claim(&pod, &pool, &claim).await }
            };
            let mark = (names::CLAIM, claim.token.clone());
            let name = names::name(&ready.pod);
            let mut guard = PodGuard::new(cluster, id, name, mark, launch_lock.take(), patch);
            match start::within(context, guard.result()).await? {
                // Another gateway removed the pod before it saw the claim.
                Ok(pod) if pod.metadata.deletion_timestamp.is_some() => {
                    *launch_lock = guard.disarm();
                    continue;
                }
                Ok(_) => {}
                // The pod was claimed by another gateway, or is gone.
                Err(error) if matches!(error.code(), Some(404 | 409 | 422)) => {
                    *launch_lock = guard.disarm();
                    continue;
                }
                Err(error) if error.code().is_some_and(|code| code < 500) => {
                    *launch_lock = guard.disarm();
                    return Ok(ClaimOutcome::Cold(format!(
                        "the warm pool's pods cannot be claimed: {}",
                        error.text()
                    )));
                }
                Err(error) => return Err(error.launch_error("claim", &format!("the pod {name}"))),
            }
            let uid = names::uid(&ready.pod).to_owned();
            let has_rivals = start::within(context, cluster.has_rivals(id, &uid)).await?;
            if has_rivals.map_err(|error| error.launch_error("look for other pods of", &format!("the kernel {id}")))? {
                return Ok(ClaimOutcome::Rival);
            }
            let mut updates = cluster.pod_cache.subscribe(id);
            let seen = updates.wait_for(|cached| !cached.is_absent(&uid));
            if let Ok(seen) = start::within(context, seen).await?
                && let Some(pod) = seen.present()
            {
                ready.pod = Arc::clone(pod);
            }
            // A pod with an agent outlives its kernel, which may have ended.
            if let Some(agent) = ready.route.agent() {
                start::within(context, agent.started()).await??;
                if ready.route.reported_exit().is_some() {
                    *launch_lock = guard.disarm();
                    let removed = start::within(context, cluster.delete(&ready.pod, Duration::ZERO)).await?;
                    if let Err(error) = removed {
                        tracing::warn!(kernel = %id, %error, "cannot remove a warm pod whose kernel has ended");
                    }
                    continue;
                }
            }
            guard.disarm();
            context.progress.report(LaunchStage::Scheduled);
            context.progress.report(LaunchStage::Starting);
            return Ok(ClaimOutcome::Ready(Box::new(ready)));
        }
    }
}

impl ReadyPods {
    /// Takes a pod of the pool that can be handed out, as far as this gateway knows.
    fn take(&self, cluster: &Cluster, pool: &str) -> Option<Ready> {
        let mut warm = crate::lock(&self.0);
        loop {
            // The map's random order makes concurrent gateways choose different pods.
            let id = *warm.iter().find(|(_, one)| one.pool == pool)?.0;
            let one = warm.remove(&id)?;
            let cached = cluster.pod_cache.subscribe(id).borrow().clone();
            let is_usable = cached.present().is_some_and(|pod| {
                let age = Utc::now() - pool_diff::created(pod);
                names::uid(pod) == names::uid(&one.ready.pod) && age < one.limits.max_age() && phase::is_alive(pod)
            });
            if is_usable {
                return Some(one.ready);
            }
        }
    }
}
