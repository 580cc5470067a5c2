//! What a warm pool to_create and what it has too much of. Pure: the same pods at the same time give the same answer.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::Pod;

use crate::phase::{self, PodPhase};
use crate::settings::WarmPool;

/// How long a pod may take until its kernel can be connected to: as long as a large image takes to be pulled over a slow
/// line. One that takes longer was left by a gateway that was killed before the pod had its Secret, as a rule.
pub(crate) const START_DEADLINE: TimeDelta = TimeDelta::minutes(20);

/// A pod of the pool, which nobody has claimed.
pub(crate) struct Member {
    pub(crate) pod: Arc<Pod>,
    pub(crate) state: MemberState,
}

/// How far this gateway is with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberState {
    /// Another made it, or this gateway before it was restarted.
    Found,
    /// This gateway waits for its kernel.
    Awaited,
    /// It can be handed out.
    Ready,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct PoolDiff {
    /// How many pods are to be made.
    pub(crate) to_create: usize,
    /// Those to wait for.
    pub(crate) to_await: Vec<Arc<Pod>>,
    /// Those to be removed because there are enough, or because they are too old.
    pub(crate) to_remove: Vec<Arc<Pod>>,
    /// Those to be removed because they do not work.
    pub(crate) broken: Vec<Arc<Pod>>,
    /// When to look again, if nothing happens before.
    pub(crate) next_check: Option<DateTime<Utc>>,
}

/// Counts a pool; `expected` are those that are being made and that the cluster has not shown yet.
///
/// A pod is replaced shortly before its time is over and goes when its replacement is ready, at the latest when its time
/// is over.
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
            // Who waits for it hears of it and removes it.
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
    // The eldest first; of the same age, each gateway takes the same.
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

/// When the pod was made, by the cluster's clock.
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
    fn what_is_missing_is_made_once() {
        assert_eq!(diff(&pool(3), &[], 0, NOW()).to_create, 3);
        let members = [
            member("a", 5, "Running", MemberState::Ready),
            member("b", 1, "Pending", MemberState::Awaited),
        ];
        assert_eq!(diff(&pool(3), &members, 1, NOW()).to_create, 0);
        let changes = diff(&pool(3), &members, 0, NOW());
        assert_eq!(changes.to_create, 1);
        // When the elder one is due to be replaced.
        assert_eq!(changes.next_check, Some(NOW() + TimeDelta::seconds(940 - 5)));
    }

    #[test]
    fn those_that_are_found_are_taken_over() {
        let members = [member("a", 5, "Running", MemberState::Found)];
        let changes = diff(&pool(1), &members, 0, NOW());
        assert_eq!((changes.to_create, names(&changes.to_await)), (0, vec!["a"]));
    }

    #[test]
    fn an_old_one_goes_when_its_replacement_is_ready() {
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
    fn two_gateways_that_made_too_many_remove_the_same() {
        let members = |states: [MemberState; 3]| {
            let named = ["b", "a", "c"].into_iter().zip(states);
            let members: Vec<_> = named.map(|(name, state)| member(name, 7, "Running", state)).collect();
            names(&diff(&pool(2), &members, 0, NOW()).to_remove).join(" ")
        };
        assert_eq!(members([MemberState::Ready; 3]), "a");
        // One that cannot be handed out yet counts for nothing here.
        assert_eq!(
            members([MemberState::Ready, MemberState::Ready, MemberState::Awaited]),
            ""
        );
    }

    #[test]
    fn those_that_do_not_work_are_removed_and_replaced() {
        let members = [
            member("ended", 5, "Failed", MemberState::Found),
            member("stuck", 1300, "Pending", MemberState::Found),
            member("mine", 5, "Failed", MemberState::Awaited),
        ];
        let changes = diff(&pool(1), &members, 0, NOW());
        assert_eq!((changes.to_create, names(&changes.broken)), (1, vec!["ended", "stuck"]));
    }
}
