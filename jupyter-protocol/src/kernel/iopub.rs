//! The iopub socket: one task publishes all messages in their order and welcomes subscribers (JEP 65).
//!
//! Nothing is dropped here: what is published waits for the slowest subscriber, and once [`QUEUE`] messages wait, so
//! does whoever publishes. A subscriber that takes nothing at all would stop the kernel for ever, so after [`PATIENCE`]
//! it is disconnected. ZeroMQ does not tell which one it is, so all are; those that live connect again by themselves
//! and are welcomed again, and miss what was published meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeromq::util::PeerIdentity;
use zeromq::{MultiPeerBackend, Socket, SocketEvent, SocketRecv, SocketSend, XPubSocket, ZmqMessage};

use crate::content::IopubWelcome;
use crate::message::Message;
use crate::signing::Signer;

/// How many messages wait to be published.
const QUEUE: usize = 1_000;

/// How long subscribers may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many of the latest subscribers are known by name, to be disconnected.
const REMEMBERED_PEERS: usize = 1_024;

/// Publishes on iopub.
pub(super) struct Iopub {
    queue: mpsc::Sender<ZmqMessage>,
    close: Arc<Notify>,
    signer: Signer,
    session: String,
}

impl Iopub {
    pub(super) fn new(socket: XPubSocket, signer: Signer, session: String) -> (Self, JoinHandle<()>) {
        Self::with_patience(socket, signer, session, PATIENCE)
    }

    fn with_patience(
        socket: XPubSocket,
        signer: Signer,
        session: String,
        patience: Duration,
    ) -> (Self, JoinHandle<()>) {
        let (queue, to_publish) = mpsc::channel(QUEUE);
        let welcome = Welcome {
            signer: signer.clone(),
            session: session.clone(),
        };
        let close = Arc::new(Notify::new());
        let task = tokio::spawn(publish_all(socket, to_publish, close.clone(), welcome, patience));
        let iopub = Self {
            queue,
            close,
            signer,
            session,
        };
        (iopub, task)
    }

    /// Lets the task end once what waits is published, even if somebody could still publish.
    pub(super) fn close(&self) {
        self.close.notify_one();
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

/// Ends when nobody can publish any more or it is closed, after the last message was handed to the system.
async fn publish_all(
    mut socket: XPubSocket,
    mut to_publish: mpsc::Receiver<ZmqMessage>,
    close: Arc<Notify>,
    welcome: Welcome,
    patience: Duration,
) {
    let mut events = socket.monitor();
    let mut peers = Peers {
        backend: socket.backend(),
        names: VecDeque::new(),
    };
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
            Some(event) = events.next() => {
                if let SocketEvent::Accepted(_, peer) = event {
                    peers.add(peer);
                }
                None
            }
            () = close.notified() => {
                to_publish.close();
                None
            }
            message = to_publish.recv() => match message {
                Some(message) => Some(message),
                None => return,
            },
        };
        let Some(message) = message else { continue };
        match timeout(patience, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an iopub subscriber is gone"),
            Err(_) => {
                tracing::warn!("an iopub subscriber took nothing for {patience:?}: all are disconnected");
                peers.disconnect();
            }
        }
    }
}

/// The subscribers, disconnected when this is dropped: the socket itself would leave their connections open.
struct Peers {
    backend: Arc<dyn MultiPeerBackend>,
    names: VecDeque<PeerIdentity>,
}

impl Peers {
    fn add(&mut self, name: PeerIdentity) {
        if self.names.len() == REMEMBERED_PEERS {
            self.names.pop_front();
        }
        self.names.push_back(name);
    }

    fn disconnect(&mut self) {
        for name in self.names.drain(..) {
            self.backend.peer_disconnected(&name);
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.disconnect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Content, Stream};
    use crate::zmq::IopubSubscriber;

    const SOON: Duration = Duration::from_secs(20);

    async fn next(subscriber: &mut IopubSubscriber) -> Content {
        loop {
            // An error where it was disconnected within a message; it connects again.
            if let Ok(wire) = timeout(SOON, subscriber.recv()).await.unwrap() {
                return Message::from_wire(&wire).unwrap().content;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_subscriber_that_takes_nothing_does_not_stop_the_others_for_ever() {
        let mut socket = XPubSocket::new();
        let address = socket.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
        let patience = Duration::from_millis(100);
        let (iopub, _task) = Iopub::with_patience(socket, Signer::unsigned(), "session".to_owned(), patience);
        let mut stalled = IopubSubscriber::connect(&address, SOON).await.unwrap();
        let mut reading = IopubSubscriber::connect(&address, SOON).await.unwrap();
        for subscriber in [&mut stalled, &mut reading] {
            assert!(matches!(next(subscriber).await, Content::IopubWelcome(_)));
        }
        let flood = async {
            let text = "x".repeat(1 << 20);
            for _ in 0..100 {
                iopub.publish(&Message::new(Stream::stdout(&text), "session")).await;
            }
        };
        // Whoever reads is disconnected too, but connects again and is welcomed again.
        let welcomed_again = async { while !matches!(next(&mut reading).await, Content::IopubWelcome(_)) {} };
        tokio::join!(flood, welcomed_again);
        iopub.publish(&Message::new(Stream::stdout("last"), "session")).await;
        loop {
            if let Content::Stream(stream) = next(&mut reading).await
                && stream.text == "last"
            {
                break;
            }
        }
    }
}
