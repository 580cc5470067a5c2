//! Ends kernels that nobody uses, and drops the logs of kernels that are long gone.

use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::Utc;
use serde_json::Value;
use tracing::{info, warn};

use super::{Culling, Kernel, Shared};
use crate::provider::ExitCause;
use crate::session::{ExecutionState, trim_index};

/// Starts the task that looks at the kernels at the interval that the options say.
pub(super) fn start(manager: &Arc<Shared>) {
    let weak = Arc::downgrade(manager);
    let stop = manager.stop.clone();
    let interval = manager.options.culling.interval.max(Duration::from_millis(10));
    manager.tasks.spawn(async move {
        stop.run_until_cancelled(run(weak, interval)).await;
    });
}

async fn run(manager: Weak<Shared>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Not at once: kernels that ran before are not restored yet, and their logs are to stay.
    ticks.reset();
    loop {
        ticks.tick().await;
        let Some(manager) = manager.upgrade() else {
            return;
        };
        drop_old_logs(&manager).await;
        for kernel in manager.registry.list() {
            if let Err(error) = trim_index(kernel.log()).await {
                warn!(kernel_id = %kernel.id(), %error, "the index of the kernel's log cannot be trimmed");
            }
            if let Some(idle) = unused(&kernel, &manager.options.culling) {
                info!(kernel_id = %kernel.id(), last_activity = %kernel.last_activity(), "culling a kernel that nobody uses");
                manager.tasks.spawn(async move {
                    if let Err(error) = kernel.end(ExitCause::Culled(idle)).await {
                        warn!(kernel_id = %kernel.id(), %error, "the kernel cannot be culled");
                    }
                });
            }
        }
    }
}

async fn drop_old_logs(manager: &Shared) {
    let logs = match manager.logs.list().await {
        Ok(logs) => logs,
        Err(error) => {
            warn!(%error, "the logs cannot be listed");
            return;
        }
    };
    for log in logs {
        let age = (Utc::now() - log.updated).to_std().unwrap_or_default();
        if age < manager.options.log_retention || manager.registry.knows(log.id) {
            continue;
        }
        match manager.logs.remove(log.id).await {
            Ok(()) => info!(kernel_id = %log.id, "the log of a kernel that is gone was dropped"),
            Err(error) => warn!(kernel_id = %log.id, %error, "an old log cannot be dropped"),
        }
    }
}

/// For how long nobody has used the kernel, where that is too long.
fn unused(kernel: &Kernel, options: &Culling) -> Option<Duration> {
    let options = match kernel.spec() {
        Some(spec) => options.overridden_by(&spec.spec.metadata),
        None => options.clone(),
    };
    let idle = (Utc::now() - kernel.last_activity()).to_std().unwrap_or_default();
    let too_long = !options.idle_timeout.is_zero()
        && idle >= options.idle_timeout
        && (options.busy || *kernel.state().borrow() != ExecutionState::Busy)
        && (options.connected || *kernel.connections().borrow() == 0);
    too_long.then_some(idle)
}

impl Culling {
    /// The same with what a kernelspec's `metadata` says otherwise.
    fn overridden_by(&self, metadata: &serde_json::Map<String, Value>) -> Self {
        let mut culling = self.clone();
        if let Some(seconds) = metadata.get("cull_idle_timeout").and_then(Value::as_u64) {
            culling.idle_timeout = Duration::from_secs(seconds);
        }
        if let Some(connected) = metadata.get("cull_connected").and_then(Value::as_bool) {
            culling.connected = connected;
        }
        if let Some(busy) = metadata.get("cull_busy").and_then(Value::as_bool) {
            culling.busy = busy;
        }
        culling
    }
}
