use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fastwebsockets::{Frame, OpCode, Payload};
use kernel_provider::log::{Block, ReadError};
use kernel_provider::session::{Attachment, Client};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, timeout_at};
use tracing::warn;

use super::acknowledgement::Acknowledgement;
use super::format::Format;
use super::inbound::Control;

/// Small messages are gathered up to this many bytes, as long as there are more at hand, and written in one go.
const GATHER_BYTES: usize = 64 << 10;
/// How often a connection that says nothing is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a client may take nothing of what is written before it counts as gone. Its session can come back.
const WRITE_DEADLINE: Duration = Duration::from_secs(90);

/// Writes what the log has for this client until the kernel or the client is gone. How fast the client reads is its own
/// matter: what it has not read is in the log.
pub(super) async fn run(
    stream: impl AsyncWrite + Unpin,
    mut attachment: Attachment,
    format: Format,
    acknowledgement: Arc<Acknowledgement>,
    mut control: mpsc::Receiver<Control>,
) -> io::Result<&'static str> {
    let client = attachment.client();
    let mut out = Frames::new(stream);
    let mut keep_alive = interval(KEEP_ALIVE);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    keep_alive.reset();
    let mut superseded = std::pin::pin!(attachment.superseded());
    loop {
        tokio::select! {
            block = attachment.next() => {
                let mut next = match block {
                    Ok(Some(block)) => Some(block),
                    Ok(None) => {
                        out.close(1001, "the kernel is gone").await?;
                        return Ok("the kernel is gone");
                    }
                    Err(error) => {
                        report(&error);
                        if matches!(error, ReadError::Store(_)) {
                            out.close(1011, "the kernel's log cannot be read").await?;
                            return Ok("the kernel's log cannot be read");
                        }
                        None
                    }
                };
                while let Some(block) = next.take() {
                    write_block(&mut out, &block, &client, format).await?;
                    acknowledgement.sent(block.last());
                    if out.gathered() < GATHER_BYTES {
                        next = attachment.recent().unwrap_or_else(|error| {
                            report(&error);
                            None
                        });
                    }
                }
                if let Some(payload) = acknowledgement.ask() {
                    out.gather(OpCode::Ping, &payload);
                }
                out.flush().await?;
            }
            Some(wanted) = control.recv() => match wanted {
                Control::Pong(payload) => {
                    out.gather(OpCode::Pong, &payload);
                    out.flush().await?;
                }
                Control::Acknowledged => {
                    if let Some(payload) = acknowledgement.ask() {
                        out.gather(OpCode::Ping, &payload);
                        out.flush().await?;
                    }
                }
                Control::Close(code, reason) => {
                    out.close(code, reason).await?;
                    return Ok("closed by the client");
                }
            },
            _ = keep_alive.tick() => {
                if acknowledgement.gone_at().is_some_and(|deadline| deadline <= Instant::now()) {
                    return Ok("the client does not answer");
                }
                if let Some(payload) = acknowledgement.ask_alive() {
                    out.gather(OpCode::Ping, &payload);
                    out.flush().await?;
                }
            }
            () = &mut superseded => {
                out.close(1001, "the session is connected anew").await?;
                return Ok("the session is connected anew");
            }
        }
    }
}

async fn write_block(
    out: &mut Frames<impl AsyncWrite + Unpin>,
    block: &Block,
    client: &Client,
    format: Format,
) -> io::Result<()> {
    for entry in block.entries() {
        if client.delivers(&entry)
            && let Some((opcode, data)) = format.encode(&entry)
        {
            out.write(opcode, &data).await?;
        }
    }
    Ok(())
}

fn report(error: &ReadError) {
    warn!(%error, "the client misses a part of the log");
}

/// Frames a server writes, gathered so that a flood of small messages is few writes.
struct Frames<S> {
    stream: S,
    gathered: BytesMut,
}

impl<S: AsyncWrite + Unpin> Frames<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            gathered: BytesMut::new(),
        }
    }

    fn gathered(&self) -> usize {
        self.gathered.len()
    }

    /// A frame's head in front of a payload that follows.
    fn head(&mut self, opcode: OpCode, payload: &[u8]) {
        let mut head = [0; 16];
        let length = Frame::new(true, opcode, None, Payload::Borrowed(payload)).fmt_head(&mut head);
        self.gathered.extend_from_slice(&head[..length]);
    }

    fn gather(&mut self, opcode: OpCode, payload: &[u8]) {
        self.head(opcode, payload);
        self.gathered.extend_from_slice(payload);
    }

    async fn write(&mut self, opcode: OpCode, data: &Bytes) -> io::Result<()> {
        if data.len() < GATHER_BYTES {
            self.gather(opcode, data);
            if self.gathered.len() >= GATHER_BYTES {
                self.flush().await?;
            }
            return Ok(());
        }
        // A large message is written from where it lies.
        self.head(opcode, data);
        self.flush().await?;
        write_all(&mut self.stream, data).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        write_all(&mut self.stream, &self.gathered).await?;
        if self.gathered.capacity() > 4 * GATHER_BYTES {
            self.gathered = BytesMut::new();
        }
        self.gathered.clear();
        self.stream.flush().await
    }

    async fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        self.gather(OpCode::Close, &payload);
        self.flush().await?;
        self.stream.shutdown().await
    }
}

/// Writes all, as long as the client takes something now and then.
async fn write_all(stream: &mut (impl AsyncWrite + Unpin), mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let written = match timeout_at(Instant::now() + WRITE_DEADLINE, stream.write(data)).await {
            Ok(written) => written?,
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing"));
            }
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        data = &data[written..];
    }
    Ok(())
}
