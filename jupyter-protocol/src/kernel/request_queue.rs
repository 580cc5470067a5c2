use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::state::Incoming;

/// Queued requests of one shell, or of control, in order of arrival.
pub(super) struct RequestQueue {
    arriving: mpsc::Receiver<Incoming>,
    /// Requests that were queued when an execution failed. A shell aborts the executions among them.
    to_abort: VecDeque<Incoming>,
}

impl RequestQueue {
    /// Creates a queue. At its capacity, senders wait.
    pub(super) fn new(capacity: usize) -> (mpsc::Sender<Incoming>, Self) {
        let (sender, arriving) = mpsc::channel(capacity);
        let requests = Self {
            arriving,
            to_abort: VecDeque::new(),
        };
        (sender, requests)
    }

    /// Returns the next request, and whether to abort it if it is an execution. `None` once all senders are dropped.
    pub(super) async fn next(&mut self) -> Option<(Incoming, bool)> {
        match self.to_abort.pop_front() {
            Some(incoming) => Some((incoming, true)),
            None => Some((self.arriving.recv().await?, false)),
        }
    }

    /// Marks the queued requests to be aborted. Requests that are still in the buffers of the sockets will run.
    pub(super) async fn abort_queued(&mut self) {
        // Lets the receiving task queue the requests that it has already received.
        tokio::task::yield_now().await;
        while let Ok(incoming) = self.arriving.try_recv() {
            self.to_abort.push_back(incoming);
        }
    }
}
