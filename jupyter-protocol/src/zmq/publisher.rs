use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::mpsc;

use super::SocketError;
use super::connection::{Role, Sender};
use super::listener::Listener;
use super::listening::{Kind, Listening, Peer};
use super::zmtp::{self, Limits};
use crate::wire::WireMessage;

const XPUB: Role<'_> = Role {
    socket_type: "XPUB",
    identity: b"",
    peers: &["SUB", "XSUB"],
};

/// How many messages wait for a subscriber beside those that are being written.
const WAITING: usize = 64;
/// How many subscriptions wait to be seen; after that, who subscribes waits.
const EVENTS: usize = 64;
/// How many subscriptions a subscriber may make. Clients make one; each is kept, and answered.
const MOST_SUBSCRIPTIONS: usize = 256;

/// An XPUB socket, as a kernel has for iopub. Nothing is dropped: it waits for the slowest subscriber.
pub(crate) struct Publisher {
    listening: Listening,
    events: mpsc::Receiver<Event>,
    subscribers: HashMap<u64, Subscriber>,
}

struct Subscriber {
    sender: Sender,
    topics: Vec<Bytes>,
}

/// A subscription that has begun.
pub(crate) struct Subscription {
    subscriber: u64,
    /// What the topics that are subscribed to begin with.
    pub(crate) topic: Bytes,
}

impl Publisher {
    /// A subscriber that takes nothing for as long as `patience`, while there is something for it, loses its connection.
    pub(crate) fn new(listener: Listener, patience: Duration) -> Self {
        let (to_events, events) = mpsc::channel(EVENTS);
        let kind = Kind {
            role: XPUB,
            limits: Limits::SHORT,
            waiting: WAITING,
            patience,
        };
        let last = Arc::new(AtomicU64::new(0));
        let serve = move |peer| {
            let number = last.fetch_add(1, Ordering::Relaxed);
            receive_all(number, to_events.clone(), peer)
        };
        Self {
            listening: Listening::start(listener, kind, serve),
            events,
            subscribers: HashMap::new(),
        }
    }

    /// The next subscription, which is in force from now on. Cancel-safe.
    pub(crate) async fn subscription(&mut self) -> Subscription {
        loop {
            let Some(event) = self.events.recv().await else {
                // Nobody listens any more.
                return std::future::pending().await;
            };
            if let Some(subscription) = self.take(event) {
                return subscription;
            }
        }
    }

    fn take(&mut self, event: Event) -> Option<Subscription> {
        let Event { subscriber, what } = event;
        match what {
            What::Subscribed(topic, sender) => {
                let topics = Vec::new();
                let known = self
                    .subscribers
                    .entry(subscriber)
                    .or_insert(Subscriber { sender, topics });
                if known.topics.contains(&topic) {
                    return None;
                }
                known.topics.push(topic.clone());
                Some(Subscription { subscriber, topic })
            }
            What::Cancelled(topic) => {
                if let Some(known) = self.subscribers.get_mut(&subscriber) {
                    known.topics.retain(|other| *other != topic);
                }
                None
            }
            What::Gone => {
                self.subscribers.remove(&subscriber);
                None
            }
        }
    }

    /// Sends to all that subscribed to what the message's first frame begins with, and waits until their queues have
    /// taken it.
    pub(crate) async fn publish(&self, message: WireMessage) {
        let frames = message.into_frames();
        let topic = frames.first().cloned().unwrap_or_default();
        let encoded = zmtp::encode(&frames);
        let subscribed = self.subscribers.values();
        let subscribed =
            subscribed.filter(|subscriber| subscriber.topics.iter().any(|prefix| topic.starts_with(prefix)));
        // It fails where one is gone, which is told by an event.
        join_all(subscribed.map(|subscriber| subscriber.sender.send_encoded(encoded.clone()))).await;
    }

    /// Sends to the one that subscribed.
    pub(crate) async fn answer(&self, subscription: &Subscription, message: WireMessage) {
        if let Some(subscriber) = self.subscribers.get(&subscription.subscriber) {
            // It fails where it is gone.
            let _ = subscriber.sender.send(&message.into_frames()).await;
        }
    }

    /// Closes all connections once what was published is written, or could not be for a second.
    pub(crate) async fn close(self) {
        drop((self.events, self.subscribers));
        self.listening.close().await;
    }
}

struct Event {
    subscriber: u64,
    what: What,
}

enum What {
    Subscribed(Bytes, Sender),
    Cancelled(Bytes),
    Gone,
}

/// Receives what one subscriber asks for.
async fn receive_all(subscriber: u64, events: mpsc::Sender<Event>, peer: Peer) {
    let Peer {
        sender, mut receiver, ..
    } = peer;
    let receive = async {
        let mut made = 0;
        loop {
            let what = match zmtp::subscription(&receiver.traffic().await?) {
                Some((true, _)) if made == MOST_SUBSCRIPTIONS => {
                    return Err(SocketError::Broken(format!(
                        "it made {made} subscriptions and wants more"
                    )));
                }
                Some((true, topic)) => {
                    made += 1;
                    What::Subscribed(topic, sender.clone())
                }
                Some((false, topic)) => What::Cancelled(topic),
                // As XPUB sockets may, what is no subscription is passed over.
                None => continue,
            };
            if events.send(Event { subscriber, what }).await.is_err() {
                // Nobody publishes any more.
                return Ok::<_, SocketError>(());
            }
        }
    };
    if let Err(error) = receive.await {
        tracing::debug!(%error, "an iopub subscriber is gone");
    }
    let what = What::Gone;
    // It fails where nobody publishes any more.
    let _ = events.send(Event { subscriber, what }).await;
}
