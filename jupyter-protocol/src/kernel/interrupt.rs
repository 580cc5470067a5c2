use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

/// Whether a request was interrupted.
#[derive(Clone, Default)]
pub(super) struct Interrupt(Arc<State>);

#[derive(Default)]
struct State {
    set: AtomicBool,
    notify: Notify,
}

impl Interrupt {
    pub(super) fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    pub(super) async fn wait(&self) {
        let notified = self.0.notify.notified();
        tokio::pin!(notified);
        // Registered before the look, so that no interrupt falls between the two.
        notified.as_mut().enable();
        if !self.is_set() {
            notified.await;
        }
    }
}

/// The requests that run now.
#[derive(Default)]
pub(super) struct Running(Mutex<Vec<Weak<State>>>);

impl Running {
    pub(super) fn start(&self) -> Interrupt {
        let interrupt = Interrupt::default();
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|state| state.strong_count() > 0);
        running.push(Arc::downgrade(&interrupt.0));
        interrupt
    }

    pub(super) fn interrupt(&self) {
        for state in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(state) = state.upgrade() {
                state.set.store(true, Ordering::Release);
                state.notify.notify_waiters();
            }
        }
    }
}
