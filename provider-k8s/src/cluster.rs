//! The API calls that start, signal and end kernels.

mod container;
mod deletion;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::{Backoff, ConnectionInfo, KernelId};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kernel_provider::ProviderError;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDrop, TaskTracker};

use crate::agent_route::{AgentRoute, Way};
use crate::api_error::{CallError, call};
use crate::phase::{self, PodPhase};
use crate::pod_cache::PodCache;
use crate::route::{PortForward, Route};
use crate::{K8sOptions, names};

/// The pauses before a pod's creation is retried after a concurrent change of the quota.
const CREATE_BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
const MAX_CREATE_RETRIES: u32 = 6;

/// A kernel's claim on a warm pod.
#[derive(Clone)]
pub(crate) struct Claim {
    pub(crate) id: KernelId,
    /// Random token of this claim. It identifies a claimed pod after the API server's answer was lost.
    pub(crate) token: String,
    pub(crate) owner: Option<String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// State shared by the kernels of one provider.
pub(crate) struct Cluster {
    pub(crate) options: K8sOptions,
    pub(crate) pods: Api<Pod>,
    secrets: Api<Secret>,
    pub(crate) pod_cache: Arc<PodCache>,
    /// Whether kernels are reached through port-forwards.
    forwards: bool,
    /// Tasks that remove the pods of cancelled launches, and of kernels with agents that were shut down.
    pub(crate) cleanup: TaskTracker,
    /// Cancels waiting for pods that a cancelled launch may still create.
    pub(crate) stop_late_cleanup: CancellationToken,
    _watches: Vec<AbortOnDrop>,
}

impl Cluster {
    pub(crate) async fn open(client: Client, options: K8sOptions) -> Result<Self, ProviderError> {
        let (pod_cache, watches) = PodCache::open(&client, &options.namespace, &names::selector(&options.name)).await?;
        Ok(Self {
            pods: Api::namespaced(client.clone(), &options.namespace),
            secrets: Api::namespaced(client, &options.namespace),
            pod_cache,
            forwards: options.reach.forwards(),
            options,
            cleanup: TaskTracker::new(),
            stop_late_cleanup: CancellationToken::new(),
            _watches: watches,
        })
    }

    pub(crate) fn secrets(&self) -> &Api<Secret> {
        &self.secrets
    }

    /// Opens a route to a pod that runs at this address. `secret` is the data of its Secret.
    pub(crate) fn route(
        &self,
        pod: &Pod,
        ip: &str,
        secret: &BTreeMap<String, ByteString>,
    ) -> Result<Route, ProviderError> {
        let name = names::name(pod);
        if let Some(launch) = secret.get(names::LAUNCH_KEY) {
            let way = if self.forwards {
                Way::PortForward(Box::new(self.pods.clone()), name.to_owned())
            } else {
                Way::PodAddress(ip.to_owned())
            };
            return Ok(Route::Agent(AgentRoute::new(way, &launch.0)?));
        }
        // The parse error is left out because it could reveal the key.
        let file = secret.get(names::CONNECTION_KEY);
        let file: Option<ConnectionInfo> = file.and_then(|file| serde_json::from_slice(&file.0).ok());
        let Some(file) = file.map(Box::new) else {
            let reason = "its Secret contains no valid connection file; shut the kernel down";
            return Err(ProviderError::failed(format!("connect to the pod {name}"), reason));
        };
        if !self.forwards {
            let ip = ip.to_owned();
            return Ok(Route::PodAddress { ip, file });
        }
        let forward = PortForward::open(&self.pods, name, &file, self.options.socket_dir.as_deref());
        let forward = forward.map_err(|error| ProviderError::failed("create the sockets of a port-forward", error))?;
        let forward = Box::new(forward);
        Ok(Route::PortForward { forward, file })
    }

    /// Whether the pod's Secret exists.
    pub(crate) async fn has_secret(&self, pod: &Pod) -> Result<bool, ProviderError> {
        let name = secret_name(pod);
        match call(self.secrets.get_metadata(&name)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.failed(format!("look for the Secret {name}"))),
        }
    }

    /// Reads the data of the pod's Secret.
    pub(crate) async fn secret_of(&self, pod: &Pod) -> Result<BTreeMap<String, ByteString>, ProviderError> {
        let name = secret_name(pod);
        let secret = call(self.secrets.get(&name))
            .await
            .map_err(|error| error.failed(format!("read the Secret {name}")))?;
        Ok(secret.data.unwrap_or_default())
    }

    /// Whether the kernel has other starting or running pods than the one with this UID.
    ///
    /// Lists the pods, because the watch may lag behind.
    pub(crate) async fn has_rivals(&self, id: KernelId, uid: &str) -> Result<bool, CallError> {
        let selector = format!("{},{}={id}", names::selector(&self.options.name), names::KERNEL_ID);
        let pods = call(self.pods.list(&ListParams::default().labels(&selector))).await?;
        let runs = |pod: &&Pod| {
            matches!(
                phase::assess(pod, &[]),
                PodPhase::Starting(_) | PodPhase::Running { .. }
            )
        };
        Ok(pods.items.iter().filter(runs).any(|pod| names::uid(pod) != uid))
    }

    /// Creates a pod that carries the annotation `mark`.
    pub(crate) async fn create(pods: &Api<Pod>, pod: &Pod, mark: &(&'static str, String)) -> Result<Pod, CallError> {
        let mut backoff = CREATE_BACKOFF;
        loop {
            let made = call(pods.create(&PostParams::default(), pod)).await;
            match made {
                // The client retries a call after status 503 or 504, and the first attempt may have created the pod.
                Err(error) if error.already_exists() => {
                    let there = call(pods.get_opt(names::name(pod))).await;
                    let own = there.ok().flatten();
                    let own = own.filter(|there| has_mark(there, mark));
                    return own.ok_or(error);
                }
                // A concurrent change of the same quota.
                Err(error) if error.is_conflict() && backoff.retries() < MAX_CREATE_RETRIES => {
                    tokio::time::sleep(backoff.next_pause()).await;
                }
                made => return made,
            }
        }
    }

    /// Claims a warm pod for a kernel.
    ///
    /// The patch only succeeds while the pod is still in the pool. So a pod is handed out once, even with concurrent
    /// claims.
    pub(crate) async fn claim(&self, pod: &Pod, pool: &str, claim: &Claim) -> Result<Pod, CallError> {
        let path = |kind: &str, name: &str| format!("/metadata/{kind}/{}", name.replace('/', "~1"));
        let mut steps = vec![
            json!({"op": "test", "path": "/metadata/uid", "value": names::uid(pod)}),
            json!({"op": "test", "path": path("labels", names::POOL), "value": pool}),
            json!({"op": "remove", "path": path("labels", names::POOL)}),
            json!({"op": "add", "path": path("labels", names::KERNEL_ID), "value": claim.id}),
            json!({"op": "add", "path": path("labels", names::EG_KERNEL_ID), "value": claim.id}),
            json!({"op": "add", "path": path("annotations", names::LAUNCHED), "value": names::launched_now()}),
            json!({"op": "add", "path": path("annotations", names::CLAIM), "value": claim.token}),
        ];
        if let Some(owner) = &claim.owner {
            steps.push(json!({"op": "add", "path": path("annotations", names::OWNER), "value": owner}));
        }
        if let Some(requested) = names::requested_value(&claim.annotations) {
            steps.push(json!({"op": "add", "path": path("annotations", names::REQUESTED), "value": requested}));
        }
        let steps = serde_json::from_value(Value::Array(steps)).map_err(kube::Error::SerdeError)?;
        call(
            self.pods
                .patch(names::name(pod), &PatchParams::default(), &Patch::<()>::Json(steps)),
        )
        .await
    }
}

/// Whether the pod was created or claimed by the attempt with this mark.
fn has_mark(pod: &Pod, mark: &(&'static str, String)) -> bool {
    names::annotation(pod, mark.0) == Some(&mark.1)
}

fn secret_name(pod: &Pod) -> String {
    let attempt = names::annotation(pod, names::ATTEMPT).unwrap_or_default();
    names::secret(names::name(pod), attempt)
}

#[cfg(test)]
mod tests;
