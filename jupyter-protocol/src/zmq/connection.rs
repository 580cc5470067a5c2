//! ZMTP connections: connecting, the handshake, and the sending and receiving halves.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::SocketError;
use super::memory::MessageMemory;
use super::read_buffer::ReadBuffer;
use super::socket::Socket;
use super::throttle::{Throttle, skipped_error};
use super::zmtp::{self, Limits, Traffic};
use crate::Backoff;

/// First and longest delay between attempts to connect to an address that is not listening yet.
const RETRIES: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
/// Maximum number of messages per write.
const MAX_BATCH: usize = 64;
/// How long queued messages may take to be written after both halves are dropped.
const LINGER: Duration = Duration::from_secs(1);
/// Write timeout of connections to a kernel, which have none: a busy kernel does not read its sockets.
const NO_TIMEOUT: Duration = Duration::MAX;

/// Socket type and identity that the handshake announces, and the peers that it accepts.
pub(super) struct Role<'a> {
    pub(super) socket_type: &'a str,
    /// At most 255 bytes; an empty identity is not announced.
    pub(super) identity: &'a [u8],
    /// Accepted socket types of the peer.
    pub(super) peers: &'a [&'a str],
}

/// Connects, shakes hands and sends the bytes `first`, all within `deadline`.
///
/// Retries an address that is not listening yet. `recv_buffer_size` is as for [`Socket::connect`].
pub(super) async fn connect(
    endpoint: &str,
    role: &Role<'_>,
    first: &'static [u8],
    recv_buffer_size: u32,
    deadline: Duration,
) -> Result<(Socket, ReadBuffer), SocketError> {
    let connected = timeout(deadline, async {
        let socket = connect_with_retry(endpoint, recv_buffer_size)
            .await
            .map_err(SocketError::broken)?;
        let mut read_buffer = ReadBuffer::new(Limits::MESSAGE);
        shake_hands(&socket, &mut read_buffer, role).await?;
        write(&socket, Bytes::from_static(first)).await?;
        Ok((socket, read_buffer))
    });
    let reason = match connected.await {
        Ok(Ok(connected)) => return Ok(connected),
        Ok(Err(SocketError::Broken(reason))) => reason,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {deadline:?}"),
    };
    Err(SocketError::Connect {
        endpoint: endpoint.to_owned(),
        reason,
    })
}

/// Connects, retrying with backoff until the address listens, because no event reports when it does.
async fn connect_with_retry(endpoint: &str, recv_buffer_size: u32) -> io::Result<Socket> {
    let mut backoff = RETRIES;
    loop {
        match Socket::connect(endpoint, recv_buffer_size).await {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                sleep(backoff.next_pause()).await;
            }
            connected => return connected,
        }
    }
}

/// Performs the ZMTP handshake and returns the peer's identity, which may be empty.
pub(super) async fn shake_hands(
    socket: &Socket,
    read_buffer: &mut ReadBuffer,
    role: &Role<'_>,
) -> Result<Bytes, SocketError> {
    write(socket, Bytes::copy_from_slice(&zmtp::greeting())).await?;
    while !read_buffer.take_greeting().map_err(SocketError::broken)? {
        fill(socket, read_buffer).await?;
    }
    write(socket, zmtp::ready(role.socket_type, role.identity)).await?;
    loop {
        match read_buffer.take_handshake_command().map_err(SocketError::broken)? {
            Some(command) => return zmtp::check_ready(&command, role.peers).map_err(SocketError::broken),
            None => fill(socket, read_buffer).await?,
        }
    }
}

async fn write(socket: &Socket, bytes: Bytes) -> Result<(), SocketError> {
    let pieces = [bytes].into_iter().filter(|bytes| !bytes.is_empty());
    let written = socket.write_all(pieces.collect(), NO_TIMEOUT).await;
    written.map_err(SocketError::broken)
}

/// Waits until bytes arrive and reads them. Cancel-safe.
async fn fill(socket: &Socket, read_buffer: &mut ReadBuffer) -> Result<(), SocketError> {
    read_buffer.reserve_memory().await?;
    while !read_buffer.read(|buffer| socket.try_read(buffer))? {
        read_buffer.release_if_empty();
        tokio::select! {
            readable = socket.readable() => readable.map_err(SocketError::broken)?,
            () = read_buffer.until_overdue() => {}
        }
    }
    Ok(())
}

/// Splits a connection into halves and spawns the task that writes queued messages.
///
/// `queue_capacity` is the capacity of the send queue in messages; messages that are being written do not count. After
/// both halves are dropped, the connection closes once the queue is written, or after [`LINGER`].
pub(super) fn split(socket: Socket, read_buffer: ReadBuffer, queue_capacity: usize) -> (Sender, Receiver) {
    let (sender, receiver, write) = halves(socket, read_buffer, queue_capacity, NO_TIMEOUT);
    tokio::spawn(write);
    (sender, receiver)
}

/// Splits a connection as [`split`] does, and returns the writing future instead of spawning it.
///
/// The future completes when the connection closes, or when the peer does not read for `write_timeout`.
pub(super) fn halves(
    socket: Socket,
    read_buffer: ReadBuffer,
    queue_capacity: usize,
    write_timeout: Duration,
) -> (Sender, Receiver, impl Future<Output = ()> + Send) {
    let socket = Arc::new(socket);
    let (queue, to_write) = mpsc::channel(queue_capacity);
    let (open, closed) = oneshot::channel();
    let unwritten = Arc::new(Mutex::new(0));
    let write = write_all(socket.clone(), to_write, unwritten.clone(), closed, write_timeout);
    let sender = Sender {
        socket,
        queue,
        unwritten,
        _open: Arc::new(open),
    };
    let receiver = Receiver {
        read_buffer,
        sender: sender.clone(),
        throttle: Throttle::default(),
    };
    (sender, receiver, write)
}

/// Writes queued messages until all senders are dropped. When it ends, the queue closes, which notifies both halves.
async fn write_all(
    socket: Arc<Socket>,
    mut queue: mpsc::Receiver<VecDeque<Bytes>>,
    unwritten: Arc<Mutex<usize>>,
    closed: oneshot::Receiver<Open>,
    write_timeout: Duration,
) {
    let write = async {
        let mut messages = Vec::new();
        while queue.recv_many(&mut messages, MAX_BATCH).await > 0 {
            let taken = messages.len();
            let pieces = messages.drain(..).flatten().collect();
            socket.write_all(pieces, write_timeout).await?;
            *lock(&unwritten) -= taken;
        }
        io::Result::Ok(())
    };
    let linger = async {
        // Completes when both halves are dropped.
        let _ = closed.await;
        sleep(LINGER).await;
    };
    tokio::select! {
        written = write => {
            if let Err(error) = written {
                tracing::debug!(%error, "failed to write to a connection");
            }
        }
        () = linger => tracing::debug!("closing a connection and dropping its unsent messages"),
    }
}

/// Value type of the oneshot channel that closes when both halves are dropped. No value is ever sent.
type Open = std::convert::Infallible;

/// Sending half of a connection.
#[derive(Clone)]
pub(super) struct Sender {
    socket: Arc<Socket>,
    queue: mpsc::Sender<VecDeque<Bytes>>,
    /// Number of messages that are queued or being written. While it is 0, only the holder of the lock writes.
    unwritten: Arc<Mutex<usize>>,
    _open: Arc<oneshot::Sender<Open>>,
}

impl Sender {
    /// Queues a message, waiting for capacity. A cancelled call has not queued the message.
    ///
    /// If no other message is queued or being written, writes the message directly, which saves the latency of waking
    /// the writing task.
    pub(super) async fn send(&self, frames: &[Bytes]) -> Result<(), SocketError> {
        let mut message = zmtp::encode(frames);
        let permit = self.queue.reserve().await.map_err(|_| not_writable())?;
        let mut unwritten = lock(&self.unwritten);
        if *unwritten == 0 {
            // The writing task gets the same error and then closes the queue, which notifies both halves.
            let _ = self.socket.try_write(&mut message);
        }
        if !message.is_empty() {
            *unwritten += 1;
            permit.send(message);
        }
        Ok(())
    }

    /// Queues an encoded message, waiting for capacity, and leaves writing to the task, which batches messages.
    ///
    /// Suits a publisher better than [`send`](Self::send).
    #[cfg(feature = "kernel")]
    pub(super) async fn send_encoded(&self, message: VecDeque<Bytes>) -> Result<(), SocketError> {
        let permit = self.queue.reserve().await.map_err(|_| not_writable())?;
        *lock(&self.unwritten) += 1;
        permit.send(message);
        Ok(())
    }

    /// Queues the message if there is capacity, or drops it.
    fn try_send(&self, message: VecDeque<Bytes>) {
        if let Ok(permit) = self.queue.try_reserve() {
            *lock(&self.unwritten) += 1;
            permit.send(message);
        }
    }
}

/// Locks the counter, ignoring poisoning: a panic cannot leave the count half updated.
fn lock(unwritten: &Mutex<usize>) -> MutexGuard<'_, usize> {
    unwritten.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_writable() -> SocketError {
    SocketError::Broken("the peer no longer reads".to_owned())
}

/// Receiving half of a connection.
pub(super) struct Receiver {
    read_buffer: ReadBuffer,
    sender: Sender,
    pub(super) throttle: Throttle,
}

impl Receiver {
    pub(super) fn set_memory(&mut self, memory: &MessageMemory) {
        self.read_buffer.set_memory(memory);
    }

    /// Receives the frames of the next message, skipping commands. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Result<Vec<Bytes>, SocketError> {
        loop {
            match self.recv_traffic().await? {
                Traffic::Message(frames) => return Ok(frames),
                Traffic::Skipped(bytes) => return Err(skipped_error(bytes)),
                Traffic::Command(_) => {}
            }
        }
    }

    /// Receives the next message or command, answering PING commands itself. Cancel-safe.
    pub(super) async fn recv_traffic(&mut self) -> Result<Traffic, SocketError> {
        loop {
            // Yields to other tasks while the socket always has more to read.
            tokio::task::consume_budget().await;
            self.throttle.wait().await;
            let next = self.read_buffer.next()?;
            if let Some(Traffic::Command(command)) = &next {
                self.throttle.command(command);
            }
            match next {
                Some(Traffic::Command(command)) => match zmtp::pong(&command) {
                    Some(pong) => {
                        // With a full queue the PONG may be dropped: the queued messages show that this side is alive.
                        self.sender.try_send([pong].into());
                    }
                    None => return Ok(Traffic::Command(command)),
                },
                Some(message) => return Ok(message),
                None => tokio::select! {
                    // Receives the bytes that arrived before the connection ended.
                    biased;
                    filled = fill(&self.sender.socket, &mut self.read_buffer) => filled?,
                    () = self.sender.queue.closed() => return Err(not_writable()),
                },
            }
        }
    }
}
