//! Reaps the processes that ended kernels leave to this one where it is the first of its PID namespace, as in a container.
//!
//! The system gives a process whose parent has ended to process 1 as a child, and keeps its entry until that has asked how
//! it ended. Kernels are children of this process as well, and how they ended is asked by who watches them.

use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, PoisonError, RwLock};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::stat::{Stat, all_pids};

/// Held by who starts a process until it is in `OWN`, so that its end is not taken for an orphan's before.
static STARTING: RwLock<()> = RwLock::new(());
/// The processes that this one has started and has not reaped.
static OWN: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// Starts a process whose end is asked for elsewhere.
pub(super) fn start<T>(start: impl FnOnce() -> io::Result<T>, pid: impl FnOnce(&T) -> i32) -> io::Result<T> {
    let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    let started = start()?;
    let mut own = crate::lock(&OWN);
    own.get_or_insert_default().insert(pid(&started));
    Ok(started)
}

/// How the process ended is known, and it is about to be reaped: its number is taken until then.
pub(super) fn forget(pid: i32) {
    if let Some(own) = &mut *crate::lock(&OWN) {
        own.remove(&pid);
    }
}

/// Notices the ends of children.
///
/// # Errors
/// The system's answer.
pub(crate) fn ends() -> io::Result<Signal> {
    signal(SignalKind::child())
}

/// Reaps orphans, for ever.
pub(crate) async fn reap(mut ends: Signal) {
    let reap_now = || tokio::task::spawn_blocking(reap_all);
    // What ended before is told by no signal.
    while reap_now().await.is_ok() && ends.recv().await.is_some() {}
}

fn reap_all() {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    let this = i32::try_from(std::process::id()).unwrap_or_default();
    for pid in all_pids() {
        let is_orphan = || Stat::of(pid).is_some_and(|stat| stat.is_zombie && stat.parent == this);
        let is_own = || crate::lock(&OWN).as_ref().is_some_and(|own| own.contains(&pid));
        if is_orphan()
            && !is_own()
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}
