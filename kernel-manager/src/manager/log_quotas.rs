//! Keeps the logs within their quotas.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::warn;

use super::ManagerInner;

/// The pause after an attempt that freed too little, because the logs of running kernels are larger than the quotas.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the task that applies the quotas, if there are any.
pub(super) fn start(manager: &Arc<ManagerInner>) {
    if !manager.logs.has_quotas() {
        return;
    }
    let weak = Arc::downgrade(manager);
    let (stop, restored) = (manager.stop.clone(), manager.restored.clone());
    let interval = manager.options().culling.interval;
    manager.tasks.spawn(async move {
        let keep_within = async {
            // Wait until the running kernels are known, at most one interval, because their logs must stay.
            let _ = timeout(interval, restored.cancelled()).await;
            run(weak).await;
        };
        stop.run_until_cancelled(keep_within).await;
    });
}

async fn run(manager: Weak<ManagerInner>) {
    loop {
        // Do not keep the manager alive while waiting.
        let Some(inner) = manager.upgrade() else { return };
        let may_run = |id| inner.may_run(id) || inner.has_unlisted.load(Ordering::Relaxed);
        let are_met = match inner.logs.apply_quotas(may_run).await {
            Ok(are_met) => are_met,
            Err(error) => {
                warn!(%error, "the quotas of the logs cannot be applied");
                false
            }
        };
        let exceeded = inner.logs.over_quota();
        drop(inner);
        if !are_met {
            sleep(PAUSE).await;
        }
        exceeded.await;
    }
}
