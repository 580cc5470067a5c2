//! Derives a kernel's phase from its pod and the pod's events. Pure functions.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Event, Pod, PodCondition};
use kernel_provider::ExitCause;

use crate::names;

/// Waiting reasons of a container that are permanent, or not worth waiting for.
const CANNOT_START: &[&str] = &[
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreCreateHookError",
    "PreStartHookError",
    "PostStartHookError",
    "CrashLoopBackOff",
];
/// Termination reasons of a container that never ran.
const NEVER_RAN: &[&str] = &["StartError", "ContainerCannotRun"];
/// Reasons of a pod that the kubelet rejected, which are reported as a lack of room. `OutOf` is followed by the
/// resource, as in `OutOfcpu` or `OutOfnvidia.com/gpu`.
const NO_ROOM_OF: &str = "OutOf";
const NO_ROOM: &[&str] = &["UnexpectedAdmissionError", "NodeAffinity"];
/// This message usually means that a volume is still being provisioned, which is not a lack of room. If the
/// provisioning never completes, the launch times out.
const UNBOUND: &str = "unbound immediate PersistentVolumeClaims";
/// Exit codes above this are 128 plus a signal number.
const SIGNALLED: i32 = 128;
const LAST_SIGNAL: i32 = 64;
const SIGKILL: i32 = 9;

/// The phase of a pod's kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodPhase {
    /// The kernel is starting.
    Starting(StartStep),
    /// The kernel will not start.
    CannotStart(StartFailure),
    /// The kernel's process is running.
    Running {
        /// The pod's IP address.
        ip: String,
    },
    /// The pod is being deleted, and its kernel has not ended yet.
    Ending,
    /// The kernel's process has ended.
    Ended(ExitCause),
}

/// How far a pod's start has progressed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StartStep {
    /// No node has been chosen yet.
    Accepted,
    /// A node has been chosen.
    Scheduled,
    /// An image is being pulled; carries the event's message.
    Pulling(String),
}

/// Why a pod does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StartFailure {
    /// No node has room for the pod; carries Kubernetes' message.
    #[error("no node has room for the pod: {0}")]
    NoRoom(String),
    /// The pod's image, container or configuration is faulty.
    #[error("{reason}: {message}")]
    Broken {
        /// Kubernetes' reason code, such as `ErrImagePull`.
        reason: String,
        /// Kubernetes' message.
        message: String,
    },
}

/// Determines the phase of a pod, given its events.
pub(crate) fn assess(pod: &Pod, events: &[Event]) -> PodPhase {
    if let Some(phase) = ended(pod) {
        return phase;
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return PodPhase::Ending;
    }
    let status = pod.status.clone().unwrap_or_default();
    // Other containers do not count: a restarted sidecar does not end the kernel.
    let is_running = kernel_container(pod)
        .and_then(|container| container.state.as_ref())
        .is_some_and(|state| state.running.is_some());
    if let Some(ip) = status.pod_ip.filter(|ip| is_running && !ip.is_empty()) {
        return PodPhase::Running { ip };
    }
    let scheduled = condition(pod, "PodScheduled");
    if let Some(refused) = scheduled.filter(|scheduled| scheduled.status == "False") {
        let reason = refused.reason.clone().unwrap_or_default();
        let message = refused.message.as_deref().unwrap_or_default();
        // If a node is nominated, other pods are being evicted from it to make room.
        let is_nominated = status.nominated_node_name.as_ref().is_some_and(|node| !node.is_empty());
        if reason == "Unschedulable" && !is_nominated && !message.contains(UNBOUND) {
            return PodPhase::CannotStart(StartFailure::NoRoom(refused.message.clone().unwrap_or(reason)));
        }
    }
    // A failing init container from the pod template also blocks the start.
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    for container in containers {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        if let Some(reason) = waiting.and_then(|waiting| waiting.reason.as_deref())
            && CANNOT_START.contains(&reason)
        {
            let message = waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default();
            return broken(reason, &message);
        }
    }
    PodPhase::Starting(step(pod, events))
}

/// Whether the pod's kernel is starting or running.
pub(crate) fn is_alive(pod: &Pod) -> bool {
    matches!(assess(pod, &[]), PodPhase::Starting(_) | PodPhase::Running { .. })
}

/// The pod's IP address, which it has before its containers run.
pub(crate) fn address(pod: &Pod) -> Option<&str> {
    let ip = pod.status.as_ref()?.pod_ip.as_deref();
    ip.filter(|ip| !ip.is_empty())
}

fn step(pod: &Pod, events: &[Event]) -> StartStep {
    let pulling = events
        .iter()
        .rfind(|event| matches!(event.reason.as_deref(), Some("Pulling" | "Pulled" | "Failed")))
        .filter(|event| event.reason.as_deref() == Some("Pulling"));
    let is_scheduled = condition(pod, "PodScheduled").is_some_and(|scheduled| scheduled.status == "True");
    match pulling {
        Some(event) => StartStep::Pulling(event.message.clone().unwrap_or_default()),
        None if is_scheduled => StartStep::Scheduled,
        None => StartStep::Accepted,
    }
}

fn broken(reason: &str, message: &str) -> PodPhase {
    PodPhase::CannotStart(StartFailure::Broken {
        reason: reason.to_owned(),
        message: message.to_owned(),
    })
}

fn ended(pod: &Pod) -> Option<PodPhase> {
    let status = pod.status.as_ref()?;
    let terminated = kernel_container(pod)
        .and_then(|container| container.state.as_ref())
        .and_then(|state| state.terminated.as_ref());
    let is_over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    if terminated.is_none() && !is_over {
        return None;
    }
    // With the restart policy `Never`, a failing init container ends the pod before the kernel's container starts.
    let failed = status.init_container_statuses.iter().flatten().find_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then_some((&container.name, ended))
    });
    if let (None, Some((name, ended))) = (terminated, failed) {
        let why = ended
            .message
            .clone()
            .or_else(|| ended.reason.clone())
            .unwrap_or_default();
        let message = format!("its init container {name} exited with code {}: {why}", ended.exit_code);
        return Some(broken("InitContainerFailed", &message));
    }
    let reason = status.reason.as_deref().unwrap_or_default();
    let message = status.message.clone().unwrap_or_else(|| reason.to_owned());
    if NO_ROOM.contains(&reason) || reason.starts_with(NO_ROOM_OF) {
        return Some(PodPhase::CannotStart(StartFailure::NoRoom(message)));
    }
    if let Some(terminated) = terminated
        && let Some(reason) = terminated.reason.as_deref()
        && NEVER_RAN.contains(&reason)
    {
        return Some(broken(reason, terminated.message.as_deref().unwrap_or_default()));
    }
    Some(PodPhase::Ended(cause(pod, reason, message, terminated)))
}

fn cause(pod: &Pod, reason: &str, message: String, terminated: Option<&ContainerStateTerminated>) -> ExitCause {
    match reason {
        "Evicted" | "Preempting" | "Shutdown" | "Terminated" | "NodeShutdown" => return ExitCause::Evicted(message),
        "NodeLost" => return ExitCause::NodeLost(message),
        _ => {}
    }
    let is_oom = |terminated: &ContainerStateTerminated| terminated.reason.as_deref() == Some("OOMKilled");
    if terminated.is_some_and(is_oom) {
        return ExitCause::OutOfMemory;
    }
    if let Some(disrupted) = disruption(pod) {
        return disrupted;
    }
    match terminated {
        Some(terminated) => match (terminated.signal, terminated.exit_code) {
            (Some(signal), _) if signal != 0 => ExitCause::Signal(signal),
            (_, code) => exit_cause(code),
        },
        None => ExitCause::Unknown(if message.is_empty() {
            "its pod ended without giving a reason".to_owned()
        } else {
            message
        }),
    }
}

/// Decodes an exit code by the convention of shells and Kubernetes.
pub(crate) fn exit_cause(code: i32) -> ExitCause {
    match code {
        code if code > SIGNALLED && code <= SIGNALLED + LAST_SIGNAL => ExitCause::Signal(code - SIGNALLED),
        code => ExitCause::Code(code),
    }
}

/// Returns the cause if Kubernetes is disrupting the pod, such as by preemption, eviction or a lost node.
fn disruption(pod: &Pod) -> Option<ExitCause> {
    let disrupted = condition(pod, "DisruptionTarget").filter(|target| target.status == "True")?;
    let why = disrupted
        .message
        .clone()
        .or_else(|| disrupted.reason.clone())
        .unwrap_or_default();
    Some(match disrupted.reason.as_deref() {
        Some("DeletionByTaintManager" | "DeletionByPodGC") => ExitCause::NodeLost(why),
        _ => ExitCause::Evicted(why),
    })
}

/// Determines why a kernel ended if its pod was not removed by this provider. `pod` is the pod's last known state.
pub(crate) fn removal_cause(pod: &Pod) -> ExitCause {
    let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
    if reason == Some("NodeLost") {
        return ExitCause::NodeLost("its node is unreachable".to_owned());
    }
    if let Some(disrupted) = disruption(pod) {
        return disrupted;
    }
    match assess(pod, &[]) {
        // Deleting a pod, as `kubectl delete pod` does, sends SIGTERM and later SIGKILL. On SIGTERM, a kernel may exit
        // with any code.
        PodPhase::Ended(ExitCause::Signal(15 | SIGKILL) | ExitCause::Code(_)) if is_deleted(pod) => ExitCause::Deleted,
        PodPhase::Ended(cause) => cause,
        _ => ExitCause::Deleted,
    }
}

fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn kernel_container(pod: &Pod) -> Option<&ContainerStatus> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.iter().find(|container| container.name == names::CONTAINER)
}

#[cfg(test)]
mod tests;
