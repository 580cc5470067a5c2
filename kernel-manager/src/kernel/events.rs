use tokio::sync::broadcast;

use jupyter_protocol::KernelId;
use kernel_provider::ExitCause;

/// How many events a receiver may lag behind before it loses some.
const CAPACITY: usize = 1_024;

/// An event of a kernel.
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
    /// The kernel was launched and has answered.
    Started,
    /// The manager found the kernel running and attached to it.
    Attached,
    /// The kernel ended by itself and is being restarted.
    RestartingByItself(ExitCause),
    /// The kernel was restarted, on request or automatically, and has answered.
    Restarted,
    /// The kernel is dead and is not restarted automatically.
    Dead(ExitCause),
    /// The kernel was culled because it was idle.
    Culled,
    /// The kernel was shut down on request.
    ShutDown,
}

pub(crate) struct Events(broadcast::Sender<KernelEvent>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(CAPACITY))
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<KernelEvent> {
        self.0.subscribe()
    }

    pub(crate) fn publish(&self, id: KernelId, kind: KernelEventKind) {
        // Events without a receiver are dropped.
        let _ = self.0.send(KernelEvent { id, kind });
    }
}
