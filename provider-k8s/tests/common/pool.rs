//! What the tests of warm pools share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Pod;
use kernel_provider::KernelId;
use kernel_provider::provider::{KernelHandle, KernelProvider as _, LaunchError, LaunchRequest, LaunchStage, Progress};
use kube::api::ListParams;
use provider_k8s::K8sProvider;
use serde_json::{Value, json};

use super::{LONG, Place};

pub(crate) const IPYKERNEL: &[&str] = &["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
pub(crate) const POOL: &str = "kernelmux.dev/warm-pool";

pub(crate) fn install(place: &Place, name: &str, pool: Value) {
    place.install(name, IPYKERNEL, json!({"warm_pool": pool}));
}

/// The pods that nobody has claimed.
pub(crate) async fn unclaimed(place: &Place) -> Vec<Pod> {
    let pods = place.pods().list(&ListParams::default().labels(POOL)).await.unwrap();
    pods.items
}

pub(crate) fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect()
}

/// Launches, and says why no pod that was kept ready was taken, if that is so.
pub(crate) async fn launch_as(
    provider: &K8sProvider,
    request: LaunchRequest,
) -> (Result<Arc<dyn KernelHandle>, LaunchError>, Option<String>) {
    let why = Arc::new(Mutex::new(None));
    let progress = Progress::new({
        let why = Arc::clone(&why);
        move |stage| {
            if let LaunchStage::Cold(text) = stage {
                *why.lock().unwrap() = Some(text);
            }
        }
    });
    let kernel = provider.launch(request, progress).await;
    let why = why.lock().unwrap().clone();
    (kernel, why)
}

pub(crate) fn request(spec: &str) -> LaunchRequest {
    let mut request = LaunchRequest::new(KernelId::random(), spec);
    request.timeout = LONG;
    request
}

/// Waits until so many pods are unclaimed and their kernels run.
pub(crate) async fn filled(place: &Place, size: usize) {
    super::eventually("the pool is full", async || {
        let pods = unclaimed(place).await;
        let runs = |pod: &&Pod| {
            pod.metadata.deletion_timestamp.is_none()
                && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
        };
        pods.iter().filter(runs).count() == size
    })
    .await;
}
