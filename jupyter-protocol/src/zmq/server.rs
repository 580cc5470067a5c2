//! Server for sockets that accept connections: accepts, shakes hands and runs a handler per connection.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::SocketError;
use super::connection::{Receiver, Role, Sender, halves, shake_hands};
use super::listener::Listener;
use super::read_buffer::ReadBuffer;
use super::socket::Socket;
use super::zmtp::Limits;

/// Maximum number of connections per socket. The five sockets of a kernel together stay below 1,024 open files, a
/// common limit per process. Further connections wait in the operating system's backlog.
const MAX_CONNECTIONS: usize = 128;
/// Deadline of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay before accepting again after the system refused, for example at its limit of open files. No event reports when
/// it accepts connections again.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Options of a listening socket.
pub(super) struct SocketOptions {
    pub(super) role: Role<'static>,
    /// Maximum size of a received message.
    pub(super) limits: Limits,
    /// Capacity of each connection's send queue, in messages. Messages that are being written do not count.
    pub(super) queue_capacity: usize,
    /// Write timeout, after which a peer that does not read is disconnected.
    pub(super) write_timeout: Duration,
}

/// A connection after its handshake.
pub(super) struct Peer {
    /// Identity that the peer announced; may be empty.
    pub(super) identity: Bytes,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

/// A listening socket with its connections. Dropping it closes all of them at once.
pub(crate) struct SocketServer {
    /// The accepting task, which owns the tasks of the connections.
    task: JoinSet<()>,
    /// Dropping it makes all connections close.
    open: watch::Sender<()>,
}

impl SocketServer {
    /// Starts to accept connections and runs `serve` for each.
    ///
    /// A connection closes once its `serve` future has completed and its queued messages are written.
    pub(super) fn start<S, F>(listener: Listener, options: SocketOptions, serve: S) -> Self
    where
        S: Fn(Peer) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (open, closed) = watch::channel(());
        let mut task = JoinSet::new();
        task.spawn(accept_all(listener, Arc::new((options, serve)), closed));
        Self { task, open }
    }

    /// Closes all connections once their queued messages are written, or after one second.
    pub(crate) async fn close(mut self) {
        drop(self.open);
        self.task.join_next().await;
    }
}

async fn accept_all<S, F>(listener: Listener, socket: Arc<(SocketOptions, S)>, mut closed: watch::Receiver<()>)
where
    S: Fn(Peer) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = closed.changed() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok(stream) => {
                let (socket, closed) = (socket.clone(), closed.clone());
                connections.spawn(async move { connection(stream, &socket.0, &socket.1, closed).await });
            }
            Err(error) => {
                tracing::debug!(%error, "failed to accept a connection");
                if error.kind() != ErrorKind::ConnectionAborted {
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Runs one connection from its handshake until it closes.
async fn connection<S, F>(stream: Socket, options: &SocketOptions, serve: &S, mut closed: watch::Receiver<()>)
where
    S: Fn(Peer) -> F,
    F: Future<Output = ()>,
{
    let mut read_buffer = ReadBuffer::new(options.limits);
    let handshake = tokio::select! {
        handshake = timeout(HANDSHAKE_TIMEOUT, shake_hands(&stream, &mut read_buffer, &options.role)) => handshake,
        _ = closed.changed() => return,
    };
    let handshake = handshake.unwrap_or_else(|_| {
        Err(SocketError::Broken(format!(
            "no handshake within {HANDSHAKE_TIMEOUT:?}"
        )))
    });
    let identity = match handshake {
        Ok(identity) => identity,
        Err(error) => {
            tracing::debug!(%error, socket_type = options.role.socket_type, "handshake failed, closing the connection");
            return;
        }
    };
    let (sender, receiver, write) = halves(stream, read_buffer, options.queue_capacity, options.write_timeout);
    let serve = async {
        tokio::select! {
            () = serve(Peer { identity, sender, receiver }) => {}
            _ = closed.changed() => {}
        }
    };
    tokio::join!(write, serve);
}
