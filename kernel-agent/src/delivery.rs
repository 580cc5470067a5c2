//! Messages from the gateway to the kernel's sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jupyter_protocol::codec::websocket_v1;
use jupyter_protocol::zmq::DealerSender;
use jupyter_protocol::{Channel, Signer, WireMessage};
use kernel_provider::agent::Accepted;
use kernel_provider::agent::frame::{CHANNELS, Outgoing, channel_index};
use kernel_provider::lock;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::agent::Agent;

/// Sends messages to the kernel, one after another on each channel.
pub(crate) struct Delivery {
    queues: [mpsc::Sender<Queued>; 3],
    /// The last message queued on each channel, so that a message that is repeated after a reconnect is sent once.
    last_queued: std::sync::Mutex<Accepted>,
    sockets: [Socket; 3],
    /// Connection generation, incremented on every disconnect. A message is only sent to the process that ran when it
    /// arrived.
    generation: AtomicU64,
}

/// The sending half of a socket.
#[derive(Default)]
struct Socket {
    sender: Mutex<Option<(DealerSender, Signer)>>,
    changed: Notify,
}

struct Queued {
    message: Outgoing,
    generation: u64,
}

/// The receiving ends of the queues.
pub(crate) struct DeliveryQueues([mpsc::Receiver<Queued>; 3]);

impl Delivery {
    pub(crate) fn new() -> (Self, DeliveryQueues) {
        // The gateway has one unaccepted message on each channel, and another one if the kernel is restarted.
        let [(a, x), (b, y), (c, z)] = CHANNELS.map(|_| mpsc::channel(2));
        let delivery = Self {
            queues: [a, b, c],
            last_queued: std::sync::Mutex::default(),
            sockets: Default::default(),
            generation: AtomicU64::new(0),
        };
        (delivery, DeliveryQueues([x, y, z]))
    }

    /// Queues a message, unless it was queued before. Returns `false` if the gateway sent it before the previous one was
    /// accepted.
    pub(crate) fn queue(&self, message: Outgoing) -> bool {
        let Outgoing {
            channel, log, number, ..
        } = message;
        let mut last_queued = lock(&self.last_queued);
        if last_queued.has(channel, log, number) {
            return true;
        }
        let generation = self.generation.load(Ordering::Relaxed);
        let queue = &self.queues[channel_index(channel)];
        let queued = queue.try_send(Queued { message, generation }).is_ok();
        if queued {
            last_queued.add(channel, log, number);
        }
        queued
    }

    /// Connects a channel to this socket.
    pub(crate) async fn connect(&self, channel: Channel, sender: DealerSender, signer: Signer) {
        let socket = &self.sockets[channel_index(channel)];
        *socket.sender.lock().await = Some((sender, signer));
        socket.changed.notify_one();
    }

    /// Closes the sockets, because their process has ended. Messages for it are dropped.
    pub(crate) async fn disconnect(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        for socket in &self.sockets {
            // The lock is free soon: a pending send fails, because the process has ended.
            *socket.sender.lock().await = None;
            socket.changed.notify_one();
        }
    }

    /// Sends a message once its socket is connected. Drops it if the process that ran when it arrived has ended.
    async fn deliver(&self, queued: &Queued, message: &WireMessage) {
        let socket = &self.sockets[channel_index(queued.message.channel)];
        while self.generation.load(Ordering::Relaxed) == queued.generation {
            let mut sender = socket.sender.lock().await;
            if let Some((to, signer)) = &mut *sender {
                let message = message.clone().with_identities([]).signed(signer);
                match to.send(message).await {
                    Ok(()) => return,
                    Err(error) => {
                        debug!(channel = %queued.message.channel, %error, "a message waits for its socket to reconnect");
                        *sender = None;
                    }
                }
            }
            drop(sender);
            socket.changed.notified().await;
        }
    }
}

impl DeliveryQueues {
    /// Starts a task for each channel.
    pub(crate) fn spawn(self, agent: &Arc<Agent>) -> Vec<JoinHandle<()>> {
        let tasks = self.0.into_iter().map(|mut queue| {
            let agent = agent.clone();
            tokio::spawn(async move {
                while let Some(queued) = queue.recv().await {
                    match websocket_v1::decode(&queued.message.message) {
                        Ok((_, message)) => agent.delivery.deliver(&queued, &message).await,
                        Err(error) => warn!(%error, "a message for the kernel is not valid"),
                    }
                    let Outgoing {
                        channel, log, number, ..
                    } = queued.message;
                    agent
                        .accepted
                        .send_modify(|accepted| accepted.add(channel, log, number));
                }
            })
        });
        tasks.collect()
    }
}
