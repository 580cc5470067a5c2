//! A connection from the first byte on: the handshake, then a half that receives and a task that writes.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::SocketError;
use super::inbox::Inbox;
use super::memory::MessageMemory;
use super::socket::Socket;
use super::throttle::{Throttle, left_out};
use super::zmtp::{self, Limits, Traffic};

/// How long to wait before an address where nobody listens yet is tried again, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MOST: Duration = Duration::from_millis(500);
/// How many messages are written at a time.
const AT_ONCE: usize = 64;
/// How long what was taken may take to be written once both halves are gone.
const LINGER: Duration = Duration::from_secs(1);
/// Who connects waits for the other side for ever: a kernel that computes reads nothing meanwhile.
const FOR_EVER: Duration = Duration::MAX;

/// What a socket says that it is, and what it talks to.
pub(super) struct Role<'a> {
    pub(super) socket_type: &'a str,
    /// At most 255 bytes; none where it is empty.
    pub(super) identity: &'a [u8],
    pub(super) peers: &'a [&'a str],
}

/// Connects, with room for `unread` bytes, shakes hands and sends `first`, all until the deadline. An address where nobody
/// listens yet is tried again.
pub(super) async fn connect(
    endpoint: &str,
    role: &Role<'_>,
    first: &'static [u8],
    unread: u32,
    deadline: Duration,
) -> Result<(Socket, Inbox), SocketError> {
    let connected = timeout(deadline, async {
        let socket = connect_patiently(endpoint, unread).await.map_err(SocketError::broken)?;
        let mut inbox = Inbox::new(Limits::MESSAGE);
        shake_hands(&socket, &mut inbox, role).await?;
        write(&socket, Bytes::from_static(first)).await?;
        Ok((socket, inbox))
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

/// Connects as soon as somebody listens. That they do is no event that could be waited for.
async fn connect_patiently(endpoint: &str, unread: u32) -> io::Result<Socket> {
    let mut pause = RETRY_FIRST;
    loop {
        match Socket::connect(endpoint, unread).await {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_MOST);
            }
            connected => return connected,
        }
    }
}

/// Says who we are and hears who the other side is. Returns its identity, which may be empty.
pub(super) async fn shake_hands(socket: &Socket, inbox: &mut Inbox, role: &Role<'_>) -> Result<Bytes, SocketError> {
    write(socket, Bytes::copy_from_slice(&zmtp::greeting())).await?;
    while !inbox.greeting().map_err(SocketError::broken)? {
        fill(socket, inbox).await?;
    }
    write(socket, zmtp::ready(role.socket_type, role.identity)).await?;
    loop {
        match inbox.command().map_err(SocketError::broken)? {
            Some(command) => return zmtp::check_ready(&command, role.peers).map_err(SocketError::broken),
            None => fill(socket, inbox).await?,
        }
    }
}

async fn write(socket: &Socket, bytes: Bytes) -> Result<(), SocketError> {
    let pieces = [bytes].into_iter().filter(|bytes| !bytes.is_empty());
    let written = socket.write_all(pieces.collect(), FOR_EVER).await;
    written.map_err(SocketError::broken)
}

/// Reads, and waits for something to read. Cancel-safe.
async fn fill(socket: &Socket, inbox: &mut Inbox) -> Result<(), SocketError> {
    inbox.memory().await?;
    while !inbox.read(|buffer| socket.try_read(buffer))? {
        inbox.rest();
        tokio::select! {
            readable = socket.readable() => readable.map_err(SocketError::broken)?,
            () = inbox.overdue() => {}
        }
    }
    Ok(())
}

/// Starts to write what is sent, of which `waiting` messages may wait beside those that are being written.
///
/// The connection is closed when both halves are dropped and what they took is written, or could not be for [`LINGER`].
pub(super) fn split(socket: Socket, inbox: Inbox, waiting: usize) -> (Sender, Receiver) {
    let (sender, receiver, write) = halves(socket, inbox, waiting, FOR_EVER);
    tokio::spawn(write);
    (sender, receiver)
}

/// As [`split`], with what writes for whoever runs it. It ends where the other side takes nothing for so long.
pub(super) fn halves(
    socket: Socket,
    inbox: Inbox,
    waiting: usize,
    patience: Duration,
) -> (Sender, Receiver, impl Future<Output = ()> + Send) {
    let socket = Arc::new(socket);
    let (queue, to_write) = mpsc::channel(waiting);
    let (open, closed) = oneshot::channel();
    let waiting = Arc::new(Mutex::new(0));
    let write = write_all(socket.clone(), to_write, waiting.clone(), closed, patience);
    let sender = Sender {
        socket,
        queue,
        waiting,
        _open: Arc::new(open),
    };
    let receiver = Receiver {
        inbox,
        sender: sender.clone(),
        throttle: Throttle::default(),
    };
    (sender, receiver, write)
}

/// Writes until nobody can send any more. When it ends, both halves learn of it by their queue.
async fn write_all(
    socket: Arc<Socket>,
    mut queue: mpsc::Receiver<VecDeque<Bytes>>,
    waiting: Arc<Mutex<usize>>,
    closed: oneshot::Receiver<Open>,
    patience: Duration,
) {
    let write = async {
        let mut messages = Vec::new();
        while queue.recv_many(&mut messages, AT_ONCE).await > 0 {
            let taken = messages.len();
            let pieces = messages.drain(..).flatten().collect();
            socket.write_all(pieces, patience).await?;
            *lock(&waiting) -= taken;
        }
        io::Result::Ok(())
    };
    let linger = async {
        // Nothing is ever sent over it: it ends with the last half.
        let _ = closed.await;
        sleep(LINGER).await;
    };
    tokio::select! {
        written = write => {
            if let Err(error) = written {
                tracing::debug!(%error, "a connection cannot be written to any more");
            }
        }
        () = linger => tracing::debug!("a connection is closed, and what was to be sent over it is lost"),
    }
}

/// Held by both halves.
type Open = std::convert::Infallible;

/// The half that sends.
#[derive(Clone)]
pub(super) struct Sender {
    socket: Arc<Socket>,
    queue: mpsc::Sender<VecDeque<Bytes>>,
    /// How many messages are in the queue, or taken from it and not yet written. Nobody else writes while it is held.
    waiting: Arc<Mutex<usize>>,
    _open: Arc<oneshot::Sender<Open>>,
}

impl Sender {
    /// Waits for room in the queue, then takes the message. Cancelled, it has not taken it. Where nothing waits to be
    /// written, it is written here and now: whoever waits for the answer is not to wait for another task as well.
    pub(super) async fn send(&self, frames: &[Bytes]) -> Result<(), SocketError> {
        let mut message = zmtp::encode(frames);
        let room = self.queue.reserve().await.map_err(|_| not_writable())?;
        let mut waiting = lock(&self.waiting);
        if *waiting == 0 {
            // Where it fails, so does the task that writes, and by its end both halves learn of it.
            let _ = self.socket.try_write(&mut message);
        }
        if !message.is_empty() {
            *waiting += 1;
            room.send(message);
        }
        Ok(())
    }

    /// As [`send`](Self::send), for what goes to many, and often: many messages are written in one go.
    #[cfg(feature = "kernel")]
    pub(super) async fn send_encoded(&self, message: VecDeque<Bytes>) -> Result<(), SocketError> {
        let room = self.queue.reserve().await.map_err(|_| not_writable())?;
        *lock(&self.waiting) += 1;
        room.send(message);
        Ok(())
    }

    /// Takes the message if there is room.
    fn offer(&self, message: VecDeque<Bytes>) {
        if let Ok(room) = self.queue.try_reserve() {
            *lock(&self.waiting) += 1;
            room.send(message);
        }
    }
}

/// A panic elsewhere while the lock was held leaves a count that is right.
fn lock(waiting: &Mutex<usize>) -> MutexGuard<'_, usize> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_writable() -> SocketError {
    SocketError::Broken("the other side takes nothing any more".to_owned())
}

/// The half that receives.
pub(super) struct Receiver {
    inbox: Inbox,
    sender: Sender,
    pub(super) throttle: Throttle,
}

impl Receiver {
    pub(super) fn share(&mut self, memory: &MessageMemory) {
        self.inbox.share(memory);
    }

    /// The next message's frames; commands are passed over. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Result<Vec<Bytes>, SocketError> {
        loop {
            match self.traffic().await? {
                Traffic::Message(frames) => return Ok(frames),
                Traffic::LeftOut(bytes) => return Err(left_out(bytes)),
                Traffic::Command(_) => {}
            }
        }
    }

    /// The next message, or command other than PING, which is answered. Cancel-safe.
    pub(super) async fn traffic(&mut self) -> Result<Traffic, SocketError> {
        loop {
            // Where there is always something to read, the other tasks have their turn.
            tokio::task::consume_budget().await;
            self.throttle.wait().await;
            let next = self.inbox.next()?;
            if let Some(Traffic::Command(command)) = &next {
                self.throttle.command(command);
            }
            match next {
                Some(Traffic::Command(command)) => match zmtp::pong(&command) {
                    Some(pong) => {
                        // Where there is no room the other side will hear from us by what waits, if it reads at all.
                        self.sender.offer([pong].into());
                    }
                    None => return Ok(Traffic::Command(command)),
                },
                Some(message) => return Ok(message),
                None => tokio::select! {
                    // What arrived before the connection ended is received first.
                    biased;
                    filled = fill(&self.sender.socket, &mut self.inbox) => filled?,
                    () = self.sender.queue.closed() => return Err(not_writable()),
                },
            }
        }
    }
}
