//! Ends idle kernels, drops logs whose retention is over, and trims the others.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;
use kernel_log::Lifecycle;
use kernel_provider::ExitCause;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Culling, ManagerInner};
use crate::kernel::Kernel;
use crate::session::{ExecutionState, trim_index};

/// How often expired entries are dropped within their maximum age.
const TRIMMINGS: u32 = 16;
/// The longest time until the next trimming is due.
const TRIM_AT_LEAST: Duration = Duration::from_secs(60 * 60);

/// Starts the culling task, which runs at the configured interval.
pub(super) fn start(manager: &Arc<ManagerInner>) {
    let weak = Arc::downgrade(manager);
    let stop = manager.stop.clone();
    let interval = manager.options.culling.interval.max(Duration::from_millis(10));
    manager.tasks.spawn(async move {
        stop.run_until_cancelled(run(weak, interval)).await;
    });
}

async fn run(manager: Weak<ManagerInner>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick comes only after an interval, because running kernels are not restored yet, and their logs must
    // stay.
    ticks.reset();
    let mut trimmed = Instant::now();
    let mut marked_quiet = HashMap::new();
    loop {
        ticks.tick().await;
        let Some(manager) = manager.upgrade() else {
            return;
        };
        drop_old_logs(&manager).await;
        // Active logs are trimmed as they grow; this trims the others.
        if let Some(age) = manager.logs.stored_age()
            && trimmed.elapsed() >= (age / TRIMMINGS).min(TRIM_AT_LEAST)
        {
            trimmed = Instant::now();
            if let Err(error) = manager.logs.trim().await {
                warn!(%error, "expired entries cannot be dropped");
            }
        }
        let kernels = manager.registry.list();
        if manager.logs.is_shared() {
            mark_quiet(&kernels, manager.options.log_retention, &mut marked_quiet);
        }
        for kernel in kernels {
            if let Err(error) = trim_index(kernel.log()).await {
                warn!(kernel_id = %kernel.id(), %error, "the index of the kernel's log cannot be trimmed");
            }
            if let Some(idle) = idle_beyond_limit(&kernel, &manager.options.culling) {
                info!(kernel_id = %kernel.id(), last_activity = %kernel.last_activity(), "culling an idle kernel");
                manager.tasks.spawn(async move {
                    if let Err(error) = kernel.end(ExitCause::Culled(idle)).await {
                        warn!(kernel_id = %kernel.id(), %error, "the kernel cannot be culled");
                    }
                });
            }
        }
    }
}

/// Appends an entry to the logs of quiet kernels, so that other managers of the same store do not drop
/// these logs as abandoned.
fn mark_quiet(kernels: &[Arc<Kernel>], retention: Duration, marked: &mut HashMap<KernelId, DateTime<Utc>>) {
    marked.retain(|id, _| kernels.iter().any(|kernel| kernel.id() == *id));
    let now = Utc::now();
    for kernel in kernels {
        let marked = marked.entry(kernel.id()).or_insert_with(|| kernel.last_activity());
        let last = kernel.last_activity().max(*marked);
        if (now - last).to_std().is_ok_and(|quiet| quiet >= retention / 4) {
            kernel.recorder().lifecycle(&Lifecycle::Quiet);
            *marked = now;
        }
    }
}

async fn drop_old_logs(manager: &ManagerInner) {
    let logs = match manager.logs.list().await {
        Ok(logs) => logs,
        Err(error) => {
            warn!(%error, "the logs cannot be listed");
            return;
        }
    };
    for log in logs {
        let age = (Utc::now() - log.updated).to_std().unwrap_or_default();
        let may_run = manager.registry.contains(log.id) || manager.attaching().contains(&log.id);
        if age < manager.options.log_retention || may_run {
            continue;
        }
        match manager.logs.remove(log.id).await {
            Ok(()) => info!(kernel_id = %log.id, "the log of a kernel that is gone was dropped"),
            Err(error) => warn!(kernel_id = %log.id, %error, "an old log cannot be dropped"),
        }
    }
}

/// How long the kernel has been idle, if it is to be culled.
fn idle_beyond_limit(kernel: &Kernel, options: &Culling) -> Option<Duration> {
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
    /// The culling options, overridden by the kernelspec's `metadata`.
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
