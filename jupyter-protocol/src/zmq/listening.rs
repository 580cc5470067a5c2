//! The connections of a socket that listens.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::SocketError;
use super::connection::{Receiver, Role, Sender, halves, shake_hands};
use super::inbox::Inbox;
use super::listener::Listener;
use super::socket::Socket;
use super::zmtp::Limits;

/// How many connections a socket has at a time: with five sockets, fewer than the 1,024 files that a process may mostly
/// have. Those beyond wait in the system's queue until one ends.
const MOST: usize = 128;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to wait where the system gives no more connections. That it does again is no event.
const PAUSE: Duration = Duration::from_millis(100);

/// What a socket that listens is to whoever connects.
pub(super) struct Kind {
    pub(super) role: Role<'static>,
    /// How large what it receives may be.
    pub(super) limits: Limits,
    /// How many messages may wait for those that are being written, a connection.
    pub(super) waiting: usize,
    /// How long the other side may take nothing while something is to be written, before its connection is closed.
    pub(super) patience: Duration,
}

/// A connection after its handshake.
pub(super) struct Peer {
    /// What the other side calls itself; may be empty.
    pub(super) identity: Bytes,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

/// A socket that listens. Dropped, it and its connections end at once.
pub(crate) struct Listening {
    /// The task that accepts, which owns those of the connections.
    task: JoinSet<()>,
    /// Held as long as it is open.
    open: watch::Sender<()>,
}

impl Listening {
    /// Accepts connections, each of which is open until `serve` ends for it and what it sent is written.
    pub(super) fn start<S, F>(listener: Listener, kind: Kind, serve: S) -> Self
    where
        S: Fn(Peer) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (open, closed) = watch::channel(());
        let mut task = JoinSet::new();
        task.spawn(accept_all(listener, Arc::new((kind, serve)), closed));
        Self { task, open }
    }

    /// Closes all connections once what was sent over them is written, or could not be for a second.
    pub(crate) async fn close(mut self) {
        drop(self.open);
        self.task.join_next().await;
    }
}

async fn accept_all<S, F>(listener: Listener, socket: Arc<(Kind, S)>, mut closed: watch::Receiver<()>)
where
    S: Fn(Peer) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = closed.changed() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MOST => accepted,
        };
        match accepted {
            Ok(stream) => {
                let (socket, closed) = (socket.clone(), closed.clone());
                connections.spawn(async move { connection(stream, &socket.0, &socket.1, closed).await });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                if error.kind() != ErrorKind::ConnectionAborted {
                    sleep(PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection from its first byte to its end.
async fn connection<S, F>(stream: Socket, kind: &Kind, serve: &S, mut closed: watch::Receiver<()>)
where
    S: Fn(Peer) -> F,
    F: Future<Output = ()>,
{
    let mut inbox = Inbox::new(kind.limits);
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE, shake_hands(&stream, &mut inbox, &kind.role)) => shaken,
        _ = closed.changed() => return,
    };
    let shaken = shaken.unwrap_or_else(|_| Err(SocketError::Broken(format!("no handshake within {HANDSHAKE:?}"))));
    let identity = match shaken {
        Ok(identity) => identity,
        Err(error) => {
            tracing::debug!(%error, socket_type = kind.role.socket_type, "who connected is refused");
            return;
        }
    };
    let (sender, receiver, write) = halves(stream, inbox, kind.waiting, kind.patience);
    let serve = async {
        tokio::select! {
            () = serve(Peer { identity, sender, receiver }) => {}
            _ = closed.changed() => {}
        }
    };
    tokio::join!(write, serve);
}
