//! The iopub socket: one task publishes all messages in their order and welcomes subscribers (JEP 65).
//!
//! Nothing is dropped here: what is published waits for the slowest subscriber, and once [`QUEUE`] messages wait, so
//! does whoever publishes. A subscriber that takes nothing at all would stop the kernel for ever, so after [`PATIENCE`]
//! it is disconnected.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::content::IopubWelcome;
use crate::message::Message;
use crate::signing::Signer;
use crate::wire::WireMessage;
use crate::zmq::{Listener, Publisher, Subscription};

/// How many messages wait to be published.
const QUEUE: usize = 1_000;

/// How long a subscriber may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Publishes on iopub.
pub(super) struct Iopub {
    queue: mpsc::Sender<WireMessage>,
    close: Arc<Notify>,
    signer: Signer,
    session: String,
}

impl Iopub {
    pub(super) fn new(listener: Listener, signer: Signer, session: String) -> (Self, JoinHandle<()>) {
        Self::with_patience(listener, signer, session, PATIENCE)
    }

    fn with_patience(
        listener: Listener,
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
        let publisher = Publisher::new(listener, patience);
        let task = tokio::spawn(publish_all(publisher, to_publish, close.clone(), welcome));
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
        // It fails where the kernel is being shut down.
        let _ = self.queue.send(wire(message, topic.into(), &self.signer)).await;
    }
}

fn wire(message: &Message, topic: Bytes, signer: &Signer) -> WireMessage {
    message.to_wire().signed(signer).with_identities([topic])
}

struct Welcome {
    signer: Signer,
    session: String,
}

impl Welcome {
    /// The answer to a subscription.
    fn to(&self, subscription: &Subscription) -> WireMessage {
        let topic = &subscription.topic;
        let welcome = IopubWelcome {
            subscription: String::from_utf8_lossy(topic).into_owned(),
            ..IopubWelcome::default()
        };
        wire(&Message::new(welcome, &self.session), topic.clone(), &self.signer)
    }
}

/// Ends when nobody can publish any more or it is closed, after the last message was handed to the system.
async fn publish_all(
    mut publisher: Publisher,
    mut to_publish: mpsc::Receiver<WireMessage>,
    close: Arc<Notify>,
    welcome: Welcome,
) {
    loop {
        // None before the others, so that who subscribes again and again keeps nobody from publishing.
        tokio::select! {
            subscription = publisher.subscription() => {
                publisher.answer(&subscription, welcome.to(&subscription)).await;
            }
            () = close.notified() => to_publish.close(),
            message = to_publish.recv() => match message {
                Some(message) => publisher.publish(message).await,
                None => break,
            },
        }
    }
    publisher.close().await;
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::content::{Content, Stream};
    use crate::zmq::IopubSubscriber;

    const SOON: Duration = Duration::from_secs(60);

    async fn next(subscriber: &mut IopubSubscriber) -> Content {
        let wire = timeout(SOON, subscriber.recv()).await.unwrap().unwrap();
        Message::from_wire(&wire).unwrap().content
    }

    #[tokio::test]
    async fn a_subscriber_that_takes_nothing_is_disconnected_and_the_others_miss_nothing() {
        let listener = Listener::bind("tcp://127.0.0.1:0").await.unwrap();
        let address = format!("tcp://127.0.0.1:{}", listener.port().unwrap());
        let patience = Duration::from_secs(5);
        let (iopub, task) = Iopub::with_patience(listener, Signer::unsigned(), "session".to_owned(), patience);
        let mut stalled = IopubSubscriber::connect(&address, SOON).await.unwrap();
        let mut reading = IopubSubscriber::connect(&address, SOON).await.unwrap();
        for subscriber in [&mut stalled, &mut reading] {
            assert!(matches!(next(subscriber).await, Content::IopubWelcome(_)));
        }
        let flood = async {
            for number in 0..1_000 {
                let text = format!("{number} {}", "x".repeat(64 << 10));
                iopub.publish(&Message::new(Stream::stdout(&text), "session")).await;
                tokio::task::yield_now().await;
            }
        };
        let reads = async {
            for number in 0..1_000 {
                let Content::Stream(stream) = next(&mut reading).await else {
                    panic!("what is no output came before output {number}");
                };
                assert!(stream.text.starts_with(&format!("{number} ")));
            }
        };
        tokio::join!(flood, reads);
        // What was on its way, and then the end.
        timeout(SOON, async { while stalled.recv().await.is_ok() {} })
            .await
            .unwrap();
        iopub.close();
        timeout(SOON, task).await.unwrap().unwrap();
        assert!(timeout(SOON, reading.recv()).await.unwrap().is_err());
    }
}
