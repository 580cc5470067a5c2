//! ReadyPods pools: pods that are made ahead, with a kernel that waits in each.
//!
//! A pod of a pool is made like any other, with a key and a Secret of its own, and has a label that names the pool: the
//! fingerprint of what it was made from. A launch that wants just that makes it its own with one conditional patch, which
//! takes the label away. So the cluster knows whose each pod is, and gateways that are restarted, or that work side by
//! side, share a pool.
//!
//! A gateway waits for the kernels of all pods of its pools, whoever made them, and reads their keys then. A claim has
//! nothing left to wait for.

mod pool_diff;
mod reconciler;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use chrono::Utc;
use kernel_provider::KernelId;
use kernel_provider::provider::{LaunchError, LaunchStage};
use tokio::sync::{OwnedMutexGuard, watch};

use crate::AbortOnDrop;
use crate::cluster::{Claim, Cluster};
use crate::manifest;
use crate::names;
use crate::phase::{self, PodPhase};
use crate::settings::WarmPool;
use crate::start::{self, LaunchContext, PodGuard, Ready};

/// The warm pools of one provider.
pub(crate) struct Pools {
    ready: Arc<ReadyPods>,
    _reconciler: AbortOnDrop,
}

/// The pods that can be handed out, by the id that each was made with.
#[derive(Default)]
struct ReadyPods(Mutex<HashMap<KernelId, WarmPod>>);

struct WarmPod {
    pool: String,
    limits: WarmPool,
    ready: Ready,
}

/// What a claim came to.
pub(crate) enum ClaimOutcome {
    Ready(Box<Ready>),
    /// There is none; the text says why.
    Cold(String),
    /// Another gateway launches the same kernel at the same time; the pod that was claimed is being removed.
    Rival,
}

impl Pools {
    /// Keeps the pools of these kernelspecs filled until this is dropped. The pods stay.
    pub(crate) fn start(cluster: &Arc<Cluster>, specs: watch::Receiver<Arc<kernel_provider::provider::Specs>>) -> Self {
        let ready = Arc::new(ReadyPods::default());
        let reconciler = tokio::spawn(reconciler::run(Arc::clone(cluster), specs, Arc::clone(&ready)));
        Self {
            ready,
            _reconciler: AbortOnDrop::new(&reconciler),
        }
    }

    /// Makes a pod of the pool the kernel's.
    ///
    /// # Errors
    /// Where the API server does not answer in time, or it is not known what it did.
    pub(crate) async fn claim(
        &self,
        context: &LaunchContext<'_>,
        pool: &str,
        owner: Option<&str>,
        launch_lock: &mut Option<OwnedMutexGuard<()>>,
    ) -> Result<ClaimOutcome, LaunchError> {
        let (cluster, id) = (context.cluster, context.id);
        let claim = Claim {
            id,
            token: manifest::random_token(),
            owner: owner.map(str::to_owned),
        };
        loop {
            let Some(mut ready) = self.ready.take(cluster, pool) else {
                return Ok(ClaimOutcome::Cold("none that is kept ready is left".to_owned()));
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
                // Somebody removes it, who did not see the claim.
                Ok(pod) if pod.metadata.deletion_timestamp.is_some() => {
                    *launch_lock = guard.disarm();
                    continue;
                }
                Ok(_) => {}
                // Another has it, or it is gone.
                Err(error) if matches!(error.code(), Some(404 | 409 | 422)) => {
                    *launch_lock = guard.disarm();
                    continue;
                }
                Err(error) if error.code().is_some_and(|code| code < 500) => {
                    *launch_lock = guard.disarm();
                    return Ok(ClaimOutcome::Cold(format!(
                        "those kept ready cannot be had: {}",
                        error.text()
                    )));
                }
                Err(error) => return Err(error.launch_error(&format!("sure of the pod {name}"))),
            }
            let uid = names::uid(&ready.pod).to_owned();
            let asked = start::within(context, cluster.has_rivals(id, &uid)).await?;
            if asked.map_err(|error| error.launch_error("sure of the pod"))? {
                return Ok(ClaimOutcome::Rival);
            }
            let mut updates = cluster.pod_cache.subscribe(id);
            let seen = updates.wait_for(|cached| !cached.is_absent(&uid));
            if let Ok(seen) = start::within(context, seen).await?
                && let Some(pod) = seen.present()
            {
                ready.pod = Arc::clone(pod);
            }
            guard.disarm();
            context.progress.report(LaunchStage::Scheduled);
            context.progress.report(LaunchStage::Starting);
            return Ok(ClaimOutcome::Ready(Box::new(ready)));
        }
    }
}

impl ReadyPods {
    /// One of the pool that can be handed out, as far as is known here.
    fn take(&self, cluster: &Cluster, pool: &str) -> Option<Ready> {
        let mut warm = crate::lock(&self.0);
        loop {
            // In no order, so that gateways that claim at the same time rarely want the same.
            let id = *warm.iter().find(|(_, one)| one.pool == pool)?.0;
            let one = warm.remove(&id)?;
            let cached = cluster.pod_cache.subscribe(id).borrow().clone();
            let is_there = cached.present().is_some_and(|pod| {
                let age = Utc::now() - pool_diff::created(pod);
                names::uid(pod) == names::uid(&one.ready.pod)
                    && age < one.limits.max_age()
                    && matches!(phase::assess(pod, &[]), PodPhase::Running { .. })
            });
            if is_there {
                return Some(one.ready);
            }
        }
    }
}
