//! Removal of orphaned pods.
//!
//! A provider that is killed can leave pods that never got their Secret, or that cannot start. Kubernetes does not
//! remove such pods.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::names;
use crate::phase::{self, PodPhase};

/// Removes the orphaned pods that exist when this is called.
///
/// Waits first, so that another provider has time to create the pods' Secrets, or to wait for room on a node.
pub(crate) async fn remove_orphans(cluster: Arc<Cluster>) {
    let is_waiting = |pod: &_| {
        matches!(
            phase::assess(pod, &[]),
            PodPhase::Starting(_) | PodPhase::CannotStart(_)
        )
    };
    let mut found = cluster.pod_cache.pods();
    // The pool reconciler handles warm pods.
    found.retain(|(_, pod)| names::pool(pod).is_none() && is_waiting(pod));
    if found.is_empty() {
        return;
    }
    let options = &cluster.options;
    tokio::time::sleep(options.orphaned_after.max(options.wait_for_room)).await;
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
            Ok(()) => tracing::warn!(kernel = %id, "removed an orphaned pod"),
            Err(error) => tracing::warn!(kernel = %id, %error, "cannot remove an orphaned pod"),
        }
    }
}
