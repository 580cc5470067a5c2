//! A node without a kubelet, for more pods than this machine could run.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::DEADLINE;
use super::namespace::BenchNamespace;
use crate::Result;

/// The ports of a kernel's sockets in a pod.
const PORTS: std::ops::RangeInclusive<u16> = 9301..=9305;

/// Interval of the fake node's status reports. By default, a cluster marks a node as not ready after 50 s without one.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Label of the fake node.
pub(super) const FAKE: &str = "kernelmux.dev/fake";

/// A fake node that reports its pods as running at this machine's address.
pub(super) struct FakeNode {
    nodes: Api<Node>,
    tasks: Vec<AbortHandle>,
}

impl FakeNode {
    pub(super) async fn start(ns: &BenchNamespace) -> Result<Self> {
        let nodes: Api<Node> = Api::all(ns.client.clone());
        let node = json!({"metadata": {"name": ns.namespace, "labels": {FAKE: ns.namespace}}});
        nodes
            .create(&PostParams::default(), &serde_json::from_value(node)?)
            .await?;
        report_ready(&nodes, &ns.namespace).await?;
        // The cluster schedules pods to the node once it has removed the node's taints.
        let mut watch = watcher(nodes.clone(), watcher::Config::default()).boxed();
        let admitted = async {
            while let Some(event) = watch.try_next().await? {
                if let watcher::Event::Apply(node) | watcher::Event::InitApply(node) = event
                    && node.metadata.name.as_deref() == Some(&ns.namespace)
                    && node
                        .spec
                        .and_then(|spec| spec.taints)
                        .is_none_or(|taints| taints.is_empty())
                {
                    return Ok(());
                }
            }
            Result::Err("the watch ended".into())
        };
        tokio::time::timeout(DEADLINE, admitted).await??;
        let mut tasks = Vec::new();
        for port in PORTS {
            let listener = TcpListener::bind(("127.0.0.1", port)).await?;
            let serving = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
            tasks.push(serving.abort_handle());
        }
        let pods = ns.pods();
        let kubelet = tokio::spawn(async move {
            let mut watch = watcher(pods.clone(), watcher::Config::default()).boxed();
            while let Ok(Some(event)) = watch.try_next().await {
                let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else {
                    continue;
                };
                let name = pod.metadata.name.clone().unwrap_or_default();
                let is_bound = pod.spec.is_some_and(|spec| spec.node_name.is_some());
                let is_new = pod
                    .status
                    .is_none_or(|status| status.phase.as_deref() == Some("Pending"));
                if pod.metadata.deletion_timestamp.is_some() {
                    let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
                } else if is_bound && is_new {
                    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                    let status = json!({"status": {"phase": "Running",
                        "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}],
                        "containerStatuses": [{"name": "kernel", "ready": true, "restartCount": 0, "image": "fake",
                            "imageID": "fake", "started": true, "state": {"running": {"startedAt": now}}}]}});
                    let _ = pods
                        .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
                        .await;
                }
            }
        });
        tasks.push(kubelet.abort_handle());
        let (alive, name) = (nodes.clone(), ns.namespace.clone());
        let heartbeat = tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                if report_ready(&alive, &name).await.is_err() {
                    break;
                }
            }
        });
        tasks.push(heartbeat.abort_handle());
        Ok(Self { nodes, tasks })
    }

    pub(super) async fn remove(self, ns: &BenchNamespace) -> Result<()> {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.nodes.delete(&ns.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// Reports a node as ready and with free capacity, as a kubelet does periodically.
async fn report_ready(nodes: &Api<Node>, name: &str) -> Result<()> {
    let room = json!({"cpu": "1000", "memory": "1000Gi", "pods": "10000"});
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": [
        {"type": "Ready", "status": "True", "reason": "Fake", "message": "", "lastHeartbeatTime": now,
            "lastTransitionTime": now},
    ]}});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}
