//! The shell socket: the main shell and each subshell (JEP 91) handle their requests one after the other, and run
//! concurrently with each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::dispatch::{DynKernel, error_reply, handle, reply_directly};
use super::request_queue::RequestQueue;
use super::state::{Incoming, KernelState};
use crate::channel::Channel;
use crate::content::{Content, ExecuteReply, Reply, ReplyError};
use crate::zmq::{RouterReceiver, RouterSender};

/// Capacity of the request queue of each shell. At its capacity, clients wait.
const QUEUE_CAPACITY: usize = 1_000;

/// Maximum number of subshells.
const MAX_SUBSHELLS: usize = 100;

/// The main shell and the subshells with their workers. A worker ends once its queue is closed and empty.
pub(super) struct Shells {
    kernel: DynKernel,
    state: Arc<KernelState>,
    socket: RouterSender,
    subshells: Mutex<Subshells>,
}

#[derive(Default)]
struct Subshells {
    queues: HashMap<String, mpsc::Sender<Incoming>>,
    workers: JoinSet<()>,
}

impl Shells {
    pub(super) fn new(kernel: DynKernel, state: Arc<KernelState>, socket: RouterSender) -> Self {
        Self {
            kernel,
            state,
            socket,
            subshells: Mutex::default(),
        }
    }

    fn subshells(&self) -> MutexGuard<'_, Subshells> {
        self.subshells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a subshell and returns its id, or `None` if there are too many.
    pub(super) fn create(&self) -> Option<String> {
        let mut subshells = self.subshells();
        while subshells.workers.try_join_next().is_some() {}
        if subshells.queues.len() >= MAX_SUBSHELLS {
            return None;
        }
        let id = uuid::Uuid::new_v4().to_string();
        let (queue, requests) = RequestQueue::new(QUEUE_CAPACITY);
        subshells.queues.insert(id.clone(), queue);
        subshells.workers.spawn(run_shell(
            self.kernel.clone(),
            self.state.clone(),
            self.socket.clone(),
            requests,
        ));
        Some(id)
    }

    /// Deletes a subshell, which handles its queued requests before it ends. Returns whether it existed.
    pub(super) fn delete(&self, id: &str) -> bool {
        self.subshells().queues.remove(id).is_some()
    }

    /// Returns the ids of the subshells.
    pub(super) fn list(&self) -> Vec<String> {
        self.subshells().queues.keys().cloned().collect()
    }

    /// Receives requests and queues each for its shell.
    pub(super) async fn receive_all(self: Arc<Self>, mut socket: RouterReceiver, main: mpsc::Sender<Incoming>) {
        let mut receiver = self.state.receiver(Channel::Shell);
        loop {
            let incoming = receiver.next(&mut socket).await;
            let queue = match &incoming.message.header.subshell_id {
                None => Some(main.clone()),
                Some(id) => self.subshells().queues.get(id).cloned(),
            };
            let undeliverable = match queue {
                Some(queue) => queue.send(incoming).await.err().map(|error| error.0),
                None => Some(incoming),
            };
            if let Some(incoming) = undeliverable {
                let error = ReplyError::new("NoSuchSubshell", "no subshell has this id");
                let reply = error_reply(incoming.message.msg_type(), &error);
                reply_directly(&self.state, &self.socket, incoming, reply).await;
            }
        }
    }

    /// Creates the queue of the main shell, and the future that handles its requests.
    pub(super) fn main(&self) -> (mpsc::Sender<Incoming>, impl Future<Output = ()> + Send + use<>) {
        let (queue, requests) = RequestQueue::new(QUEUE_CAPACITY);
        let worker = run_shell(self.kernel.clone(), self.state.clone(), self.socket.clone(), requests);
        (queue, worker)
    }
}

/// Handles the requests of one shell in order.
///
/// If an execution with `stop_on_error` fails, the executions that are already queued are aborted. Later ones run.
async fn run_shell(kernel: DynKernel, state: Arc<KernelState>, socket: RouterSender, mut requests: RequestQueue) {
    while let Some((incoming, abort)) = requests.next().await {
        match incoming.message.content {
            Content::ExecuteRequest(_) if abort => {
                reply_directly(&state, &socket, incoming, Reply::<ExecuteReply>::aborted().into()).await;
            }
            Content::ShutdownRequest(_) => super::control::shutdown(&kernel, &state, &socket, incoming).await,
            _ => handle(&kernel, &state, &socket, incoming, &mut requests).await,
        }
    }
}
