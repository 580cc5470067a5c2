//! The iopub socket: one task publishes all messages in order and welcomes subscribers (JEP 65).
//!
//! Messages are never dropped. The slowest subscriber applies backpressure: once [`QUEUE_CAPACITY`] messages are
//! queued, publishing waits. A subscriber that stops reading would block the kernel forever, so it is disconnected
//! after [`WRITE_TIMEOUT`].

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

/// Capacity of the queue of messages to publish.
const QUEUE_CAPACITY: usize = 1_000;

/// Write timeout of a subscriber.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Handle that queues messages for the publishing task.
pub(super) struct IopubPublisher {
    queue: mpsc::Sender<WireMessage>,
    close: Arc<Notify>,
    signer: Signer,
    session: String,
}

impl IopubPublisher {
    pub(super) fn new(listener: Listener, signer: Signer, session: String) -> (Self, JoinHandle<()>) {
        Self::with_write_timeout(listener, signer, session, WRITE_TIMEOUT)
    }

    fn with_write_timeout(
        listener: Listener,
        signer: Signer,
        session: String,
        write_timeout: Duration,
    ) -> (Self, JoinHandle<()>) {
        let (queue, to_publish) = mpsc::channel(QUEUE_CAPACITY);
        let welcome = Welcome {
            signer: signer.clone(),
            session: session.clone(),
        };
        let close = Arc::new(Notify::new());
        let publisher = Publisher::new(listener, write_timeout);
        let task = tokio::spawn(publish_all(publisher, to_publish, close.clone(), welcome));
        let iopub = Self {
            queue,
            close,
            signer,
            session,
        };
        (iopub, task)
    }

    /// Makes the task end once the queued messages are published, even while the handle exists.
    pub(super) fn close(&self) {
        self.close.notify_one();
    }

    /// Queues a message, waiting for capacity.
    pub(super) async fn publish(&self, message: &Message) {
        let topic = format!("kernel.{}.{}", self.session, message.msg_type());
        // Fails while the kernel shuts down.
        let _ = self.queue.send(wire(message, topic.into(), &self.signer)).await;
    }
}

fn wire(message: &Message, topic: Bytes, signer: &Signer) -> WireMessage {
    message.to_wire().signed(signer).with_identities([topic])
}

/// Creates the signed `iopub_welcome` messages of a kernel.
struct Welcome {
    signer: Signer,
    session: String,
}

impl Welcome {
    /// Returns the welcome that answers a subscription.
    fn message_for(&self, subscription: &Subscription) -> WireMessage {
        let topic = &subscription.topic;
        let welcome = IopubWelcome {
            subscription: String::from_utf8_lossy(topic).into_owned(),
            ..IopubWelcome::default()
        };
        wire(&Message::new(welcome, &self.session), topic.clone(), &self.signer)
    }
}

/// Publishes until the handle is dropped or the queue is closed, then writes the remaining messages and closes the
/// socket.
async fn publish_all(
    mut publisher: Publisher,
    mut to_publish: mpsc::Receiver<WireMessage>,
    close: Arc<Notify>,
    welcome: Welcome,
) {
    loop {
        // Unbiased, so that a client that keeps subscribing does not starve publishing.
        tokio::select! {
            subscription = publisher.next_subscription() => {
                publisher.send_to(&subscription, welcome.message_for(&subscription)).await;
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

    const DEADLINE: Duration = Duration::from_secs(60);

    async fn next(subscriber: &mut IopubSubscriber) -> Content {
        let wire = timeout(DEADLINE, subscriber.recv()).await.unwrap().unwrap();
        Message::from_wire(&wire).unwrap().content
    }

    #[tokio::test]
    async fn a_subscriber_that_does_not_read_is_disconnected_and_the_others_miss_nothing() {
        let listener = Listener::bind("tcp://127.0.0.1:0").await.unwrap();
        let address = format!("tcp://127.0.0.1:{}", listener.port().unwrap());
        let write_timeout = Duration::from_secs(5);
        let (iopub, task) =
            IopubPublisher::with_write_timeout(listener, Signer::unsigned(), "session".to_owned(), write_timeout);
        let mut stalled = IopubSubscriber::connect(&address, DEADLINE).await.unwrap();
        let mut reading = IopubSubscriber::connect(&address, DEADLINE).await.unwrap();
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
                    panic!("expected output {number}, received another message");
                };
                assert!(stream.text.starts_with(&format!("{number} ")));
            }
        };
        tokio::join!(flood, reads);
        // Drains the messages in flight until the disconnect.
        timeout(DEADLINE, async { while stalled.recv().await.is_ok() {} })
            .await
            .unwrap();
        iopub.close();
        timeout(DEADLINE, task).await.unwrap().unwrap();
        assert!(timeout(DEADLINE, reading.recv()).await.unwrap().is_err());
    }
}
