//! The task of a link. It connects, uses the connection until it is lost, and reconnects.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use jupyter_protocol::Backoff;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::frame::{FromAgent, Outgoing, ToAgent, channel_index, codec};
use super::incoming::Received;
use super::link::{Command, run_id};
use super::{Answer, Connect, Hello, ProcessPhase, Refused, Reply, Request, Stream, VERSION, Welcome};
use crate::Phase;

/// Pauses between attempts to connect. The first are short, because a new agent listens within milliseconds.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(2));
/// How long an agent has to answer the first frame.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Interval of pings.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// After this long without a frame, the connection counts as lost. Also the write timeout.
const SILENCE: Duration = Duration::from_secs(30);
/// How many bytes of entries the agent may send before the reader consumes some of them.
pub(super) const WINDOW: u64 = 2 << 20;

/// State that outlives a connection.
pub(super) struct Session {
    welcome: watch::Sender<Option<Welcome>>,
    phase: watch::Sender<ProcessPhase>,
    /// Why the agent refused the last attempt to connect.
    refused: watch::Sender<Option<Refused>>,
    is_connected: Arc<AtomicBool>,
    /// Requests without an answer, by id.
    controls: BTreeMap<u64, (Bytes, oneshot::Sender<Answer>)>,
    /// The unaccepted message of each channel.
    unaccepted: [Option<Outgoing>; 3],
    reading: Option<Reading>,
    /// The last acknowledged entry.
    acknowledged: u64,
}

/// The state of the reader.
struct Reading {
    /// The last entry that was received.
    position: u64,
    /// Bytes that were received and not yet consumed.
    waiting: u64,
    deliver: mpsc::UnboundedSender<Received>,
}

impl Reading {
    /// Whether this is the next entry. Entries that do not follow the position were sent for an earlier `Command::Read`.
    fn continues_with(&self, first: u64) -> bool {
        self.position.checked_add(1) == Some(first)
    }
}

impl Session {
    pub(super) fn new(
        welcome: watch::Sender<Option<Welcome>>,
        phase: watch::Sender<ProcessPhase>,
        refused: watch::Sender<Option<Refused>>,
        is_connected: Arc<AtomicBool>,
    ) -> Self {
        Self {
            welcome,
            phase,
            refused,
            is_connected,
            controls: BTreeMap::new(),
            unaccepted: [const { None }; 3],
            reading: None,
            acknowledged: 0,
        }
    }

    /// The frames that a new connection sends to continue where the previous one ended.
    fn resume(&self) -> Vec<Bytes> {
        let mut frames = vec![ToAgent::Acknowledge(self.acknowledged).encode()];
        if let Some(reading) = &self.reading {
            frames.push(ToAgent::Read(reading.position).encode());
            frames.push(ToAgent::Credit(WINDOW.saturating_sub(reading.waiting)).encode());
        }
        frames.extend(self.controls.values().map(|(frame, _)| frame.clone()));
        let unaccepted = self.unaccepted.iter().flatten();
        frames.extend(unaccepted.map(|message| ToAgent::Message(message.clone()).encode()));
        frames
    }

    /// Carries out a command, and returns the frame to send for it, if any.
    fn command(&mut self, command: Command) -> Option<Bytes> {
        match command {
            Command::Control(control, reply) => {
                let (id, _) = Uuid::new_v4().as_u64_pair();
                // Serializing strings and numbers cannot fail.
                let json = serde_json::to_vec(&Request { id, control }).unwrap_or_default();
                let frame = ToAgent::Control(json.into()).encode();
                self.controls.insert(id, (frame.clone(), reply));
                Some(frame)
            }
            Command::Read { after, deliver } => {
                self.reading = Some(Reading {
                    position: after,
                    waiting: 0,
                    deliver,
                });
                let frames = [ToAgent::Read(after).encode(), ToAgent::Credit(WINDOW).encode()];
                Some(frames.concat().into())
            }
            Command::Consumed(bytes) => {
                let reading = self.reading.as_mut()?;
                reading.waiting = reading.waiting.saturating_sub(bytes);
                Some(ToAgent::Credit(bytes).encode())
            }
            Command::Take(first) => Some(ToAgent::Take(first).encode()),
            Command::Acknowledge(seq) => {
                self.acknowledged = self.acknowledged.max(seq);
                Some(ToAgent::Acknowledge(seq).encode())
            }
            Command::DropUnsent => {
                self.unaccepted = [const { None }; 3];
                None
            }
        }
    }

    /// Handles a frame of the agent.
    fn received(&mut self, frame: FromAgent) -> io::Result<()> {
        match frame {
            FromAgent::Reply(json) => {
                let reply: Reply = serde_json::from_slice(&json)?;
                if let Some((_, waiting)) = self.controls.remove(&reply.id) {
                    // The caller may have stopped waiting.
                    let _ = waiting.send(reply.answer);
                }
            }
            FromAgent::Phase(json) => {
                let phase: ProcessPhase = serde_json::from_slice(&json)?;
                self.set_phase(phase);
            }
            FromAgent::Entries(first, last, block) => {
                if let Some(reading) = &mut self.reading
                    && reading.continues_with(first)
                {
                    reading.position = last;
                    reading.waiting += block.len() as u64;
                    let _ = reading.deliver.send(Received::Entries(block));
                }
            }
            FromAgent::Gap(first, last) => {
                if let Some(reading) = &mut self.reading
                    && reading.continues_with(first)
                {
                    reading.position = last;
                    let _ = reading.deliver.send(Received::Gap { first, last });
                }
            }
            FromAgent::Offer(first, bytes) => {
                if let Some(reading) = &self.reading
                    && reading.continues_with(first)
                {
                    let _ = reading.deliver.send(Received::Offer { first, bytes });
                }
            }
            FromAgent::Accepted(channel, number) => {
                let unaccepted = &mut self.unaccepted[channel_index(channel)];
                if unaccepted.as_ref().is_some_and(|message| message.number <= number) {
                    *unaccepted = None;
                }
            }
            FromAgent::Pong => {}
            FromAgent::Welcome(_) | FromAgent::Refused(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a welcome or refusal that is not the first frame",
                ));
            }
        }
        Ok(())
    }

    fn set_phase(&self, phase: ProcessPhase) {
        self.phase.send_if_modified(|current| {
            let changed = *current != phase;
            *current = phase;
            changed
        });
    }
}

/// Why a connection ended.
enum End {
    Lost(io::Error),
    /// The link was dropped.
    Dropped,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// Keeps the link connected until it is closed or dropped.
pub(super) async fn run(
    connect: Arc<dyn Connect>,
    mut session: Session,
    mut commands: mpsc::UnboundedReceiver<Command>,
    mut outgoing: [mpsc::Receiver<Outgoing>; 3],
    closed: CancellationToken,
) {
    let mut backoff = BACKOFF;
    while !closed.is_cancelled() {
        let error = match greet(&*connect).await {
            Ok(Ok((welcome, connection))) => {
                backoff.reset();
                session.refused.send_replace(None);
                session.set_phase(welcome.phase.clone());
                session.welcome.send_replace(Some(welcome));
                session.is_connected.store(true, Ordering::Relaxed);
                let end = connected(&mut session, &mut commands, &mut outgoing, connection).await;
                session.is_connected.store(false, Ordering::Relaxed);
                match end {
                    End::Lost(error) => error,
                    End::Dropped => return,
                }
            }
            Ok(Err(refused)) => {
                if backoff.retries() == 0 || refused != Refused::Busy {
                    warn!(?refused, "the agent of a kernel refuses the connection");
                }
                session.refused.send_replace(Some(refused));
                io::Error::other("refused")
            }
            Err(error) => error,
        };
        let pause = backoff.next_pause();
        debug!(%error, ?pause, "not connected to the agent");
        // Closing the link ends the pause.
        let _ = timeout(pause, closed.cancelled()).await;
    }
}

/// A connection that the agent has admitted.
struct Connection {
    reader: FramedRead<ReadHalf<Box<dyn Stream>>, LengthDelimitedCodec>,
    writer: WriteHalf<Box<dyn Stream>>,
}

/// Connects and exchanges the first frames.
async fn greet(connect: &dyn Connect) -> io::Result<Result<(Welcome, Connection), Refused>> {
    let hello = Hello {
        version: VERSION,
        token: connect.token().to_owned(),
        client: run_id(),
    };
    let greeting = async {
        let (reader, mut writer) = tokio::io::split(connect.connect().await?);
        let json = serde_json::to_vec(&hello)?;
        write(&mut writer, &ToAgent::Hello(json.into()).encode()).await?;
        let mut reader = FramedRead::new(reader, codec());
        match next_frame(&mut reader).await? {
            FromAgent::Welcome(json) => {
                let welcome = serde_json::from_slice(&json)?;
                Ok(Ok((welcome, Connection { reader, writer })))
            }
            FromAgent::Refused(json) => Ok(Err(serde_json::from_slice(&json)?)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the agent's first frame is neither a welcome nor a refusal",
            )),
        }
    };
    match timeout(HELLO_DEADLINE, greeting).await {
        Ok(greeted) => greeted,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, frame: &[u8]) -> io::Result<()> {
    writer.write_all(frame).await?;
    // TLS may keep the last bytes otherwise.
    writer.flush().await
}

async fn next_frame<R: tokio::io::AsyncRead + Unpin>(
    reader: &mut FramedRead<R, LengthDelimitedCodec>,
) -> io::Result<FromAgent> {
    match reader.next().await {
        Some(frame) => {
            FromAgent::decode(frame?.freeze()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        }
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Uses one connection until it is lost.
async fn connected(
    session: &mut Session,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    outgoing: &mut [mpsc::Receiver<Outgoing>; 3],
    connection: Connection,
) -> End {
    let Connection { mut reader, mut writer } = connection;
    let used = async {
        // Commands that arrived without a connection only change the state, from which `resume` makes frames.
        while let Ok(command) = commands.try_recv() {
            execute(session, command, outgoing);
        }
        for frame in session.resume() {
            write(&mut writer, &frame).await?;
        }
        let (mut last_received, mut ping_at) = (Instant::now(), Instant::now() + PING_INTERVAL);
        loop {
            let [shell, control, stdin] = &mut *outgoing;
            let is_running = session.phase.borrow().phase == Phase::Running;
            let is_free = |unaccepted: &Option<_>| is_running && unaccepted.is_none();
            let [shell_free, control_free, stdin_free] = session.unaccepted.each_ref().map(is_free);
            let frame = tokio::select! {
                frame = next_frame(&mut reader) => {
                    last_received = Instant::now();
                    session.received(frame?)?;
                    continue;
                }
                command = commands.recv() => match command {
                    Some(command) => execute(session, command, outgoing),
                    None => return Ok(()),
                },
                Some(message) = shell.recv(), if shell_free => Some(into_frame(&mut session.unaccepted[0], message)),
                Some(message) = control.recv(), if control_free => Some(into_frame(&mut session.unaccepted[1], message)),
                Some(message) = stdin.recv(), if stdin_free => Some(into_frame(&mut session.unaccepted[2], message)),
                () = sleep_until(ping_at) => {
                    if last_received.elapsed() >= SILENCE {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    ping_at = Instant::now() + PING_INTERVAL;
                    Some(ToAgent::Ping.encode())
                }
            };
            if let Some(frame) = frame {
                timeout(SILENCE, write(&mut writer, &frame)).await??;
            }
        }
    };
    match used.await {
        Ok(()) => End::Dropped,
        Err(error) => {
            let error: io::Error = error;
            info!(%error, "the connection to an agent is lost; reconnecting");
            error.into()
        }
    }
}

/// As [`Session::command`]; `DropUnsent` also empties the queues.
fn execute(session: &mut Session, command: Command, outgoing: &mut [mpsc::Receiver<Outgoing>; 3]) -> Option<Bytes> {
    if matches!(command, Command::DropUnsent) {
        for queue in outgoing {
            while queue.try_recv().is_ok() {}
        }
    }
    session.command(command)
}

/// Keeps a message until it is accepted, and returns its frame.
fn into_frame(slot: &mut Option<Outgoing>, message: Outgoing) -> Bytes {
    let frame = ToAgent::Message(message.clone()).encode();
    *slot = Some(message);
    frame
}
