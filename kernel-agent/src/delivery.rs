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
    queues: [mpsc::Sender<Outgoing>; 3],
    /// The last message queued on each channel, so that a message that is repeated after a reconnect is sent once.
    last_queued: std::sync::Mutex<Accepted>,
    sockets: [Socket; 3],
    /// The number of the running process; 0 while there is none.
    process: AtomicU64,
}

/// The sending half of a socket.
#[derive(Default)]
struct Socket {
    sender: Mutex<Option<(DealerSender, Signer)>>,
    changed: Notify,
}

/// The receiving ends of the queues.
pub(crate) struct DeliveryQueues([mpsc::Receiver<Outgoing>; 3]);

impl Delivery {
    pub(crate) fn new() -> (Self, DeliveryQueues) {
        // The gateway sends one unaccepted message on each channel, and a second one after a restart of the kernel.
        let [(a, x), (b, y), (c, z)] = CHANNELS.map(|_| mpsc::channel(2));
        let delivery = Self {
            queues: [a, b, c],
            last_queued: std::sync::Mutex::default(),
            sockets: Default::default(),
            process: AtomicU64::new(0),
        };
        (delivery, DeliveryQueues([x, y, z]))
    }

    /// Queues a message, unless it was queued before. Returns `false` if the queue is full, because the gateway did not
    /// wait until earlier messages were accepted.
    pub(crate) fn queue(&self, message: Outgoing) -> bool {
        let Outgoing {
            channel, log, number, ..
        } = message;
        let mut last_queued = lock(&self.last_queued);
        if last_queued.has(channel, log, number) {
            return true;
        }
        let queued = self.queues[channel_index(channel)].try_send(message).is_ok();
        if queued {
            last_queued.add(channel, log, number);
        }
        queued
    }

    /// Starts to accept messages for this process. They are sent once its sockets are connected.
    pub(crate) fn begin(&self, process: u64) {
        self.process.store(process, Ordering::Relaxed);
    }

    /// Sends the channel's messages over this socket from now on.
    pub(crate) async fn connect(&self, channel: Channel, sender: DealerSender, signer: Signer) {
        let socket = &self.sockets[channel_index(channel)];
        *socket.sender.lock().await = Some((sender, signer));
        socket.changed.notify_one();
    }

    /// Closes the sockets, because their process has ended. Messages for it are dropped.
    pub(crate) async fn disconnect(&self) {
        self.process.store(0, Ordering::Relaxed);
        for socket in &self.sockets {
            // The lock is free soon: a pending send fails, because the process has ended.
            *socket.sender.lock().await = None;
            socket.changed.notify_one();
        }
    }

    /// Sends a message once its socket is connected. Returns `false` if its process has ended.
    async fn deliver(&self, channel: Channel, process: u64, message: &WireMessage) -> bool {
        let socket = &self.sockets[channel_index(channel)];
        loop {
            let mut sender = socket.sender.lock().await;
            // While this task holds the lock, the socket cannot be replaced with one of a later process.
            if self.process.load(Ordering::Relaxed) != process {
                return false;
            }
            if let Some((to, signer)) = &mut *sender {
                let message = message.clone().with_identities([]).signed(signer);
                match to.send(message).await {
                    Ok(()) => return true,
                    Err(error) => {
                        debug!(%channel, %error, "a message waits for its socket to reconnect");
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
    /// Starts a task for each channel, which sends the queued messages.
    pub(crate) fn spawn(self, agent: &Arc<Agent>) -> Vec<JoinHandle<()>> {
        let tasks = self.0.into_iter().map(|mut queue| {
            let agent = agent.clone();
            tokio::spawn(async move {
                while let Some(Outgoing {
                    channel,
                    process,
                    log,
                    number,
                    message,
                }) = queue.recv().await
                {
                    match websocket_v1::decode(&message) {
                        Ok((_, message)) => {
                            if !agent.delivery.deliver(channel, process, &message).await {
                                agent.reported_end(process).await;
                            }
                        }
                        Err(error) => warn!(%error, "a message for the kernel is not valid"),
                    }
                    agent
                        .accepted
                        .send_modify(|accepted| accepted.add(channel, log, number));
                }
            })
        });
        tasks.collect()
    }
}
