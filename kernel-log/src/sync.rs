//! The thread that syncs the store to disk. All logs of a store share it, and writing continues during a sync.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::LogStore;

/// Maximum time between storing an entry and the start of the sync that covers it, unless another sync is running.
const AT_MOST: Duration = Duration::from_millis(50);

/// Owns the thread.
pub(super) struct Syncer {
    wanted: Arc<Wanted>,
    thread: JoinHandle<()>,
}

/// Requests to the thread. While nothing is stored, the thread sleeps without a timer.
#[derive(Default)]
pub(super) struct Wanted {
    state: Mutex<Requests>,
    changed: Condvar,
}

#[derive(Default)]
struct Requests {
    /// Whether something was stored since the last sync began.
    stored: bool,
    soon: bool,
    end: bool,
}

impl Wanted {
    fn state(&self) -> MutexGuard<'_, Requests> {
        // A panic while the lock is held leaves three valid flags.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Requests)) {
        change(&mut self.state());
        self.changed.notify_one();
    }

    /// Records that something was stored, which must be synced within [`AT_MOST`].
    pub(super) fn stored(&self) {
        let mut state = self.state();
        if !state.stored {
            state.stored = true;
            self.changed.notify_one();
        }
    }

    /// Requests a sync of everything stored so far, as soon as possible.
    pub(super) fn soon(&self) {
        // Without stored entries since the last sync, the request is ignored.
        self.change(|state| state.soon = state.stored);
    }

    /// Waits until a sync is due; `false` if the thread is to end.
    fn wait(&self) -> bool {
        let wait = |result| match result {
            Ok(state) => state,
            Err(error) => PoisonError::into_inner(error),
        };
        let mut state = wait(
            self.changed
                .wait_while(self.state(), |state| !state.stored && !state.end),
        );
        if state.stored && !state.soon && !state.end {
            (state, _) = match self
                .changed
                .wait_timeout_while(state, AT_MOST, |state| !state.soon && !state.end)
            {
                Ok(waited) => waited,
                Err(error) => error.into_inner(),
            };
        }
        let work = state.stored;
        state.stored = false;
        state.soon = false;
        work
    }
}

impl Syncer {
    pub(super) fn start(store: Arc<dyn LogStore>) -> std::io::Result<Self> {
        let wanted = Arc::<Wanted>::default();
        let thread = Builder::new().name("kernelmux-sync".to_owned()).spawn({
            let wanted = wanted.clone();
            move || run(&wanted, &*store)
        })?;
        Ok(Self { wanted, thread })
    }

    pub(super) fn wanted(&self) -> Arc<Wanted> {
        self.wanted.clone()
    }

    /// Syncs once more and joins the thread.
    pub(super) fn finish(self) {
        self.wanted.change(|state| state.end = true);
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }
}

fn run(wanted: &Wanted, store: &dyn LogStore) {
    let mut failing = false;
    while wanted.wait() {
        failing = sync(store, failing);
    }
}

/// Syncs the store, and logs the first of consecutive failures. Returns whether the sync failed.
pub(super) fn sync(store: &dyn LogStore, failing: bool) -> bool {
    match store.sync() {
        Ok(()) => {
            if failing {
                tracing::warn!("the logs can be synced again");
            }
            false
        }
        Err(error) => {
            if !failing {
                tracing::error!(%error, "the logs cannot be synced; recent entries may not survive a machine failure");
            }
            true
        }
    }
}
