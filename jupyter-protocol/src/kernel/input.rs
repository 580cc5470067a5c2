//! The stdin socket: the kernel asks the client whose request it handles.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::error::InputError;
use super::shared::{Incoming, Origin, Shared};
use crate::channel::Channel;
use crate::content::{Content, InputRequest};
use crate::message::Message;
use crate::zmq::{RouterReceiver, RouterSender};

pub(super) struct Input {
    socket: RouterSender,
    asked: Mutex<Vec<Asked>>,
}

struct Asked {
    identities: Vec<Bytes>,
    msg_id: String,
    answer: oneshot::Sender<String>,
}

impl Input {
    pub(super) fn new(socket: RouterSender) -> Self {
        Self {
            socket,
            asked: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn ask(
        &self,
        shared: &Shared,
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
        let message = Message::new(request, &shared.session).with_parent(origin.header.clone());
        let (answer, answered) = oneshot::channel();
        {
            let mut asked = self.lock();
            // Whoever waited no longer, since it was dropped or interrupted, is forgotten.
            asked.retain(|asked| !asked.answer.is_closed());
            asked.push(Asked {
                identities: origin.identities.clone(),
                msg_id: message.header.msg_id.clone(),
                answer,
            });
        }
        let wire = message.to_wire().signed(&shared.signer);
        // A client has the same identity on shell and stdin.
        self.socket
            .send(wire.with_identities(origin.identities.iter().cloned()))
            .await
            .map_err(|_| InputError::NoClient)?;
        answered.await.map_err(|_| InputError::NoClient)
    }

    /// Hands an answer to whoever asked this client. Not every client says which question it answers.
    fn answer(&self, message: Incoming) {
        let Content::InputReply(reply) = message.message.content else {
            return;
        };
        let parent = message
            .message
            .parent_header
            .map(|parent| parent.msg_id)
            .unwrap_or_default();
        let mut asked = self.lock();
        let found = asked.iter().position(|asked| {
            asked.identities == message.identities
                && (parent.is_empty() || parent == asked.msg_id)
                && !asked.answer.is_closed()
        });
        if let Some(index) = found {
            // It fails where nobody waits any more.
            let _ = asked.remove(index).answer.send(reply.value);
        }
    }

    pub(super) async fn receive_all(shared: &Shared, mut socket: RouterReceiver) {
        let mut receiver = shared.receiver(Channel::Stdin);
        loop {
            shared.input.answer(receiver.next(&mut socket).await);
        }
    }
}
