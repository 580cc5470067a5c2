use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::SocketError;
use super::connection::{Role, Sender};
use super::listener::Listener;
use super::listening::{Kind, Listening, Peer};
use super::zmtp::Limits;
use crate::wire::WireMessage;

const ROUTER: Kind = Kind {
    role: Role {
        socket_type: "ROUTER",
        identity: b"",
        peers: &["DEALER", "REQ", "ROUTER"],
    },
    limits: Limits::MESSAGE,
    waiting: 16,
    patience: Duration::from_secs(10),
};

/// How many messages of all clients wait to be received; after that, clients wait in turn.
const QUEUE: usize = 8;

/// A ROUTER socket, as a kernel has for shell, control and stdin.
///
/// A client that has no identity gets one. Of two connections of one identity the newer one has it and the older one is
/// closed, as ipykernel has it (`ROUTER_HANDOVER`) and unlike libzmq's default: a client that comes back may do so
/// before its old connection is known to be dead.
pub(crate) fn router(listener: Listener) -> (RouterSender, RouterReceiver, Listening) {
    let (queue, incoming) = mpsc::channel(QUEUE);
    let clients = Arc::new(Clients::default());
    let sender = RouterSender(clients.clone());
    let serve = move |peer| receive_all(clients.clone(), queue.clone(), peer);
    (
        sender,
        RouterReceiver(incoming),
        Listening::start(listener, ROUTER, serve),
    )
}

/// The sending half of a ROUTER socket.
#[derive(Clone)]
pub(crate) struct RouterSender(Arc<Clients>);

impl RouterSender {
    /// Sends to the client that the message's first frame names. Waits for room in that client's queue; one that takes
    /// nothing for ten seconds loses its connection.
    pub(crate) async fn send(&self, message: WireMessage) -> Result<(), SocketError> {
        let frames = message.into_frames();
        let client = frames.split_first().and_then(|(identity, frames)| {
            let sender = self.0.lock().connected.get(identity)?.sender.clone();
            Some((sender, frames))
        });
        match client {
            Some((sender, frames)) => sender.send(frames).await,
            None => Err(SocketError::Broken("the client is not connected".to_owned())),
        }
    }
}

/// The receiving half of a ROUTER socket.
pub(crate) struct RouterReceiver(mpsc::Receiver<Vec<Bytes>>);

impl RouterReceiver {
    /// The next message's frames, the sender's identity first. Never comes once the socket is closed. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> Vec<Bytes> {
        match self.0.recv().await {
            Some(frames) => frames,
            None => std::future::pending().await,
        }
    }
}

/// Who is connected.
#[derive(Default)]
struct Clients(Mutex<ByIdentity>);

#[derive(Default)]
struct ByIdentity {
    connected: HashMap<Bytes, Client>,
    /// The number of the last connection.
    last: u64,
}

struct Client {
    number: u64,
    sender: Sender,
    /// Dropped with this, it ends the connection.
    _kept: oneshot::Sender<Infallible>,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, ByIdentity> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a client, in place of another of its identity. Returns what tells that it was itself replaced.
    fn enter(self: &Arc<Self>, mut identity: Bytes, sender: Sender) -> (Entry, oneshot::Receiver<Infallible>) {
        let (kept, replaced) = oneshot::channel();
        let mut clients = self.lock();
        clients.last += 1;
        let number = clients.last;
        if identity.is_empty() {
            // As libzmq's: with a zero in front, so that it is nobody's own.
            identity = [&[0][..], &number.to_be_bytes()].concat().into();
        }
        let client = Client {
            number,
            sender,
            _kept: kept,
        };
        clients.connected.insert(identity.clone(), client);
        let entry = Entry {
            clients: self.clone(),
            identity,
            number,
        };
        (entry, replaced)
    }
}

/// A client's entry among those that are connected, for as long as this is there.
struct Entry {
    clients: Arc<Clients>,
    identity: Bytes,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut clients = self.clients.lock();
        if clients
            .connected
            .get(&self.identity)
            .is_some_and(|client| client.number == self.number)
        {
            clients.connected.remove(&self.identity);
        }
    }
}

/// Receives one client's messages.
async fn receive_all(clients: Arc<Clients>, queue: mpsc::Sender<Vec<Bytes>>, peer: Peer) {
    let Peer {
        identity,
        sender,
        mut receiver,
    } = peer;
    if identity.len() > 255 || identity.first() == Some(&0) {
        tracing::debug!("a client is refused whose identity has more than 255 bytes or begins with a zero");
        return;
    }
    let (entry, replaced) = clients.enter(identity, sender);
    let receive = async {
        loop {
            let mut frames = receiver.recv().await?;
            frames.insert(0, entry.identity.clone());
            if queue.send(frames).await.is_err() {
                // Nobody receives any more.
                return Ok::<_, SocketError>(());
            }
        }
    };
    tokio::select! {
        ended = receive => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a client is gone");
            }
        }
        _ = replaced => tracing::debug!("a client has connected anew"),
    }
}
