use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::shared::Incoming;

/// The requests of one shell that wait to be handled, in their order.
pub(super) struct Requests {
    arriving: mpsc::Receiver<Incoming>,
    /// What waited when an execution failed: the executions among them are to be aborted.
    doomed: VecDeque<Incoming>,
}

impl Requests {
    /// A queue of at most `most` requests, beyond which their clients wait.
    pub(super) fn new(most: usize) -> (mpsc::Sender<Incoming>, Self) {
        let (sender, arriving) = mpsc::channel(most);
        let requests = Self {
            arriving,
            doomed: VecDeque::new(),
        };
        (sender, requests)
    }

    /// The next request, and whether it is doomed; `None` when there will be no more.
    pub(super) async fn next(&mut self) -> Option<(Incoming, bool)> {
        match self.doomed.pop_front() {
            Some(incoming) => Some((incoming, true)),
            None => Some((self.arriving.recv().await?, false)),
        }
    }

    /// Dooms what waits now. What is still on its way through the system is not known yet, and runs.
    pub(super) async fn doom(&mut self) {
        // What the receiver holds already it can hand over first.
        tokio::task::yield_now().await;
        while let Ok(waiting) = self.arriving.try_recv() {
            self.doomed.push_back(waiting);
        }
    }
}
