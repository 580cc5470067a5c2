//! The stdin socket: input requests to the client whose request the kernel is handling.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::error::InputError;
use super::state::{Incoming, KernelState, Origin};
use crate::channel::Channel;
use crate::content::{Content, InputRequest};
use crate::message::Message;
use crate::zmq::{RouterReceiver, RouterSender};

/// How long a client that is not connected has to reconnect before an input request fails.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The stdin socket with the pending input requests.
pub(super) struct Stdin {
    socket: RouterSender,
    pending: Mutex<Vec<PendingInput>>,
}

struct PendingInput {
    identities: Vec<Bytes>,
    msg_id: String,
    answer: oneshot::Sender<String>,
}

impl Stdin {
    pub(super) fn new(socket: RouterSender) -> Self {
        Self {
            socket,
            pending: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PendingInput>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an input request and waits for the answer.
    pub(super) async fn request_input(
        &self,
        state: &KernelState,
        origin: &Origin,
        prompt: String,
        password: bool,
    ) -> Result<String, InputError> {
        if !origin.allow_stdin {
            return Err(InputError::NotAllowed);
        }
        let request = InputRequest {
            prompt,
            password,
            ..InputRequest::default()
        };
        let message = Message::new(request, &state.session).with_parent(origin.header.clone());
        let (answer, answered) = oneshot::channel();
        {
            let mut pending = self.lock();
            // Removes requests whose future was dropped or interrupted.
            pending.retain(|input| !input.answer.is_closed());
            pending.push(PendingInput {
                identities: origin.identities.clone(),
                msg_id: message.header.msg_id.clone(),
                answer,
            });
        }
        let wire = message.to_wire().signed(&state.signer);
        // Clients use the same identity on shell and stdin.
        self.socket
            .send_once_connected(
                wire.with_identities(origin.identities.iter().cloned()),
                RECONNECT_DEADLINE,
            )
            .await
            .map_err(|_| InputError::NoClient)?;
        answered.await.map_err(|_| InputError::NoClient)
    }

    /// Delivers an answer to the pending input request of its client.
    ///
    /// Some clients send no parent header, so an answer without one goes to the client's oldest pending input request.
    fn deliver(&self, message: Incoming) {
        let Content::InputReply(reply) = message.message.content else {
            return;
        };
        let parent = message
            .message
            .parent_header
            .map(|parent| parent.msg_id)
            .unwrap_or_default();
        let mut pending = self.lock();
        let found = pending.iter().position(|input| {
            input.identities == message.identities
                && (parent.is_empty() || parent == input.msg_id)
                && !input.answer.is_closed()
        });
        if let Some(index) = found {
            // Fails if the request has just been dropped.
            let _ = pending.remove(index).answer.send(reply.value);
        }
    }

    /// Receives answers until the task is aborted.
    pub(super) async fn receive_all(state: &KernelState, mut socket: RouterReceiver) {
        let mut receiver = state.receiver(Channel::Stdin);
        loop {
            state.stdin.deliver(receiver.next(&mut socket).await);
        }
    }
}
