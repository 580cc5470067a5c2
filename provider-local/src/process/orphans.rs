//! Reaps orphaned processes when this process is the first one of its PID namespace, as in a container.
//!
//! The system makes process 1 the parent of orphaned processes, and keeps an ended child as a zombie until its parent
//! has read its exit status. Kernels are children of this process too, but their exit status is read by the tasks that
//! watch them.

use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, PoisonError, RwLock};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::stat::{Stat, all_pids};

/// Read-locked while a process is started, until it is in `TRACKED`, so that its exit is not mistaken for an orphan's.
static STARTING: RwLock<()> = RwLock::new(());
/// The processes that this crate has started and not reaped.
static TRACKED: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// Starts a process whose exit status is read elsewhere.
pub(super) fn start_tracked<T>(start: impl FnOnce() -> io::Result<T>, pid: impl FnOnce(&T) -> i32) -> io::Result<T> {
    let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    let started = start()?;
    let mut tracked = crate::lock(&TRACKED);
    tracked.get_or_insert_default().insert(pid(&started));
    Ok(started)
}

/// Stops tracking a process that is about to be reaped. Its id stays in use until then.
pub(super) fn untrack(pid: i32) {
    if let Some(tracked) = &mut *crate::lock(&TRACKED) {
        tracked.remove(&pid);
    }
}

/// Subscribes to exits of child processes.
///
/// # Errors
/// The system's error, if the signal handler cannot be installed.
pub(crate) fn child_exits() -> io::Result<Signal> {
    signal(SignalKind::child())
}

/// Reaps orphans. Never returns.
pub(crate) async fn reap_orphans(mut exits: Signal) {
    let reap = || tokio::task::spawn_blocking(reap_now);
    // No signal announces exits before the subscription, so reap once first.
    while reap().await.is_ok() && exits.recv().await.is_some() {}
}

/// The child processes of this process, including zombies. `None` if the kernel does not list them.
fn children() -> Option<Vec<i32>> {
    let mut children = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        match std::fs::read_to_string(thread.ok()?.path().join("children")) {
            Ok(pids) => children.extend(pids.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // Built without CONFIG_PROC_CHILDREN. The folder of a thread that has just ended is missing, too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => {}
        }
    }
    Some(children)
}

fn reap_now() {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    let this = i32::try_from(std::process::id()).unwrap_or_default();
    for pid in children().unwrap_or_else(all_pids) {
        let is_orphan = || Stat::of(pid).is_some_and(|stat| stat.is_zombie && stat.parent == this);
        let is_tracked = || {
            crate::lock(&TRACKED)
                .as_ref()
                .is_some_and(|tracked| tracked.contains(&pid))
        };
        if is_orphan()
            && !is_tracked()
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}
