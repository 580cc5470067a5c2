//! Pod states observed on real clusters, reduced to the relevant fields.

use serde_json::{Value, json};

use super::*;

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "kernel-1", "uid": "u1"},
        "spec": {"containers": [{"name": "kernel", "image": "example/python:1"}]},
        "status": status,
    }))
    .unwrap()
}

fn deleted(status: Value) -> Pod {
    let mut pod = pod(status);
    pod.metadata = serde_json::from_value(json!({
        "name": "kernel-1", "uid": "u1", "deletionTimestamp": "2026-01-01T00:00:00Z",
    }))
    .unwrap();
    pod
}

fn event(reason: &str, message: &str) -> Event {
    serde_json::from_value(json!({
        "metadata": {}, "involvedObject": {"uid": "u1"}, "reason": reason, "message": message,
    }))
    .unwrap()
}

const SCHEDULED: fn() -> Value = || json!([{"type": "PodScheduled", "status": "True"}]);

fn waiting(reason: &str, message: &str) -> Value {
    json!({
        "phase": "Pending",
        "conditions": SCHEDULED(),
        "containerStatuses": [{"name": "kernel", "state": {"waiting": {"reason": reason, "message": message}}}],
    })
}

fn terminated(state: Value) -> Value {
    json!({
        "phase": "Failed",
        "conditions": SCHEDULED(),
        "containerStatuses": [{"name": "kernel", "state": {"terminated": state}}],
    })
}

fn running() -> Value {
    json!({
        "phase": "Running",
        "podIP": "10.0.0.7",
        "conditions": SCHEDULED(),
        "containerStatuses": [{"name": "kernel", "state": {"running": {}}}],
    })
}

#[test]
fn start_steps_are_reported_in_order() {
    let accepted = pod(json!({"phase": "Pending"}));
    assert_eq!(assess(&accepted, &[]), PodPhase::Starting(StartStep::Accepted));
    let creating = pod(waiting("ContainerCreating", ""));
    assert_eq!(assess(&creating, &[]), PodPhase::Starting(StartStep::Scheduled));
    let mut events = vec![event("Scheduled", "to dev"), event("Pulling", "Pulling image \"x\"")];
    let pulling = PodPhase::Starting(StartStep::Pulling("Pulling image \"x\"".to_owned()));
    assert_eq!(assess(&creating, &events), pulling);
    events.push(event("Pulled", "in 3 s"));
    assert_eq!(assess(&creating, &events), PodPhase::Starting(StartStep::Scheduled));
    let ip = "10.0.0.7".to_owned();
    assert_eq!(assess(&pod(running()), &events), PodPhase::Running { ip });
    assert_eq!(assess(&deleted(running()), &events), PodPhase::Ending);
}

#[test]
fn a_failing_sidecar_does_not_affect_a_running_kernel() {
    let mut status = running();
    let failing = json!([{"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
    status["initContainerStatuses"] = failing.clone();
    assert!(matches!(assess(&pod(status), &[]), PodPhase::Running { .. }));
    let mut starting = waiting("PodInitializing", "");
    starting["initContainerStatuses"] = failing;
    assert!(matches!(assess(&pod(starting), &[]), PodPhase::CannotStart(_)));
}

#[test]
fn a_pod_with_a_nominated_node_is_still_starting() {
    let preempting = pod(json!({
        "phase": "Pending",
        "nominatedNodeName": "node-1",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}],
    }));
    assert_eq!(assess(&preempting, &[]), PodPhase::Starting(StartStep::Accepted));
}

#[test]
fn lack_of_room_is_detected() {
    let message = "0/1 nodes are available: 1 Insufficient memory.";
    let refused = pod(json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}],
    }));
    let no_room = |text: &str| PodPhase::CannotStart(StartFailure::NoRoom(text.to_owned()));
    assert_eq!(assess(&refused, &[]), no_room(message));
    let unbound = pod(json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"}],
    }));
    assert_eq!(assess(&unbound, &[]), PodPhase::Starting(StartStep::Accepted));
    let gated = pod(json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}],
    }));
    assert_eq!(assess(&gated, &[]), PodPhase::Starting(StartStep::Accepted));
    let text = "Pod was rejected: Node didn't have enough resource: memory";
    for reason in ["OutOfmemory", "OutOfnvidia.com/gpu"] {
        let by_kubelet = pod(json!({"phase": "Failed", "reason": reason, "message": text}));
        assert_eq!(assess(&by_kubelet, &[]), no_room(text), "{reason}");
    }
}

#[test]
fn broken_images_and_configurations_are_detected() {
    for (reason, message) in [
        (
            "ErrImagePull",
            "failed to pull and unpack image \"example/none:1\": not found",
        ),
        ("ImagePullBackOff", "Back-off pulling image \"example/none:1\""),
        (
            "InvalidImageName",
            "Failed to apply default image tag \"A B\": couldn't parse image name",
        ),
        (
            "ErrImageNeverPull",
            "Container image \"x\" is not present with pull policy of Never",
        ),
        (
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root",
        ),
        ("CreateContainerConfigError", "secret \"none\" not found"),
        ("RunContainerError", "failed to create containerd task"),
    ] {
        let expected = broken(reason, message);
        assert_eq!(assess(&pod(waiting(reason, message)), &[]), expected, "{reason}");
    }
    let message = "exec: \"/no/such/program\": stat /no/such/program: no such file or directory";
    let never_ran = pod(terminated(
        json!({"reason": "StartError", "exitCode": 128, "message": message}),
    ));
    assert_eq!(assess(&never_ran, &[]), broken("StartError", message));
    let by_an_init_container = pod(json!({
        "phase": "Pending",
        "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}}}],
        "containerStatuses": [{"name": "kernel", "state": {"waiting": {"reason": "PodInitializing"}}}],
    }));
    assert_eq!(assess(&by_an_init_container, &[]), broken("ErrImagePull", "m"));
}

#[test]
fn exit_causes_follow_from_the_status() {
    let evicted = "The node was low on resource: memory.".to_owned();
    let preempted =
        json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "by p"});
    let tainted =
        json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "by t"});
    let with_condition = |condition: Value| {
        let mut status = terminated(json!({"reason": "Error", "exitCode": 137}));
        status["conditions"] = json!([condition]);
        status
    };
    for (status, cause) in [
        (
            terminated(json!({"reason": "Completed", "exitCode": 0})),
            ExitCause::Code(0),
        ),
        (
            terminated(json!({"reason": "Error", "exitCode": 3})),
            ExitCause::Code(3),
        ),
        (
            terminated(json!({"reason": "Error", "exitCode": 137})),
            ExitCause::Signal(9),
        ),
        (
            terminated(json!({"reason": "Error", "exitCode": 139})),
            ExitCause::Signal(11),
        ),
        (
            terminated(json!({"reason": "Error", "exitCode": 255})),
            ExitCause::Code(255),
        ),
        (
            terminated(json!({"reason": "OOMKilled", "exitCode": 137})),
            ExitCause::OutOfMemory,
        ),
        (
            json!({"phase": "Failed", "reason": "Evicted", "message": evicted}),
            ExitCause::Evicted(evicted.clone()),
        ),
        (
            json!({"phase": "Failed", "reason": "NodeLost", "message": "n"}),
            ExitCause::NodeLost("n".to_owned()),
        ),
        (with_condition(preempted), ExitCause::Evicted("by p".to_owned())),
        (with_condition(tainted), ExitCause::NodeLost("by t".to_owned())),
    ] {
        assert_eq!(assess(&pod(status.clone()), &[]), PodPhase::Ended(cause), "{status}");
    }
    // A kernel keeps running when a sidecar ends.
    let mut status = running();
    status["containerStatuses"] = json!([
        {"name": "sidecar", "state": {"terminated": {"exitCode": 1}}},
        {"name": "kernel", "state": {"running": {}}},
    ]);
    assert!(matches!(assess(&pod(status), &[]), PodPhase::Running { .. }));
}

#[test]
fn removal_causes_follow_from_the_last_known_state() {
    assert_eq!(removal_cause(&deleted(running())), ExitCause::Deleted);
    let stopped = terminated(json!({"reason": "Error", "exitCode": 143}));
    assert_eq!(removal_cause(&deleted(stopped)), ExitCause::Deleted);
    let oom = terminated(json!({"reason": "OOMKilled", "exitCode": 137}));
    assert_eq!(removal_cause(&pod(oom)), ExitCause::OutOfMemory);
    let mut lost = running();
    lost["reason"] = json!("NodeLost");
    assert!(matches!(removal_cause(&deleted(lost)), ExitCause::NodeLost(_)));
    let mut drained = running();
    drained["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}]);
    assert_eq!(
        removal_cause(&deleted(drained)),
        ExitCause::Evicted("drained".to_owned())
    );
}

#[test]
fn a_failed_init_container_is_reported() {
    let state = |state: Value| json!([{"name": "kernelmux-agent", "state": state}]);
    let failed = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
    let kernel = json!([{"name": "kernel", "state": {"waiting": {"reason": "PodInitializing"}}}]);
    let status = json!({"phase": "Failed", "initContainerStatuses": state(failed), "containerStatuses": kernel});
    let is_reported = matches!(assess(&pod(status), &[]), PodPhase::CannotStart(StartFailure::Broken { message, .. })
        if message.contains("kernelmux-agent exited with code 1"));
    assert!(is_reported);
    let mut ended = terminated(json!({"exitCode": 3}));
    ended["initContainerStatuses"] = state(json!({"terminated": {"exitCode": 0}}));
    assert_eq!(assess(&pod(ended), &[]), PodPhase::Ended(ExitCause::Code(3)));
}
