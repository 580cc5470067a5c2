//! The shell socket: requests in their order, one after the other, each subshell (JEP 91) an order of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::dispatch::{DynKernel, failure, handle, refuse};
use super::requests::Requests;
use super::shared::{Incoming, Shared};
use crate::channel::Channel;
use crate::content::{Content, ExecuteReply, Reply, ReplyError};
use crate::zmq::{RouterReceiver, RouterSender};

/// How many requests wait to be handled; after that their clients wait.
const QUEUE: usize = 1_000;

/// How many subshells there may be.
const MOST_SUBSHELLS: usize = 100;

/// The queues of the subshells. A worker ends when its queue is closed and empty.
pub(super) struct Shells {
    kernel: DynKernel,
    shared: Arc<Shared>,
    socket: RouterSender,
    subshells: Mutex<Subshells>,
}

#[derive(Default)]
struct Subshells {
    queues: HashMap<String, mpsc::Sender<Incoming>>,
    workers: JoinSet<()>,
}

impl Shells {
    pub(super) fn new(kernel: DynKernel, shared: Arc<Shared>, socket: RouterSender) -> Self {
        Self {
            kernel,
            shared,
            socket,
            subshells: Mutex::default(),
        }
    }

    fn subshells(&self) -> MutexGuard<'_, Subshells> {
        self.subshells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a subshell; `None` where there are too many.
    pub(super) fn create(&self) -> Option<String> {
        let mut subshells = self.subshells();
        while subshells.workers.try_join_next().is_some() {}
        if subshells.queues.len() >= MOST_SUBSHELLS {
            return None;
        }
        let id = uuid::Uuid::new_v4().to_string();
        let (queue, requests) = Requests::new(QUEUE);
        subshells.queues.insert(id.clone(), queue);
        subshells.workers.spawn(work(
            self.kernel.clone(),
            self.shared.clone(),
            self.socket.clone(),
            requests,
        ));
        Some(id)
    }

    /// Ends a subshell once what waits in it is handled; whether there was one.
    pub(super) fn delete(&self, id: &str) -> bool {
        self.subshells().queues.remove(id).is_some()
    }

    pub(super) fn list(&self) -> Vec<String> {
        self.subshells().queues.keys().cloned().collect()
    }

    /// Receives all requests and hands each to its shell's worker.
    pub(super) async fn receive_all(self: Arc<Self>, mut socket: RouterReceiver, main: mpsc::Sender<Incoming>) {
        let mut receiver = self.shared.receiver(Channel::Shell);
        loop {
            let incoming = receiver.next(&mut socket).await;
            let queue = match &incoming.message.header.subshell_id {
                None => Some(main.clone()),
                Some(id) => self.subshells().queues.get(id).cloned(),
            };
            let refused = match queue {
                Some(queue) => queue.send(incoming).await.err().map(|error| error.0),
                None => Some(incoming),
            };
            if let Some(incoming) = refused {
                let error = ReplyError::new("NoSuchSubshell", "there is no subshell of this id");
                let reply = failure(incoming.message.msg_type(), &error);
                refuse(&self.shared, &self.socket, incoming, reply).await;
            }
        }
    }

    /// The queue of the main shell, and what handles it.
    pub(super) fn main(&self) -> (mpsc::Sender<Incoming>, impl Future<Output = ()> + Send + use<>) {
        let (queue, requests) = Requests::new(QUEUE);
        let work = work(self.kernel.clone(), self.shared.clone(), self.socket.clone(), requests);
        (queue, work)
    }
}

/// Handles requests one after the other. After an execution that failed, those that wait already are aborted, if it says
/// so: what arrives later runs.
async fn work(kernel: DynKernel, shared: Arc<Shared>, socket: RouterSender, mut requests: Requests) {
    while let Some((incoming, is_doomed)) = requests.next().await {
        match incoming.message.content {
            Content::ExecuteRequest(_) if is_doomed => {
                refuse(&shared, &socket, incoming, Reply::<ExecuteReply>::aborted().into()).await;
            }
            Content::ShutdownRequest(_) => super::control::shutdown(&kernel, &shared, &socket, incoming).await,
            _ => handle(&kernel, &shared, &socket, incoming, &mut requests).await,
        }
    }
}
