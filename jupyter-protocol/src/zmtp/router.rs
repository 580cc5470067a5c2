use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::ZmtpError;
use super::endpoint::{Endpoint, Writer};
use super::frame::{FrameReader, FrameWriter, Incoming};
use super::handshake::SocketType;
use super::listener::{OwnedTask, listen};

/// How many messages from all peers wait to be received; after that the peers wait.
const INCOMING: usize = 1_024;

/// How many messages wait for one peer to take them.
const OUTGOING: usize = 256;

/// How long a message waits for a place among those.
const PATIENCE: Duration = Duration::from_secs(10);

/// A bound ROUTER socket: it hears all its peers, and answers each by its identity.
///
/// A peer that connects with the identity of another takes its place. Dropped, it closes all connections.
pub struct Router {
    sender: RouterSender,
    receiver: RouterReceiver,
    bound: Endpoint,
}

/// The sending half of a [`Router`]; clones share it.
#[derive(Clone)]
pub struct RouterSender {
    peers: Arc<Peers>,
}

/// The receiving half of a [`Router`], which keeps the socket open.
pub struct RouterReceiver {
    incoming: mpsc::Receiver<Vec<Bytes>>,
    _task: OwnedTask,
}

#[derive(Default)]
struct Peers(Mutex<HashMap<Bytes, mpsc::Sender<Vec<Bytes>>>>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Bytes, mpsc::Sender<Vec<Bytes>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Router {
    /// Binds to an address such as `tcp://127.0.0.1:0` or `ipc:///path`.
    ///
    /// # Errors
    /// [`ZmtpError::Endpoint`] for a bad address, [`ZmtpError::Io`] where the system refuses: the port is taken, say.
    pub async fn bind(endpoint: &str) -> Result<Self, ZmtpError> {
        let peers = Arc::new(Peers::default());
        let (into_incoming, incoming) = mpsc::channel(INCOMING);
        let all_peers = peers.clone();
        let (task, bound) = listen(
            endpoint,
            SocketType::Router,
            move |reader, writer, identity| {
                serve(
                    reader,
                    writer,
                    identity,
                    all_peers.clone(),
                    into_incoming.clone(),
                )
            },
        )
        .await?;
        Ok(Self {
            sender: RouterSender { peers },
            receiver: RouterReceiver {
                incoming,
                _task: task,
            },
            bound,
        })
    }

    /// The address that was bound, with its real port.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.bound
    }

    /// The two halves.
    #[must_use]
    pub fn split(self) -> (RouterSender, RouterReceiver) {
        (self.sender, self.receiver)
    }
}

impl RouterSender {
    /// Sends to the peer whose identity is the first frame; waits up to ten seconds while too much waits for it already.
    ///
    /// # Errors
    /// [`ZmtpError::NoPeer`] where it is not connected, [`ZmtpError::Timeout`] where it takes nothing.
    pub async fn send(&self, mut frames: Vec<Bytes>) -> Result<(), ZmtpError> {
        if frames.len() < 2 {
            return Err(ZmtpError::NoPeer);
        }
        let identity = frames.remove(0);
        let peer = self
            .peers
            .lock()
            .get(&identity)
            .cloned()
            .ok_or(ZmtpError::NoPeer)?;
        match timeout(PATIENCE, peer.send(frames)).await {
            Ok(sent) => sent.map_err(|_| ZmtpError::NoPeer),
            Err(_) => Err(ZmtpError::Timeout {
                action: "take its messages",
                after: PATIENCE,
            }),
        }
    }
}

impl RouterReceiver {
    /// The next message, with its sender's identity as first frame. Cancel-safe.
    ///
    /// # Errors
    /// [`ZmtpError::Closed`] where the runtime is shutting down.
    pub async fn recv(&mut self) -> Result<Vec<Bytes>, ZmtpError> {
        self.incoming.recv().await.ok_or(ZmtpError::Closed)
    }
}

async fn serve(
    mut reader: FrameReader,
    writer: Writer,
    identity: Bytes,
    peers: Arc<Peers>,
    incoming: mpsc::Sender<Vec<Bytes>>,
) {
    // A nameless peer gets a name that no other can choose: names that begin with 0 are the socket's own.
    let identity = if identity.is_empty() {
        let id = uuid::Uuid::new_v4();
        [&[0], &id.as_bytes()[..]].concat().into()
    } else {
        identity
    };
    let (outgoing, mut to_write) = mpsc::channel(OUTGOING);
    peers.lock().insert(identity.clone(), outgoing.clone());
    let read = async {
        loop {
            match reader.next().await {
                Ok(Incoming::Message(mut frames)) => {
                    frames.insert(0, identity.clone());
                    if incoming.send(frames).await.is_err() {
                        return;
                    }
                }
                Ok(Incoming::Command(_)) => {}
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write_all(FrameWriter::new(writer), &mut to_write) => {}
    }
    let mut peers = peers.lock();
    if peers
        .get(&identity)
        .is_some_and(|current| current.same_channel(&outgoing))
    {
        peers.remove(&identity);
    }
}

/// Writes what comes, as much at once as there is, until the other side is gone or there can be no more.
pub(super) async fn write_all(mut writer: FrameWriter, messages: &mut mpsc::Receiver<Vec<Bytes>>) {
    while let Some(frames) = messages.recv().await {
        writer.put(&frames);
        while !writer.is_full() {
            match messages.try_recv() {
                Ok(frames) => writer.put(&frames),
                Err(_) => break,
            }
        }
        if writer.flush().await.is_err() {
            return;
        }
    }
}
