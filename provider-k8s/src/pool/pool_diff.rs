//! Compares a warm pool's pods with its desired size and age. Pure functions.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::Pod;

use crate::phase::{self, PodPhase};
use crate::settings::WarmPool;

/// How long a pod may take until its kernel accepts connections, for example when a large image is pulled over a slow
/// connection. A pod that takes longer usually has no Secret, because the gateway that created it was killed.
pub(crate) const START_DEADLINE: TimeDelta = TimeDelta::minutes(20);

/// An unclaimed pod of the pool.
pub(crate) struct Member {
    pub(crate) pod: Arc<Pod>,
    pub(crate) state: MemberState,
}

/// What this gateway knows about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberState {
    /// Created by another gateway, or by this one before its restart.
    Found,
    /// This gateway is waiting for the pod's kernel.
    Awaited,
    /// The pod can be handed out.
    Ready,
}

/// The changes that a pool needs.
#[derive(Debug, Default)]
pub(crate) struct PoolDiff {
    /// Number of pods to create.
    pub(crate) to_create: usize,
    /// Pods whose kernels to wait for.
    pub(crate) to_await: Vec<Arc<Pod>>,
    /// Pods to remove because they are surplus or too old.
    pub(crate) to_remove: Vec<Arc<Pod>>,
    /// Pods to remove because they failed.
    pub(crate) broken: Vec<Arc<Pod>>,
    /// When to compare again if nothing changes before.
    pub(crate) next_check: Option<DateTime<Utc>>,
}

/// Computes the changes that a pool needs. `expected` is the number of pods that are being created and not yet visible
/// in the cluster.
///
/// The replacement of a pod is created shortly before the pod reaches its maximum age. The pod is removed when its
/// replacement is ready, or at the latest when it reaches that age.
pub(crate) fn diff(pool: &WarmPool, members: &[Member], expected: usize, now: DateTime<Utc>) -> PoolDiff {
    let mut changes = PoolDiff::default();
    let max_age = pool.max_age();
    let due_age = max_age - (max_age / 10).min(TimeDelta::minutes(1));
    let size = usize::try_from(pool.size).unwrap_or(usize::MAX);
    let mut fresh = expected;
    let mut ready: Vec<(TimeDelta, &Arc<Pod>)> = Vec::new();
    let mut next: Option<TimeDelta> = None;
    let mut look_again = |after: TimeDelta| next = Some(next.map_or(after, |next| next.min(after)));
    for member in members.iter().filter(|member| !is_ending(&member.pod)) {
        let age = now - created(&member.pod);
        let is_awaited = member.state == MemberState::Awaited;
        match phase::assess(&member.pod, &[]) {
            PodPhase::Ending => {}
            // The waiting task notices the failure and removes the pod.
            PodPhase::Ended(_) | PodPhase::CannotStart(_) if is_awaited => {}
            PodPhase::Ended(_) | PodPhase::CannotStart(_) => changes.broken.push(Arc::clone(&member.pod)),
            PodPhase::Starting(_) if age >= START_DEADLINE && !is_awaited => {
                changes.broken.push(Arc::clone(&member.pod));
            }
            _ if age >= max_age => changes.to_remove.push(Arc::clone(&member.pod)),
            _ => {
                if age >= due_age {
                    look_again(max_age - age);
                } else {
                    fresh += 1;
                    look_again(due_age - age);
                }
                match member.state {
                    MemberState::Ready => ready.push((age, &member.pod)),
                    MemberState::Found => changes.to_await.push(Arc::clone(&member.pod)),
                    MemberState::Awaited => {}
                }
            }
        }
    }
    changes.to_create = size.saturating_sub(fresh);
    // Oldest first. Pods of the same age are ordered by name, so that all gateways choose the same ones.
    ready.sort_by_key(|(age, pod)| (std::cmp::Reverse(*age), pod.metadata.name.clone()));
    let surplus = ready.len().saturating_sub(size);
    let surplus = ready.into_iter().take(surplus);
    changes.to_remove.extend(surplus.map(|(_, pod)| Arc::clone(pod)));
    changes.next_check = next.and_then(|after| now.checked_add_signed(after));
    changes
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The pod's creation time, by the cluster's clock.
pub(crate) fn created(pod: &Pod) -> DateTime<Utc> {
    let time = pod.metadata.creation_timestamp.as_ref();
    time.and_then(|time| DateTime::from_timestamp(time.0.as_second(), 0))
        .unwrap_or(DateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: fn() -> DateTime<Utc> = || DateTime::from_timestamp(1_800_000_000, 0).unwrap();

    fn pool(size: u32) -> WarmPool {
        WarmPool {
            size,
            max_age: 1000,
            ..WarmPool::default()
        }
    }

    fn member(name: &str, age: i64, phase: &str, state: MemberState) -> Member {
        let container = match phase {
            "Running" => json!({"name": "kernel", "state": {"running": {}}}),
            "Failed" => json!({"name": "kernel", "state": {"terminated": {"exitCode": 1}}}),
            _ => json!({"name": "kernel", "state": {"waiting": {"reason": "ContainerCreating"}}}),
        };
        let created = (NOW() - TimeDelta::seconds(age)).to_rfc3339();
        let pod = json!({
            "metadata": {"name": name, "creationTimestamp": created},
            "status": {"phase": phase, "podIP": "10.0.0.7", "containerStatuses": [container]},
        });
        Member {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            state,
        }
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| crate::names::name(pod)).collect()
    }

    #[test]
    fn missing_pods_are_created_once() {
        assert_eq!(diff(&pool(3), &[], 0, NOW()).to_create, 3);
        let members = [
            member("a", 5, "Running", MemberState::Ready),
            member("b", 1, "Pending", MemberState::Awaited),
        ];
        assert_eq!(diff(&pool(3), &members, 1, NOW()).to_create, 0);
        let changes = diff(&pool(3), &members, 0, NOW());
        assert_eq!(changes.to_create, 1);
        // When the replacement of the older pod is due.
        assert_eq!(changes.next_check, Some(NOW() + TimeDelta::seconds(940 - 5)));
    }

    #[test]
    fn existing_pods_are_adopted() {
        let members = [member("a", 5, "Running", MemberState::Found)];
        let changes = diff(&pool(1), &members, 0, NOW());
        assert_eq!((changes.to_create, names(&changes.to_await)), (0, vec!["a"]));
    }

    #[test]
    fn an_old_pod_is_removed_once_its_replacement_is_ready() {
        let old = || member("old", 950, "Running", MemberState::Ready);
        let alone = diff(&pool(1), &[old()], 0, NOW());
        assert_eq!((alone.to_create, alone.to_remove.len()), (1, 0));
        assert_eq!(alone.next_check, Some(NOW() + TimeDelta::seconds(50)));
        let waiting = diff(
            &pool(1),
            &[old(), member("new", 2, "Pending", MemberState::Awaited)],
            0,
            NOW(),
        );
        assert_eq!((waiting.to_create, waiting.to_remove.len()), (0, 0));
        let replaced = diff(
            &pool(1),
            &[member("new", 2, "Running", MemberState::Ready), old()],
            0,
            NOW(),
        );
        assert_eq!((replaced.to_create, names(&replaced.to_remove)), (0, vec!["old"]));
        let over = diff(
            &pool(1),
            &[member("over", 1000, "Running", MemberState::Ready)],
            0,
            NOW(),
        );
        assert_eq!((over.to_create, names(&over.to_remove)), (1, vec!["over"]));
    }

    #[test]
    fn all_gateways_choose_the_same_surplus_pods() {
        let members = |states: [MemberState; 3]| {
            let named = ["b", "a", "c"].into_iter().zip(states);
            let members: Vec<_> = named.map(|(name, state)| member(name, 7, "Running", state)).collect();
            names(&diff(&pool(2), &members, 0, NOW()).to_remove).join(" ")
        };
        assert_eq!(members([MemberState::Ready; 3]), "a");
        // Pods that this gateway cannot hand out yet do not count as surplus.
        assert_eq!(
            members([MemberState::Ready, MemberState::Ready, MemberState::Awaited]),
            ""
        );
    }

    #[test]
    fn failed_pods_are_removed_and_replaced() {
        let members = [
            member("ended", 5, "Failed", MemberState::Found),
            member("stuck", 1300, "Pending", MemberState::Found),
            member("mine", 5, "Failed", MemberState::Awaited),
        ];
        let changes = diff(&pool(1), &members, 0, NOW());
        assert_eq!((changes.to_create, names(&changes.broken)), (1, vec!["ended", "stuck"]));
    }
}
