//! Pods that a provider made before it was killed, and that never got their Secret, or cannot start: they would wait for
//! ever.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::names;
use crate::phase::{self, PodPhase};

/// Removes those that are there now, once nobody can be about to make their Secret any more, or to wait for room.
pub(crate) async fn remove_orphans(cluster: Arc<Cluster>) {
    let is_waiting = |pod: &_| {
        matches!(
            phase::assess(pod, &[]),
            PodPhase::Starting(_) | PodPhase::CannotStart(_)
        )
    };
    let mut found = cluster.pod_cache.pods();
    // Those of warm pools are the pools' own matter.
    found.retain(|(_, pod)| names::pool(pod).is_none() && is_waiting(pod));
    if found.is_empty() {
        return;
    }
    let config = &cluster.config;
    tokio::time::sleep(config.abandoned_after.max(config.wait_for_room)).await;
    for (id, pod) in found {
        let now = cluster.pod_cache.subscribe(id).borrow().clone();
        let Some(now) = now.present().filter(|now| names::uid(now) == names::uid(&pod)) else {
            continue;
        };
        let may_stay = match phase::assess(now, &[]) {
            PodPhase::Starting(_) => cluster.has_secret(now).await,
            PodPhase::CannotStart(_) => Ok(false),
            _ => Ok(true),
        };
        let removed = match may_stay {
            Ok(true) => continue,
            Ok(false) => cluster.delete(now, Duration::ZERO).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => tracing::warn!(kernel = %id, "a pod that was never finished is removed"),
            Err(error) => tracing::warn!(kernel = %id, %error, "a pod that was never finished may be left"),
        }
    }
}
