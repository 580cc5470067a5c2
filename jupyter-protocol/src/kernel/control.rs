//! The control socket, whose requests are handled while shell is busy.
//!
//! Interrupts, shutdowns and requests about subshells are handled even while another request on control runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::dispatch::{DynKernel, error_reply, handle, reply_directly};
use super::request_queue::RequestQueue;
use super::shell::Shells;
use super::state::{Incoming, KernelState};
use crate::channel::Channel;
use crate::content::{
    Content, CreateSubshellReply, DeleteSubshellReply, InterruptReply, ListSubshellReply, Reply, ReplyError,
    ShutdownReply,
};
use crate::zmq::{RouterReceiver, RouterSender};

/// Capacity of the request queue.
const QUEUE_CAPACITY: usize = 100;

/// How long a kernel may take to shut down before it is ended anyway.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates the queue of requests that are handled in order, and the future that handles them.
pub(super) fn worker(
    kernel: DynKernel,
    state: Arc<KernelState>,
    socket: RouterSender,
) -> (mpsc::Sender<Incoming>, impl Future<Output = ()> + Send) {
    let (queue, mut request_queue) = RequestQueue::new(QUEUE_CAPACITY);
    let worker = async move {
        while let Some((incoming, _)) = request_queue.next().await {
            handle(&kernel, &state, &socket, incoming, &mut request_queue).await;
        }
    };
    (queue, worker)
}

/// Receives requests, and handles interrupts, shutdowns and subshell management at once. Queues all others.
pub(super) async fn receive_all(
    kernel: DynKernel,
    state: Arc<KernelState>,
    shells: Arc<Shells>,
    sender: RouterSender,
    mut socket: RouterReceiver,
    queue: mpsc::Sender<Incoming>,
) {
    let mut receiver = state.receiver(Channel::Control);
    loop {
        let incoming = receiver.next(&mut socket).await;
        match &incoming.message.content {
            Content::InterruptRequest(_) => {
                interrupt(&kernel, &state);
                reply_directly(&state, &sender, incoming, Reply::Ok(InterruptReply::default()).into()).await;
            }
            Content::ShutdownRequest(_) => shutdown(&kernel, &state, &sender, incoming).await,
            content => match subshell_reply(&kernel, &shells, content) {
                Some(reply) => reply_directly(&state, &sender, incoming, reply).await,
                None => {
                    // Fails while the kernel shuts down.
                    let _ = queue.send(incoming).await;
                }
            },
        }
    }
}

/// Interrupts the running requests and calls [`Kernel::interrupt`](super::Kernel::interrupt).
pub(super) fn interrupt(kernel: &DynKernel, state: &KernelState) {
    state.running.interrupt();
    kernel.interrupt();
}

/// Calls [`Kernel::shutdown`](super::Kernel::shutdown), replies to the client and ends the kernel.
pub(super) async fn shutdown(kernel: &DynKernel, state: &KernelState, socket: &RouterSender, incoming: Incoming) {
    let Content::ShutdownRequest(request) = &incoming.message.content else {
        return;
    };
    let restart = request.restart;
    let graceful = async {
        kernel.shutdown(restart).await;
        let reply = ShutdownReply {
            restart,
            ..ShutdownReply::default()
        };
        reply_directly(state, socket, incoming, Reply::Ok(reply).into()).await;
    };
    end_after(state, restart, graceful).await;
}

/// Ends the kernel once the future has completed, or after [`SHUTDOWN_TIMEOUT`].
pub(super) async fn end_after(state: &KernelState, restart: bool, graceful: impl Future<Output = ()>) {
    if timeout(SHUTDOWN_TIMEOUT, graceful).await.is_err() {
        tracing::warn!("the kernel did not shut down within {SHUTDOWN_TIMEOUT:?}");
    }
    state.end(restart);
}

/// Handles a request to create, delete or list subshells (JEP 91). Returns `None` for other requests.
fn subshell_reply(kernel: &DynKernel, shells: &Shells, content: &Content) -> Option<Content> {
    let msg_type = content.msg_type();
    let error = |evalue| error_reply(msg_type, &ReplyError::new("SubshellError", evalue));
    if !matches!(
        content,
        Content::CreateSubshellRequest(_) | Content::DeleteSubshellRequest(_) | Content::ListSubshellRequest(_)
    ) {
        return None;
    }
    if !kernel.has_subshells() {
        return Some(error("this kernel does not support subshells"));
    }
    Some(match content {
        Content::CreateSubshellRequest(_) => match shells.create() {
            Some(subshell_id) => Reply::Ok(CreateSubshellReply {
                subshell_id,
                ..CreateSubshellReply::default()
            })
            .into(),
            None => error("too many subshells"),
        },
        Content::DeleteSubshellRequest(request) if shells.delete(&request.subshell_id) => {
            Reply::Ok(DeleteSubshellReply::default()).into()
        }
        Content::DeleteSubshellRequest(_) => error("no subshell has this id"),
        _ => Reply::Ok(ListSubshellReply {
            subshell_id: shells.list(),
            ..ListSubshellReply::default()
        })
        .into(),
    })
}
