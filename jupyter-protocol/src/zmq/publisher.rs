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
use super::server::{Peer, SocketOptions, SocketServer};
use super::zmtp::{self, Limits};
use crate::wire::WireMessage;

const XPUB: Role<'_> = Role {
    socket_type: "XPUB",
    identity: b"",
    peers: &["SUB", "XSUB"],
};

/// Capacity of each subscriber's send queue in messages. Messages that are being written do not count.
const QUEUE_CAPACITY: usize = 64;
/// Capacity of the event queue. A full queue makes subscribers wait.
const EVENT_CAPACITY: usize = 64;
/// Maximum number of subscriptions per subscriber, including cancelled ones. Clients usually make one. The limit bounds
/// the stored topics and the welcome messages sent.
const MAX_SUBSCRIPTIONS: usize = 256;

/// XPUB socket, which a kernel uses for iopub. It drops no messages: the slowest subscriber applies backpressure.
pub(crate) struct Publisher {
    server: SocketServer,
    events: mpsc::Receiver<Event>,
    subscribers: HashMap<u64, Subscriber>,
}

struct Subscriber {
    sender: Sender,
    topics: Vec<Bytes>,
}

/// A new subscription.
pub(crate) struct Subscription {
    subscriber_id: u64,
    /// Prefix of the subscribed topics.
    pub(crate) topic: Bytes,
}

impl Publisher {
    /// Starts a publisher. A subscriber that reads nothing for `write_timeout` is disconnected.
    pub(crate) fn new(listener: Listener, write_timeout: Duration) -> Self {
        let (event_sender, events) = mpsc::channel(EVENT_CAPACITY);
        let options = SocketOptions {
            role: XPUB,
            limits: Limits::SHORT,
            queue_capacity: QUEUE_CAPACITY,
            write_timeout,
        };
        let next_id = Arc::new(AtomicU64::new(0));
        let serve = move |peer| {
            let subscriber_id = next_id.fetch_add(1, Ordering::Relaxed);
            receive_all(subscriber_id, event_sender.clone(), peer)
        };
        Self {
            server: SocketServer::start(listener, options, serve),
            events,
            subscribers: HashMap::new(),
        }
    }

    /// Waits for the next subscription and activates it. Cancel-safe.
    pub(crate) async fn next_subscription(&mut self) -> Subscription {
        loop {
            let Some(event) = self.events.recv().await else {
                // The server has ended, so there are no more subscriptions.
                return std::future::pending().await;
            };
            if let Some(subscription) = self.apply(event) {
                return subscription;
            }
        }
    }

    fn apply(&mut self, event: Event) -> Option<Subscription> {
        let Event { subscriber_id, kind } = event;
        match kind {
            EventKind::Subscribed(topic, sender) => {
                let topics = Vec::new();
                let subscriber = self
                    .subscribers
                    .entry(subscriber_id)
                    .or_insert(Subscriber { sender, topics });
                if subscriber.topics.contains(&topic) {
                    return None;
                }
                subscriber.topics.push(topic.clone());
                Some(Subscription { subscriber_id, topic })
            }
            EventKind::Unsubscribed(topic) => {
                if let Some(subscriber) = self.subscribers.get_mut(&subscriber_id) {
                    subscriber.topics.retain(|other| *other != topic);
                }
                None
            }
            EventKind::Disconnected => {
                self.subscribers.remove(&subscriber_id);
                None
            }
        }
    }

    /// Sends a message to all subscribers of its topic, which is its first frame, and waits until the message is queued
    /// for each.
    pub(crate) async fn publish(&self, message: WireMessage) {
        let frames = message.into_frames();
        let topic = frames.first().cloned().unwrap_or_default();
        let encoded = zmtp::encode(&frames);
        let subscribed = self.subscribers.values();
        let subscribed =
            subscribed.filter(|subscriber| subscriber.topics.iter().any(|prefix| topic.starts_with(prefix)));
        // Fails for subscribers that have disconnected. Their `Disconnected` events remove them.
        join_all(subscribed.map(|subscriber| subscriber.sender.send_encoded(encoded.clone()))).await;
    }

    /// Sends a message to the subscriber that made the subscription.
    pub(crate) async fn send_to(&self, subscription: &Subscription, message: WireMessage) {
        if let Some(subscriber) = self.subscribers.get(&subscription.subscriber_id) {
            // Fails if the subscriber has disconnected.
            let _ = subscriber.sender.send(&message.into_frames()).await;
        }
    }

    /// Closes all connections once published messages are written, or after one second.
    pub(crate) async fn close(self) {
        drop((self.events, self.subscribers));
        self.server.close().await;
    }
}

struct Event {
    subscriber_id: u64,
    kind: EventKind,
}

enum EventKind {
    Subscribed(Bytes, Sender),
    Unsubscribed(Bytes),
    Disconnected,
}

/// Receives the subscriptions of one subscriber and forwards them as events.
async fn receive_all(subscriber_id: u64, events: mpsc::Sender<Event>, peer: Peer) {
    let Peer {
        sender, mut receiver, ..
    } = peer;
    let receive = async {
        let mut count = 0;
        loop {
            let kind = match zmtp::subscription(&receiver.recv_traffic().await?) {
                Some((true, _)) if count == MAX_SUBSCRIPTIONS => {
                    return Err(SocketError::Broken(format!(
                        "the subscriber exceeded the limit of {MAX_SUBSCRIPTIONS} subscriptions"
                    )));
                }
                Some((true, topic)) => {
                    count += 1;
                    EventKind::Subscribed(topic, sender.clone())
                }
                Some((false, topic)) => EventKind::Unsubscribed(topic),
                // XPUB sockets may ignore other messages.
                None => continue,
            };
            if events.send(Event { subscriber_id, kind }).await.is_err() {
                // The publisher was dropped.
                return Ok::<_, SocketError>(());
            }
        }
    };
    if let Err(error) = receive.await {
        tracing::debug!(%error, "an iopub subscriber disconnected");
    }
    let kind = EventKind::Disconnected;
    // Fails if the publisher was dropped.
    let _ = events.send(Event { subscriber_id, kind }).await;
}
