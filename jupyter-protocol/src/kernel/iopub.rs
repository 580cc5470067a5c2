//! The iopub socket: one task publishes all messages in their order and welcomes subscribers (JEP 65).
//!
//! Nothing is dropped here: what is published waits for the slowest subscriber, and once [`QUEUE`] messages wait, so
//! does whoever publishes. A subscriber that takes nothing at all would stop the kernel for ever, so after [`PATIENCE`]
//! it is disconnected. ZeroMQ does not tell which one it is, so all are; those that live connect again by themselves
//! and are welcomed again, and miss what was published meanwhile.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeromq::{Socket, SocketRecv, SocketSend, XPubSocket, ZmqMessage};

use crate::content::IopubWelcome;
use crate::message::Message;
use crate::signing::Signer;

/// How many messages wait to be published.
const QUEUE: usize = 1_000;

/// How long subscribers may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Publishes on iopub.
pub(super) struct Iopub {
    queue: mpsc::Sender<ZmqMessage>,
    signer: Signer,
    session: String,
}

impl Iopub {
    pub(super) fn new(socket: XPubSocket, signer: Signer, session: String) -> (Self, JoinHandle<()>) {
        let (queue, to_publish) = mpsc::channel(QUEUE);
        let welcome = Welcome {
            signer: signer.clone(),
            session: session.clone(),
        };
        let task = tokio::spawn(publish_all(socket, to_publish, welcome));
        let iopub = Self { queue, signer, session };
        (iopub, task)
    }

    pub(super) async fn publish(&self, message: &Message) {
        let topic = format!("kernel.{}.{}", self.session, message.msg_type());
        if let Some(message) = frames(message, topic.into(), &self.signer) {
            // It fails where the kernel is being shut down.
            let _ = self.queue.send(message).await;
        }
    }
}

fn frames(message: &Message, topic: Bytes, signer: &Signer) -> Option<ZmqMessage> {
    let message = message.to_wire().signed(signer).with_identities([topic]);
    ZmqMessage::try_from(message.into_frames()).ok()
}

struct Welcome {
    signer: Signer,
    session: String,
}

impl Welcome {
    /// The answer to a subscription; `None` for anything else, such as the end of one.
    fn to(&self, event: ZmqMessage) -> Option<ZmqMessage> {
        let event = event.into_vec().pop()?;
        let topic = event.strip_prefix(&[1])?;
        let welcome = IopubWelcome {
            subscription: String::from_utf8_lossy(topic).into_owned(),
            ..IopubWelcome::default()
        };
        let message = Message::new(welcome, &self.session);
        frames(&message, Bytes::copy_from_slice(topic), &self.signer)
    }
}

/// Ends when nobody can publish any more, after the last message was handed to the system.
async fn publish_all(mut socket: XPubSocket, mut to_publish: mpsc::Receiver<ZmqMessage>, welcome: Welcome) {
    loop {
        let message = tokio::select! {
            // Before what follows, so that a subscriber's first message is its welcome.
            biased;
            event = socket.recv() => match event {
                Ok(event) => welcome.to(event),
                Err(error) => {
                    tracing::debug!(%error, "an iopub subscriber sent what is no subscription");
                    None
                }
            },
            message = to_publish.recv() => match message {
                Some(message) => Some(message),
                None => return,
            },
        };
        let Some(message) = message else { continue };
        match timeout(PATIENCE, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an iopub subscriber is gone"),
            Err(_) => {
                tracing::warn!("an iopub subscriber took nothing for {PATIENCE:?}: all are disconnected");
                socket.backend().shutdown();
            }
        }
    }
}
