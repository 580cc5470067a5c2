use tokio::sync::broadcast;

use crate::KernelId;
use crate::provider::ExitCause;

/// How many events a receiver may fall behind before it misses some, and is told so.
const CAPACITY: usize = 1_024;

/// Something happened to a kernel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KernelEvent {
    /// The kernel.
    pub id: KernelId,
    /// What happened.
    pub kind: KernelEventKind,
}

/// What happened to a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelEventKind {
    /// Launched, and has answered.
    Started,
    /// Found running, and attached to.
    Attached,
    /// Ended by itself, and is started anew.
    RestartingByItself(ExitCause),
    /// Restarted, by somebody or by itself, and has answered.
    Restarted,
    /// Gone, and not started anew.
    Dead(ExitCause),
    /// Ended because nobody used it.
    Culled,
    /// Ended as somebody wanted.
    ShutDown,
}

pub(super) struct Events(broadcast::Sender<KernelEvent>);

impl Events {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(CAPACITY))
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<KernelEvent> {
        self.0.subscribe()
    }

    pub(super) fn tell(&self, id: KernelId, kind: KernelEventKind) {
        // No receiver is no fault.
        let _ = self.0.send(KernelEvent { id, kind });
    }
}
