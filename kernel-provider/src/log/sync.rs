//! The thread that makes what is stored survive the machine. One for all logs of a store: one sync is for all of them,
//! and the writer goes on meanwhile.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::LogStore;

/// The longest that what is stored is not synced while more comes.
const AT_MOST: Duration = Duration::from_millis(50);

/// Owns the thread.
pub(super) struct Syncer {
    wanted: Arc<Wanted>,
    thread: JoinHandle<()>,
}

/// What the thread is to do. It sleeps without a timer while nothing is stored.
#[derive(Default)]
pub(super) struct Wanted {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Something was stored since the last sync began.
    stored: bool,
    soon: bool,
    end: bool,
}

impl Wanted {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere while the lock was held leaves three flags, each good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_one();
    }

    /// Something was stored; it is to be synced within [`AT_MOST`].
    pub(super) fn stored(&self) {
        let mut state = self.state();
        if !state.stored {
            state.stored = true;
            self.changed.notify_one();
        }
    }

    /// What is stored is to be synced now.
    pub(super) fn soon(&self) {
        // Where nothing was stored since the last sync, there is nothing to do.
        self.change(|state| state.soon = state.stored);
    }

    /// Waits until there is something to sync. `false` where the thread is to end instead.
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

    /// Syncs what is stored, and waits for the thread.
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

/// Syncs, and tells of the first failure of a row. Returns whether it failed.
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
