use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

/// Interrupt flag of a request, which can be awaited.
#[derive(Clone, Default)]
pub(super) struct Interrupt(Arc<InterruptState>);

#[derive(Default)]
struct InterruptState {
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
        // Registers before checking the flag, so that no interrupt is missed in between.
        notified.as_mut().enable();
        if !self.is_set() {
            notified.await;
        }
    }
}

/// Interrupt flags of the running requests.
#[derive(Default)]
pub(super) struct RunningRequests(Mutex<Vec<Weak<InterruptState>>>);

impl RunningRequests {
    /// Registers a request that starts to run, and returns its interrupt flag.
    pub(super) fn start(&self) -> Interrupt {
        let interrupt = Interrupt::default();
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|state| state.strong_count() > 0);
        running.push(Arc::downgrade(&interrupt.0));
        interrupt
    }

    /// Interrupts all running requests.
    pub(super) fn interrupt(&self) {
        for state in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(state) = state.upgrade() {
                state.set.store(true, Ordering::Release);
                state.notify.notify_waiters();
            }
        }
    }
}
