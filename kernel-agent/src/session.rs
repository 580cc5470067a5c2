//! One admitted connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kernel_log::{Block, ReadError, Reader, Seq};
use kernel_provider::agent::frame::{FromAgent, LARGE, ToAgent, codec};
use kernel_provider::agent::{Accepted, Reply, Request, Stream};
use tokio::io::{AsyncWriteExt as _, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::codec::FramedRead;

use crate::agent::Agent;
use crate::server::{Admitted, welcome};

/// After this long without a frame, the gateway counts as gone; it sends pings at shorter intervals. Also the write
/// timeout.
const SILENCE: Duration = Duration::from_secs(60);
/// The most answers and other commands that wait to be written. Beyond that, no further frame is read.
const ANSWERS: usize = 64;

/// A command from the reading half to the writing half.
enum WriterCommand {
    Read(u64),
    Credit(u64),
    Take(u64),
    Frame(FromAgent),
}

/// Serves one connection until it ends.
pub(crate) async fn serve(agent: &Arc<Agent>, stream: Box<dyn Stream>, admitted: &Admitted) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(stream);
    let (sender, commands) = mpsc::channel(ANSWERS);
    tokio::select! {
        ended = read(agent, reader, sender) => ended,
        ended = write(agent, writer, commands) => ended,
        () = admitted.replaced.cancelled() => Ok(()),
    }
}

async fn read(
    agent: &Arc<Agent>,
    reader: ReadHalf<Box<dyn Stream>>,
    commands: mpsc::Sender<WriterCommand>,
) -> io::Result<()> {
    let mut reader = FramedRead::new(reader, codec());
    loop {
        let frame = timeout(SILENCE, reader.next()).await?;
        let Some(frame) = frame else { return Ok(()) };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let command = match ToAgent::decode(frame?.freeze()).map_err(invalid)? {
            ToAgent::Control(json) => {
                let request: Request = serde_json::from_slice(&json)?;
                // Reserved before the request is carried out, which bounds the requests in progress.
                let slot = commands.clone().reserve_owned().await;
                let Ok(slot) = slot else { return Ok(()) };
                let agent = agent.clone();
                tokio::spawn(async move {
                    let id = request.id;
                    if let Some(answer) = agent.answer(request).await
                        && let Ok(json) = serde_json::to_vec(&Reply { id, answer })
                    {
                        slot.send(WriterCommand::Frame(FromAgent::Reply(json.into())));
                    }
                });
                continue;
            }
            ToAgent::Read(after) => WriterCommand::Read(after),
            ToAgent::Credit(bytes) => WriterCommand::Credit(bytes),
            ToAgent::Take(first) => WriterCommand::Take(first),
            ToAgent::Acknowledge(seq) => {
                agent.log.acknowledge(Seq(seq));
                agent
                    .acknowledged
                    .send_modify(|acknowledged| *acknowledged = Seq(seq).max(*acknowledged));
                continue;
            }
            ToAgent::Message(message) => {
                let (channel, number) = (message.channel, message.number);
                if agent.accepted.borrow().has(channel, message.log, number) {
                    WriterCommand::Frame(FromAgent::Accepted(channel, number))
                } else {
                    if !agent.delivery.queue(message) {
                        let reason = format!("a message on {channel} arrived before the last one was accepted");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                    }
                    continue;
                }
            }
            ToAgent::Ping => WriterCommand::Frame(FromAgent::Pong),
            ToAgent::Hello(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "a second hello")),
        };
        if commands.send(command).await.is_err() {
            return Ok(());
        }
    }
}

/// The writing half.
struct Writer {
    socket: BufWriter<WriteHalf<Box<dyn Stream>>>,
    reader: Option<Reader>,
    /// How many bytes of entries may still be sent; the last block may exceed it.
    credit: i64,
    /// A large block that the gateway has not taken yet.
    offered: Option<Block>,
    last_sent: Accepted,
}

async fn write(
    agent: &Arc<Agent>,
    socket: WriteHalf<Box<dyn Stream>>,
    mut commands: mpsc::Receiver<WriterCommand>,
) -> io::Result<()> {
    let mut phase = agent.phase.subscribe();
    let mut accepted = agent.accepted.subscribe();
    phase.mark_unchanged();
    accepted.mark_unchanged();
    let mut writer = Writer {
        socket: BufWriter::new(socket),
        reader: None,
        credit: 0,
        offered: None,
        last_sent: accepted.borrow().clone(),
    };
    writer.frame(&welcome(agent)?).await?;
    loop {
        tokio::select! {
            // A phase is sent before the answer to the request that led to it.
            biased;
            Ok(()) = phase.changed() => {
                let json = serde_json::to_vec(&*phase.borrow_and_update())?;
                writer.frame(&FromAgent::Phase(json.into())).await?;
            }
            Ok(()) = accepted.changed() => {
                let now = accepted.borrow_and_update().clone();
                writer.accepted(now).await?;
            }
            command = commands.recv() => match command {
                Some(WriterCommand::Read(after)) => {
                    writer.credit = 0;
                    writer.offered = None;
                    writer.reader = Some(agent.log.reader(Seq(after)));
                }
                Some(WriterCommand::Credit(bytes)) => writer.credit = writer.credit.saturating_add_unsigned(bytes),
                Some(WriterCommand::Take(first)) => {
                    if let Some(block) = writer.offered.take_if(|block| block.first().0 == first) {
                        writer.entries(&block).await?;
                    }
                }
                Some(WriterCommand::Frame(frame)) => writer.frame(&frame).await?,
                None => return Ok(()),
            },
            read = next(&mut writer.reader), if writer.credit > 0 && writer.offered.is_none() => match read {
                Ok(Some(block)) if block.size() > LARGE => {
                    writer.frame(&FromAgent::Offer(block.first().0, block.size() as u64)).await?;
                    writer.offered = Some(block);
                }
                Ok(Some(block)) => writer.entries(&block).await?,
                // Not reached while the agent runs, because its log stays open.
                Ok(None) => writer.reader = None,
                Err(ReadError::Gap { first, last }) => writer.frame(&FromAgent::Gap(first.0, last.0)).await?,
                Err(error) => return Err(io::Error::other(error)),
            },
        }
    }
}

async fn next(reader: &mut Option<Reader>) -> Result<Option<Block>, ReadError> {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}

impl Writer {
    async fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(SILENCE, self.socket.write_all(bytes)).await?
    }

    /// Sends everything that was written. Without this, the buffer and TLS may keep the last bytes.
    async fn flush(&mut self) -> io::Result<()> {
        timeout(SILENCE, self.socket.flush()).await?
    }

    async fn frame(&mut self, frame: &FromAgent) -> io::Result<()> {
        self.bytes(&frame.encode()).await?;
        self.flush().await
    }

    async fn entries(&mut self, block: &Block) -> io::Result<()> {
        let head: Bytes = FromAgent::entries_head(block.first().0, block.last().0, block.size());
        self.credit = self.credit.saturating_sub_unsigned(block.size() as u64);
        self.bytes(&head).await?;
        for piece in block.pieces() {
            self.bytes(piece).await?;
        }
        self.flush().await
    }

    async fn accepted(&mut self, now: Accepted) -> io::Result<()> {
        for channel in jupyter_protocol::Channel::WITH_MESSAGES {
            let number = now.last(channel);
            if number > 0 && (now.log != self.last_sent.log || number != self.last_sent.last(channel)) {
                self.frame(&FromAgent::Accepted(channel, number)).await?;
            }
        }
        self.last_sent = now;
        Ok(())
    }
}
