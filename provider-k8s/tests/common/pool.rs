//! Shared helpers of the warm pool tests.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use jupyter_protocol::KernelId;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{KernelHandle, KernelProvider as _, LaunchError, LaunchRequest, LaunchStage, Progress};
use kube::api::ListParams;
use provider_k8s::K8sProvider;
use serde_json::{Value, json};

use super::{LONG, TestNamespace};

pub(crate) const IPYKERNEL: &[&str] = &["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
pub(crate) const POOL: &str = "kernelmux.dev/warm-pool";

pub(crate) fn install(ns: &TestNamespace, name: &str, pool: Value) {
    ns.install(name, IPYKERNEL, json!({"warm_pool": pool}));
}

/// The unclaimed pods of all pools.
pub(crate) async fn unclaimed(ns: &TestNamespace) -> Vec<Pod> {
    let pods = ns.pods().list(&ListParams::default().labels(POOL)).await.unwrap();
    pods.items
}

pub(crate) fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect()
}

/// Launches a kernel. Also returns the reason why no warm pod was claimed, or `None` if one was claimed.
pub(crate) async fn launch_with_reason(
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

/// Waits until this number of unclaimed pods is running.
pub(crate) async fn wait_until_full(ns: &TestNamespace, size: usize) {
    super::eventually("the pool is full", async || {
        let pods = unclaimed(ns).await;
        let runs = |pod: &&Pod| {
            pod.metadata.deletion_timestamp.is_none()
                && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
        };
        pods.iter().filter(runs).count() == size
    })
    .await;
}
