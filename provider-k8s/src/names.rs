//! What the provider's objects are called and marked with.

use chrono::{DateTime, SecondsFormat, Utc};
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::KernelId;
use kernel_provider::provider::KernelRecord;

/// The container that runs the kernel.
pub(crate) const CONTAINER: &str = "kernel";
/// The volume with the connection file.
pub(crate) const VOLUME: &str = "kernelmux-connection";
/// Where that is mounted.
pub(crate) const CONNECTION_DIR: &str = "/run/kernelmux";
/// The connection file, as the kernel sees it.
pub(crate) const CONNECTION_FILE: &str = "/run/kernelmux/connection.json";
/// A volume for a copy of it that the kernel can write.
pub(crate) const COPY_VOLUME: &str = "kernelmux-connection-copy";
pub(crate) const COPY_DIR: &str = "/run/kernelmux-rw";
pub(crate) const COPY_FILE: &str = "/run/kernelmux-rw/connection.json";
/// Its key in the Secret.
pub(crate) const CONNECTION_KEY: &str = "connection.json";
/// In front of the names of the variables that the Secret holds.
pub(crate) const ENV_PREFIX: &str = "env.";

pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub(crate) const MANAGER_NAME: &str = "kernelmux";
pub(crate) const PROVIDER: &str = "kernelmux.dev/provider";
pub(crate) const KERNEL_ID: &str = "kernelmux.dev/kernel-id";
/// The same as tools have it that know Enterprise Gateway.
pub(crate) const EG_KERNEL_ID: &str = "kernel_id";
/// An annotation, since a kernelspec's name or a user's can be what no label may.
pub(crate) const SPEC: &str = "kernelmux.dev/spec";
pub(crate) const OWNER: &str = "kernelmux.dev/owner";
pub(crate) const LAUNCHED: &str = "kernelmux.dev/launched";
pub(crate) const INTERRUPT: &str = "kernelmux.dev/interrupt";
/// Which launch made this pod: who launched it can tell it from another of the same name.
pub(crate) const ATTEMPT: &str = "kernelmux.dev/attempt";
/// A label: of which warm pool a pod is, as long as nobody has claimed it.
pub(crate) const POOL: &str = "kernelmux.dev/warm-pool";
/// What the kernelspec said when the pod was made: its fingerprint without what the launch added.
pub(crate) const SETTINGS: &str = "kernelmux.dev/settings";
/// The directory that the launch asked for.
pub(crate) const WORKING_DIR: &str = "kernelmux.dev/working-dir";
/// `in-place` where the pod outlives its kernel's restart.
pub(crate) const RESTART: &str = "kernelmux.dev/restart";
pub(crate) const IN_PLACE: &str = "in-place";
/// Which launch claimed the pod.
pub(crate) const CLAIM: &str = "kernelmux.dev/claim";

/// The pod of a kernel. The same for each launch of the id, so that there can be one only. A pod that was claimed keeps
/// the name that it was made with.
pub(crate) fn pod(id: KernelId) -> String {
    format!("kernel-{id}")
}

/// The Secret of a pod. Another for each attempt, since the one before may not be cleared away yet.
pub(crate) fn secret(pod_name: &str, attempt: &str) -> String {
    format!("{pod_name}-{attempt}")
}

/// The id that a pod of this name was made with.
pub(crate) fn id_in_name(pod_name: &str) -> Option<KernelId> {
    pod_name.strip_prefix("kernel-")?.parse().ok()
}

/// Which pods are this provider's.
pub(crate) fn selector(provider: &str) -> String {
    format!("{MANAGED_BY}={MANAGER_NAME},{PROVIDER}={provider}")
}

pub(crate) fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(crate) fn kernel_id(pod: &Pod) -> Option<KernelId> {
    pod.metadata.labels.as_ref()?.get(KERNEL_ID)?.parse().ok()
}

/// The warm pool that the pod is in, where nobody has claimed it.
pub(crate) fn pool(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(POOL).map(String::as_str)
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The time now, as the annotation has it.
pub(crate) fn launched_now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// The kernel's record, as its pod has it.
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
}
