//! Ends idle and old kernels, drops logs whose retention is over, and trims the others.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use jupyter_protocol::KernelId;
use kernel_log::Lifecycle;
use kernel_provider::ExitCause;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::{Culling, CullingRules, ManagerInner, ManagerOptions};
use crate::kernel::Kernel;
use crate::session::{ExecutionState, trim_index};

/// How often expired entries are dropped within their maximum age.
const TRIMMINGS: u32 = 16;
/// The longest time until the next trimming is due.
const TRIM_AT_LEAST: Duration = Duration::from_secs(60 * 60);

/// The longest time between two checks.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest time between two checks.
const SHORTEST: Duration = Duration::from_millis(10);

/// Starts the culling task, which checks at the configured interval, and when a kernel is to be warned or ended.
pub(super) fn start(manager: &Arc<ManagerInner>) {
    let weak = Arc::downgrade(manager);
    let stop = manager.stop.clone();
    let options = manager.options.subscribe();
    manager.tasks.spawn(async move {
        stop.run_until_cancelled(run(weak, options)).await;
    });
}

async fn run(manager: Weak<ManagerInner>, mut options: watch::Receiver<Arc<ManagerOptions>>) {
    let mut trimmed = Instant::now();
    let mut marked_quiet = HashMap::new();
    let mut warned = HashMap::new();
    // Running kernels are not restored yet, and their logs must stay.
    let mut checked = Instant::now();
    let mut wait = Duration::MAX;
    loop {
        let interval = options.borrow_and_update().culling.interval.min(LONGEST);
        tokio::select! {
            () = sleep_until(checked + wait.min(interval).max(SHORTEST)) => {}
            changed = options.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        }
        checked = Instant::now();
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
            mark_quiet(&kernels, manager.options().log_retention, &mut marked_quiet);
        }
        for kernel in &kernels {
            if let Err(error) = trim_index(kernel.log()).await {
                warn!(kernel_id = %kernel.id(), %error, "the index of the kernel's log cannot be trimmed");
            }
        }
        wait = cull(&manager, &kernels, &mut warned);
    }
}

/// Ends the kernels whose time has come, and warns the clients of others. Returns when to do so next, as far as that is
/// known.
fn cull(manager: &ManagerInner, kernels: &[Arc<Kernel>], warned: &mut HashMap<KernelId, DateTime<Utc>>) -> Duration {
    let options = manager.options();
    warned.retain(|id, _| kernels.iter().any(|kernel| kernel.id() == *id));
    let mut wait = Duration::MAX;
    for kernel in kernels {
        let id = kernel.id();
        let now = Utc::now();
        let Some(due) = due(kernel, &options) else {
            warned.remove(&id);
            continue;
        };
        let warning = due.warning(options.culling.warning);
        let has_clients = *kernel.connections().borrow() > 0;
        let end = if warning.is_zero() || !has_clients {
            due.at
        } else {
            match warned.get(&id).copied() {
                // The kernel was not used since the warning.
                Some(end) if due.at <= end => end,
                _ if now >= due.at - warning => {
                    let end = due.at.max(now + warning);
                    let seconds = (end - now).to_std().unwrap_or_default().as_secs();
                    let (reason, idle) = (due.reason(), due.is_idle);
                    info!(kernel_id = %id, seconds, reason, "warning the kernel's clients before it is culled");
                    kernel
                        .recorder()
                        .lifecycle(&Lifecycle::Culling { seconds, reason, idle });
                    warned.insert(id, end);
                    end
                }
                _ => {
                    warned.remove(&id);
                    let until_warning = (due.at - warning - now).to_std();
                    wait = wait.min(until_warning.unwrap_or_default());
                    continue;
                }
            }
        };
        if let Ok(left) = (end - now).to_std()
            && !left.is_zero()
        {
            // Without a warning, the interval decides.
            if warned.contains_key(&id) {
                wait = wait.min(left);
            }
            continue;
        }
        let (kernel, cause) = (kernel.clone(), due.cause(now));
        info!(kernel_id = %id, last_activity = %kernel.last_activity(), %cause, "culling a kernel");
        manager.tasks.spawn(async move {
            if let Err(error) = kernel.end(cause).await {
                warn!(kernel_id = %kernel.id(), %error, "the kernel cannot be culled");
            }
        });
    }
    wait
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
        if age < manager.options().log_retention || may_run {
            continue;
        }
        match manager.logs.remove(log.id).await {
            Ok(()) => info!(kernel_id = %log.id, "the log of a kernel that is gone was dropped"),
            Err(error) => warn!(kernel_id = %log.id, %error, "an old log cannot be dropped"),
        }
    }
}

/// When and why a kernel is culled.
struct Due {
    at: DateTime<Utc>,
    /// Since when it is idle, or runs.
    since: DateTime<Utc>,
    is_idle: bool,
}

impl Due {
    fn cause(&self, now: DateTime<Utc>) -> ExitCause {
        let time = (now - self.since).to_std().unwrap_or_default();
        if self.is_idle {
            ExitCause::Culled(time)
        } else {
            ExitCause::TooOld(time)
        }
    }

    /// How long before the end clients are warned: half of the idle time or age if that is not longer than `wanted`.
    fn warning(&self, wanted: Duration) -> Duration {
        let period = (self.at - self.since).to_std().unwrap_or_default();
        if wanted < period { wanted } else { period / 2 }
    }

    fn reason(&self) -> String {
        let seconds = (self.at - self.since).num_seconds();
        if self.is_idle {
            format!("idle for {seconds} s")
        } else {
            format!("no kernel may run longer than {seconds} s")
        }
    }
}

/// When the kernel is to be culled if nothing changes; `None` for never.
fn due(kernel: &Kernel, options: &ManagerOptions) -> Option<Due> {
    let mut culling = options.culling.clone();
    if let Some(spec) = kernel.spec() {
        culling.apply(&of_metadata(&spec.spec.metadata));
    }
    // Rules of the first group are applied last.
    for group in kernel.groups().iter().rev() {
        if let Some(group) = options.groups.get(group) {
            culling.apply(&group.culling);
        }
    }
    let may_be_idle = (culling.busy || *kernel.state().borrow() != ExecutionState::Busy)
        && (culling.connected || *kernel.connections().borrow() == 0);
    let after = |since: DateTime<Utc>, time: Duration, is_idle| {
        let at = since.checked_add_signed(TimeDelta::from_std(time).ok()?)?;
        (!time.is_zero()).then_some(Due { at, since, is_idle })
    };
    let idle = after(kernel.last_activity(), culling.idle_timeout, true).filter(|_| may_be_idle);
    let old = after(kernel.launched(), culling.max_age, false);
    idle.into_iter().chain(old).min_by_key(|due| due.at)
}

impl Culling {
    fn apply(&mut self, rules: &CullingRules) {
        self.idle_timeout = rules.idle_timeout.unwrap_or(self.idle_timeout);
        self.connected = rules.connected.unwrap_or(self.connected);
        self.busy = rules.busy.unwrap_or(self.busy);
        self.max_age = rules.max_age.unwrap_or(self.max_age);
    }
}

/// The rules in a kernelspec's `metadata`.
fn of_metadata(metadata: &serde_json::Map<String, Value>) -> CullingRules {
    let seconds = |name| metadata.get(name).and_then(Value::as_u64).map(Duration::from_secs);
    let switch = |name| metadata.get(name).and_then(Value::as_bool);
    CullingRules {
        idle_timeout: seconds("cull_idle_timeout"),
        connected: switch("cull_connected"),
        busy: switch("cull_busy"),
        max_age: seconds("cull_max_age"),
    }
}
