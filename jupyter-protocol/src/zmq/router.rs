use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};

use super::SocketError;
use super::connection::{Role, Sender};
use super::listener::Listener;
use super::server::{Peer, SocketOptions, SocketServer};
use super::zmtp::Limits;
use crate::wire::WireMessage;

const ROUTER: SocketOptions = SocketOptions {
    role: Role {
        socket_type: "ROUTER",
        identity: b"",
        peers: &["DEALER", "REQ", "ROUTER"],
    },
    limits: Limits::MESSAGE,
    queue_capacity: 16,
    write_timeout: Duration::from_secs(10),
};

/// Capacity of the receive queue that all clients share, in messages. While the queue is full, clients wait in the
/// order of their messages.
const QUEUE_CAPACITY: usize = 8;

/// Starts a ROUTER socket, as a kernel uses for shell, control and stdin.
///
/// A client without an identity is assigned one. If two connections have the same identity, the newer one takes it over
/// and the older one is closed, as in ipykernel (`ROUTER_HANDOVER`) and unlike libzmq's default: a client may reconnect
/// before the kernel notices that its old connection is dead.
pub(crate) fn router(listener: Listener) -> (RouterSender, RouterReceiver, SocketServer) {
    let (queue, incoming) = mpsc::channel(QUEUE_CAPACITY);
    let clients = Arc::new(Clients::default());
    let sender = RouterSender(clients.clone());
    let serve = move |peer| receive_all(clients.clone(), queue.clone(), peer);
    (
        sender,
        RouterReceiver(incoming),
        SocketServer::start(listener, ROUTER, serve),
    )
}

/// Sending half of a ROUTER socket.
#[derive(Clone)]
pub(crate) struct RouterSender(Arc<Clients>);

impl RouterSender {
    /// Sends a message to the client whose identity is its first frame, waiting for capacity in the client's queue.
    ///
    /// A client that does not read for ten seconds is disconnected.
    pub(crate) async fn send(&self, message: WireMessage) -> Result<(), SocketError> {
        let frames = message.into_frames();
        let client = frames.split_first().and_then(|(identity, frames)| {
            let sender = self.0.lock().by_identity.get(identity)?.sender.clone();
            Some((sender, frames))
        });
        match client {
            Some((sender, frames)) => sender.send(frames).await,
            None => Err(SocketError::Broken("the client is not connected".to_owned())),
        }
    }

    /// As [`send`](Self::send), but first waits for the client to connect, at most this long: it may be reconnecting.
    #[cfg(feature = "kernel")]
    pub(crate) async fn send_once_connected(&self, message: WireMessage, limit: Duration) -> Result<(), SocketError> {
        if let Some(identity) = message.identities().first().cloned() {
            let connected = async {
                loop {
                    let registered = self.0.registered.notified();
                    if self.0.lock().by_identity.contains_key(&identity) {
                        return;
                    }
                    registered.await;
                }
            };
            // If the client does not connect, sending fails.
            let _ = tokio::time::timeout(limit, connected).await;
        }
        self.send(message).await
    }
}

/// Receiving half of a ROUTER socket.
pub(crate) struct RouterReceiver(mpsc::Receiver<Vec<Bytes>>);

impl RouterReceiver {
    /// Receives the frames of the next message, beginning with the sender's identity. Cancel-safe.
    ///
    /// Never completes once the socket is closed.
    pub(crate) async fn recv(&mut self) -> Vec<Bytes> {
        match self.0.recv().await {
            Some(frames) => frames,
            None => std::future::pending().await,
        }
    }
}

/// The connected clients.
#[derive(Default)]
struct Clients {
    table: Mutex<ClientTable>,
    /// Notified when a client is registered.
    registered: Notify,
}

#[derive(Default)]
struct ClientTable {
    by_identity: HashMap<Bytes, Client>,
    last_connection_id: u64,
}

struct Client {
    connection_id: u64,
    sender: Sender,
    /// Closes the connection when dropped with the client.
    _connection: oneshot::Sender<Infallible>,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, ClientTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a client, replacing any other with the same identity.
    ///
    /// The receiver completes when a newer connection replaces this client.
    fn register(self: &Arc<Self>, mut identity: Bytes, sender: Sender) -> (ClientGuard, oneshot::Receiver<Infallible>) {
        let (connection, replaced) = oneshot::channel();
        let mut clients = self.lock();
        clients.last_connection_id += 1;
        let connection_id = clients.last_connection_id;
        if identity.is_empty() {
            // As in libzmq, a leading zero byte marks assigned identities. Clients may not choose an identity that
            // begins with it.
            identity = [&[0][..], &connection_id.to_be_bytes()].concat().into();
        }
        let client = Client {
            connection_id,
            sender,
            _connection: connection,
        };
        clients.by_identity.insert(identity.clone(), client);
        drop(clients);
        self.registered.notify_waiters();
        let guard = ClientGuard {
            clients: self.clone(),
            identity,
            connection_id,
        };
        (guard, replaced)
    }
}

/// Removes its client from the connected clients when dropped, unless another connection has replaced it.
struct ClientGuard {
    clients: Arc<Clients>,
    identity: Bytes,
    connection_id: u64,
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        let mut clients = self.clients.lock();
        if clients
            .by_identity
            .get(&self.identity)
            .is_some_and(|client| client.connection_id == self.connection_id)
        {
            clients.by_identity.remove(&self.identity);
        }
    }
}

/// Receives the messages of one client and forwards them to the shared queue.
async fn receive_all(clients: Arc<Clients>, queue: mpsc::Sender<Vec<Bytes>>, peer: Peer) {
    let Peer {
        identity,
        sender,
        mut receiver,
    } = peer;
    if identity.len() > 255 || identity.first() == Some(&0) {
        tracing::debug!("rejecting a client whose identity has more than 255 bytes or begins with a zero byte");
        return;
    }
    let (guard, replaced) = clients.register(identity, sender);
    let receive = async {
        loop {
            let mut frames = receiver.recv().await?;
            frames.insert(0, guard.identity.clone());
            if queue.send(frames).await.is_err() {
                // The receiving half was dropped.
                return Ok::<_, SocketError>(());
            }
        }
    };
    tokio::select! {
        ended = receive => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a client disconnected");
            }
        }
        _ = replaced => tracing::debug!("a client reconnected, closing its older connection"),
    }
}
