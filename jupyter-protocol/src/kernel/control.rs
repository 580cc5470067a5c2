//! The control socket: handled while shell is busy, and interrupt and shutdown even while control itself is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::dispatch::{DynKernel, failure, handle, refuse};
use super::requests::Requests;
use super::shared::{Incoming, Shared};
use super::shell::Shells;
use crate::channel::Channel;
use crate::content::{
    Content, CreateSubshellReply, DeleteSubshellReply, InterruptReply, ListSubshellReply, Reply, ReplyError,
    ShutdownReply,
};
use crate::zmq::{RouterReceiver, RouterSender};

/// How many requests wait to be handled.
const QUEUE: usize = 100;

/// How long a kernel may take to shut down before it is ended all the same.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The queue of what may wait, and what handles it.
pub(super) fn worker(
    kernel: DynKernel,
    shared: Arc<Shared>,
    socket: RouterSender,
) -> (mpsc::Sender<Incoming>, impl Future<Output = ()> + Send) {
    let (queue, mut requests) = Requests::new(QUEUE);
    let work = async move {
        while let Some((incoming, _)) = requests.next().await {
            handle(&kernel, &shared, &socket, incoming, &mut requests).await;
        }
    };
    (queue, work)
}

pub(super) async fn receive_all(
    kernel: DynKernel,
    shared: Arc<Shared>,
    shells: Arc<Shells>,
    sender: RouterSender,
    mut socket: RouterReceiver,
    queue: mpsc::Sender<Incoming>,
) {
    let mut receiver = shared.receiver(Channel::Control);
    loop {
        let incoming = receiver.next(&mut socket).await;
        match &incoming.message.content {
            Content::InterruptRequest(_) => {
                interrupt(&kernel, &shared);
                refuse(&shared, &sender, incoming, Reply::Ok(InterruptReply::default()).into()).await;
            }
            Content::ShutdownRequest(_) => shutdown(&kernel, &shared, &sender, incoming).await,
            content => match subshells(&kernel, &shells, content) {
                Some(reply) => refuse(&shared, &sender, incoming, reply).await,
                None => {
                    // It fails where the kernel is being shut down.
                    let _ = queue.send(incoming).await;
                }
            },
        }
    }
}

pub(super) fn interrupt(kernel: &DynKernel, shared: &Shared) {
    shared.running.interrupt();
    kernel.interrupt();
}

pub(super) async fn shutdown(kernel: &DynKernel, shared: &Shared, socket: &RouterSender, incoming: Incoming) {
    let Content::ShutdownRequest(request) = &incoming.message.content else {
        return;
    };
    let restart = request.restart;
    let polite = async {
        kernel.shutdown(restart).await;
        let reply = ShutdownReply {
            restart,
            ..ShutdownReply::default()
        };
        refuse(shared, socket, incoming, Reply::Ok(reply).into()).await;
    };
    if timeout(SHUTDOWN, polite).await.is_err() {
        tracing::warn!("the kernel's shutdown took longer than {SHUTDOWN:?}");
    }
    shared.end(restart);
}

/// The reply to what makes, ends and lists subshells (JEP 91); `None` where it is something else.
fn subshells(kernel: &DynKernel, shells: &Shells, content: &Content) -> Option<Content> {
    let msg_type = content.msg_type();
    let error = |evalue| failure(msg_type, &ReplyError::new("SubshellError", evalue));
    if !matches!(
        content,
        Content::CreateSubshellRequest(_) | Content::DeleteSubshellRequest(_) | Content::ListSubshellRequest(_)
    ) {
        return None;
    }
    if !kernel.has_subshells() {
        return Some(error("this kernel has no subshells"));
    }
    Some(match content {
        Content::CreateSubshellRequest(_) => match shells.create() {
            Some(subshell_id) => Reply::Ok(CreateSubshellReply {
                subshell_id,
                ..CreateSubshellReply::default()
            })
            .into(),
            None => error("there are too many subshells"),
        },
        Content::DeleteSubshellRequest(request) if shells.delete(&request.subshell_id) => {
            Reply::Ok(DeleteSubshellReply::default()).into()
        }
        Content::DeleteSubshellRequest(_) => error("there is no subshell of this id"),
        _ => Reply::Ok(ListSubshellReply {
            subshell_id: shells.list(),
            ..ListSubshellReply::default()
        })
        .into(),
    })
}
