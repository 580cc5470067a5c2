//! Names, labels and annotations of the provider's objects.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use jupyter_protocol::KernelId;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::KernelRecord;

/// The container that runs the kernel.
pub(crate) const CONTAINER: &str = "kernel";
/// The volume with the connection file, or with an agent's launch.
pub(crate) const VOLUME: &str = "kernelmux-connection";
/// Mount path of this volume.
pub(crate) const CONNECTION_DIR: &str = "/run/kernelmux";
/// The connection file's path in the pod.
pub(crate) const CONNECTION_FILE: &str = "/run/kernelmux/connection.json";
/// The volume for a writable copy of the connection file, with its mount path and the copy's path.
pub(crate) const COPY_VOLUME: &str = "kernelmux-connection-copy";
pub(crate) const COPY_DIR: &str = "/run/kernelmux-rw";
pub(crate) const COPY_FILE: &str = "/run/kernelmux-rw/connection.json";
/// The connection file's key in the Secret.
pub(crate) const CONNECTION_KEY: &str = "connection.json";
/// The key of the agent's launch in the Secret, and its path in the pod.
pub(crate) const LAUNCH_KEY: &str = "launch.json";
pub(crate) const LAUNCH_FILE: &str = "/run/kernelmux/launch.json";
/// The name of the agent's program, of the volume with the program and the agent's files, and of the init container
/// that copies the program into the volume.
pub(crate) const AGENT: &str = "kernelmux-agent";
/// Mount path of the agent's volume.
pub(crate) const AGENT_DIR: &str = "/kernelmux";
/// Prefix of the keys that hold environment variables in the Secret.
pub(crate) const ENV_PREFIX: &str = "env.";

pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub(crate) const MANAGER_NAME: &str = "kernelmux";
pub(crate) const PROVIDER: &str = "kernelmux.dev/provider";
pub(crate) const KERNEL_ID: &str = "kernelmux.dev/kernel-id";
/// Label with the kernel's id for tools made for Enterprise Gateway.
pub(crate) const EG_KERNEL_ID: &str = "kernel_id";
/// Annotations instead of labels, because names of kernelspecs and users may contain characters that labels may not.
pub(crate) const SPEC: &str = "kernelmux.dev/spec";
pub(crate) const OWNER: &str = "kernelmux.dev/owner";
/// Annotation with the launch request's annotations, as a JSON object.
pub(crate) const REQUESTED: &str = "kernelmux.dev/annotations";
pub(crate) const LAUNCHED: &str = "kernelmux.dev/launched";
pub(crate) const INTERRUPT: &str = "kernelmux.dev/interrupt";
/// Annotation with the token of the launch attempt that created the pod. It identifies the pod among others with the
/// same name.
pub(crate) const ATTEMPT: &str = "kernelmux.dev/attempt";
/// Label with the warm pool of an unclaimed pod.
pub(crate) const POOL: &str = "kernelmux.dev/warm-pool";
/// Annotation with the fingerprint that the kernelspec had when the pod was created, without the launch's own settings.
pub(crate) const SETTINGS: &str = "kernelmux.dev/settings";
/// Annotation with the working directory that the launch requested.
pub(crate) const WORKING_DIR: &str = "kernelmux.dev/working-dir";
/// Annotation that is `in-place` if the pod outlives a restart of its kernel.
pub(crate) const RESTART: &str = "kernelmux.dev/restart";
pub(crate) const IN_PLACE: &str = "in-place";
/// Annotation with the token of the claim on a warm pod.
pub(crate) const CLAIM: &str = "kernelmux.dev/claim";

/// Name of a kernel's pod. It is the same for every launch of the id, so the API server admits only one such pod. A
/// claimed pod keeps its original name.
pub(crate) fn pod(id: KernelId) -> String {
    format!("kernel-{id}")
}

/// Name of a pod's Secret. It differs between attempts, because an earlier attempt's Secret may not be cleaned up yet.
pub(crate) fn secret(pod_name: &str, attempt: &str) -> String {
    format!("{pod_name}-{attempt}")
}

/// The kernel id in a pod's name, which is the id that the pod was created with.
pub(crate) fn id_in_name(pod_name: &str) -> Option<KernelId> {
    pod_name.strip_prefix("kernel-")?.parse().ok()
}

/// Label selector for this provider's pods.
pub(crate) fn selector(provider: &str) -> String {
    format!("{MANAGED_BY}={MANAGER_NAME},{PROVIDER}={provider}")
}

pub(crate) fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(crate) fn kernel_id(pod: &Pod) -> Option<KernelId> {
    pod.metadata.labels.as_ref()?.get(KERNEL_ID)?.parse().ok()
}

/// The warm pool of the pod, or `None` if the pod was claimed or never was in a pool.
pub(crate) fn pool(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(POOL).map(String::as_str)
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The annotations of the launch request.
pub(crate) fn requested_annotations(pod: &Pod) -> BTreeMap<String, String> {
    annotation(pod, REQUESTED)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// Annotations of a launch request as the value of [`REQUESTED`]; `None` if there are none.
pub(crate) fn requested_value(annotations: &BTreeMap<String, String>) -> Option<String> {
    (!annotations.is_empty()).then(|| serde_json::json!(annotations).to_string())
}

/// The current time, as the value of [`LAUNCHED`].
pub(crate) fn launched_now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Builds the kernel's record from its pod.
pub(crate) fn record(provider: &str, id: KernelId, pod: &Pod) -> KernelRecord {
    let created = || pod.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string());
    let launched = annotation(pod, LAUNCHED)
        .map(str::to_owned)
        .or_else(created)
        .and_then(|text| DateTime::parse_from_rfc3339(&text).ok())
        .map_or(DateTime::UNIX_EPOCH, |time| time.with_timezone(&Utc));
    KernelRecord::new(
        provider,
        id,
        annotation(pod, SPEC).unwrap_or_default(),
        annotation(pod, OWNER).map(str::to_owned),
        launched,
        serde_json::json!({
            "namespace": pod.metadata.namespace,
            "pod": pod.metadata.name,
            "uid": pod.metadata.uid,
        }),
    )
    .with_annotations(requested_annotations(pod))
}
