use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use futures::FutureExt;
use gateway_client::resume::{CLOSE_REPLACED, Notice};
use jupyter_protocol::{Channel, LogLimiter, WireMessage};
use kernel_log::{Block, ReadError};
use kernel_manager::Client;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, timeout_at};
use tracing::warn;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control as ControlFrame, Data, OpCode};

use super::Ending;
use super::acknowledgement::Acknowledgement;
use super::feed::Feed;
use super::format::{Encoded, Format};
use super::inbound::Control;

/// Small messages are combined up to this many bytes into one write.
const GATHER_BYTES: usize = 64 << 10;
/// Interval of Pings on an idle connection.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Writes the log's entries for this client until the kernel or the client is gone, or `ending` completes. A slow
/// client does not delay others: its unread entries stay in the log.
pub(super) async fn run(
    mut out: Frames<impl AsyncWrite + Unpin>,
    mut feed: Feed,
    hello: Option<Notice>,
    format: Format,
    acknowledgement: Arc<Acknowledgement>,
    mut control: mpsc::Receiver<Control>,
    ending: impl Future<Output = Ending>,
) -> io::Result<&'static str> {
    let client = feed.client();
    let mut keep_alive = interval(KEEP_ALIVE);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    keep_alive.reset();
    let mut superseded = pin!(feed.superseded());
    let mut ending = pin!(ending);
    let mut silent = true;
    if let Some(hello) = hello {
        out.notice(&hello);
        out.flush().await?;
    }
    write_replay(&mut out, &mut feed, format).await?;
    loop {
        tokio::select! {
            block = feed.next() => {
                // A gateway that shuts down closes the logs of kernels that keep running.
                if matches!(block, Ok(None)) && let Some(ending) = ending.as_mut().now_or_never() {
                    out.close(ending.code(format), ending.reason()).await?;
                    return Ok(ending.reason());
                }
                let mut next = match block {
                    Ok(Some(block)) => Some(block),
                    Ok(None) if format == Format::Resume => {
                        out.notice(&Notice::End {});
                        out.close(1000, "the kernel is gone").await?;
                        return Ok("the kernel is gone");
                    }
                    Ok(None) => {
                        out.close(1001, "the kernel is gone").await?;
                        return Ok("the kernel is gone");
                    }
                    Err(error @ ReadError::Store(_)) => {
                        warn!(%error, "a client's connection is closed");
                        out.close(1011, "the kernel's log cannot be read").await?;
                        return Ok("the kernel's log cannot be read");
                    }
                    Err(error) => {
                        report_gap(&mut out, &error, client.as_ref(), format);
                        None
                    }
                };
                // Bounded, so that other events are handled during a flood.
                let mut taken = 0;
                while let Some(block) = next.take() {
                    write_block(&mut out, &block, client.as_ref(), format).await?;
                    acknowledgement.sent(block.last());
                    taken += block.bytes().len();
                    if taken < GATHER_BYTES {
                        next = feed.recent().unwrap_or_else(|error| {
                            report_gap(&mut out, &error, client.as_ref(), format);
                            None
                        });
                    }
                }
                if let Some(payload) = acknowledgement.ping() {
                    out.gather(OpCode::Control(ControlFrame::Ping), &payload);
                }
                out.flush().await?;
                silent = false;
            }
            Some(wanted) = control.recv() => match wanted {
                Control::Pong(payload) => {
                    out.gather(OpCode::Control(ControlFrame::Pong), &payload);
                    out.flush().await?;
                }
                Control::Acknowledged => {
                    if let Some(payload) = acknowledgement.ping() {
                        out.gather(OpCode::Control(ControlFrame::Ping), &payload);
                        out.flush().await?;
                    }
                }
                Control::Follow(request) => {
                    let messages = feed.follow(&request, format).await;
                    write_messages(&mut out, messages, format).await?;
                    out.flush().await?;
                }
                Control::AnswerFromLog(request) => {
                    let messages = match &client {
                        Some(client) => client.answer_from_log(&request).await,
                        None => Vec::new(),
                    };
                    write_messages(&mut out, messages, format).await?;
                    out.flush().await?;
                }
                Control::Close(code, reason) => {
                    out.close(code, reason).await?;
                    return Ok(if reason.is_empty() { "closed by the client" } else { reason });
                }
            },
            _ = keep_alive.tick() => {
                if acknowledgement.pong_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                    return Ok("the client does not answer");
                }
                if let Some(payload) = acknowledgement.keep_alive_ping() {
                    out.gather(OpCode::Control(ControlFrame::Ping), &payload);
                }
                if silent && format == Format::Resume {
                    out.notice(&Notice::Alive {});
                }
                out.flush().await?;
                silent = true;
            }
            () = &mut superseded, if !format.is_shared() => {
                let code = if format == Format::Resume { CLOSE_REPLACED } else { 1001 };
                out.close(code, "replaced by a newer connection of the session").await?;
                return Ok("replaced by a newer connection of the session");
            }
            ending = &mut ending => {
                out.close(ending.code(format), ending.reason()).await?;
                return Ok(ending.reason());
            }
        }
    }
}

/// Replays executions that a reconnecting client may have received only partly.
async fn write_replay(out: &mut Frames<impl AsyncWrite + Unpin>, feed: &mut Feed, format: Format) -> io::Result<()> {
    while let Some(messages) = feed.replay().await {
        match messages {
            Ok(messages) => write_messages(out, messages, format).await?,
            Err(error) => warn!(%error, "an execution cannot be replayed"),
        }
    }
    out.flush().await
}

/// Writes messages that are not entries of the log.
async fn write_messages(
    out: &mut Frames<impl AsyncWrite + Unpin>,
    messages: Vec<(Channel, WireMessage)>,
    format: Format,
) -> io::Result<()> {
    for (channel, message) in messages {
        let message = format.without_lost_buffers(message);
        if let Some(message) = format.encode_message(channel, &message) {
            out.write(&message).await?;
        }
    }
    Ok(())
}

async fn write_block(
    out: &mut Frames<impl AsyncWrite + Unpin>,
    block: &Block,
    client: Option<&Client>,
    format: Format,
) -> io::Result<()> {
    for entry in block.entries() {
        let delivers = format == Format::Resume || client.is_none_or(|client| client.delivers(&entry));
        if delivers && let Some(message) = format.encode(&entry) {
            out.write(&message).await?;
        }
    }
    Ok(())
}

/// Reports a gap: to clients of the resume protocol with a notice, to others in the cells that may be affected.
fn report_gap(out: &mut Frames<impl AsyncWrite + Unpin>, error: &ReadError, client: Option<&Client>, format: Format) {
    static GAPS: LogLimiter = LogLimiter::new();
    if let Some(suppressed) = GAPS.due() {
        warn!(%error, suppressed, "the client misses a part of the log");
    }
    let ReadError::Gap { first, last } = *error else {
        return;
    };
    if format == Format::Resume {
        return out.notice(&Notice::Gap { first, last });
    }
    for (channel, message) in client.iter().flat_map(|client| client.gap_messages(&(first..=last))) {
        if let Some(message) = format.encode_message(channel, &message) {
            out.gather_message(&message);
        }
    }
}

/// Writes frames and combines small ones.
pub(super) struct Frames<S> {
    stream: S,
    gathered: BytesMut,
    /// Write timeout. The session can reconnect.
    deadline: Duration,
}

impl<S: AsyncWrite + Unpin> Frames<S> {
    pub(super) fn new(stream: S, deadline: Duration) -> Self {
        Self {
            stream,
            gathered: BytesMut::new(),
            deadline,
        }
    }

    /// Writes a frame header for a payload of this length.
    fn head(&mut self, opcode: OpCode, length: usize) {
        let header = FrameHeader {
            opcode,
            ..FrameHeader::default()
        };
        // Writing to memory cannot fail.
        let _ = header.format(length as u64, &mut (&mut self.gathered).writer());
    }

    fn notice(&mut self, notice: &Notice) {
        self.gather(OpCode::Data(Data::Text), notice.to_json().as_bytes());
    }

    fn gather(&mut self, opcode: OpCode, payload: &[u8]) {
        self.head(opcode, payload.len());
        self.gathered.extend_from_slice(payload);
    }

    fn gather_message(&mut self, message: &Encoded) {
        self.head(OpCode::Data(message.kind), message.length());
        for piece in message.pieces() {
            self.gathered.extend_from_slice(piece);
        }
    }

    async fn write(&mut self, message: &Encoded) -> io::Result<()> {
        if message.length() < GATHER_BYTES {
            self.gather_message(message);
            if self.gathered.len() >= GATHER_BYTES {
                self.flush().await?;
            }
            return Ok(());
        }
        // Large messages are written without copying.
        self.head(OpCode::Data(message.kind), message.length());
        self.flush().await?;
        for piece in message.pieces() {
            write_all(&mut self.stream, piece, self.deadline).await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        write_all(&mut self.stream, &self.gathered, self.deadline).await?;
        if self.gathered.capacity() > 4 * GATHER_BYTES {
            self.gathered = BytesMut::new();
        }
        self.gathered.clear();
        self.stream.flush().await
    }

    async fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        self.gather(OpCode::Control(ControlFrame::Close), &payload);
        self.flush().await?;
        self.stream.shutdown().await
    }
}

/// Writes all data. The timeout restarts whenever a write makes progress.
async fn write_all(stream: &mut (impl AsyncWrite + Unpin), mut data: &[u8], deadline: Duration) -> io::Result<()> {
    while !data.is_empty() {
        let written = match timeout_at(Instant::now() + deadline, stream.write(data)).await {
            Ok(written) => written?,
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
            }
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        data = &data[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_header_has_the_shortest_form_of_its_length() {
        let header = |length| {
            let mut frames = Frames::new(tokio::io::sink(), KEEP_ALIVE);
            frames.head(OpCode::Data(Data::Binary), length);
            frames.gathered.to_vec()
        };
        assert_eq!(header(0), [0x82, 0]);
        assert_eq!(header(125), [0x82, 125]);
        assert_eq!(header(126), [0x82, 126, 0, 126]);
        assert_eq!(header(0xffff), [0x82, 126, 0xff, 0xff]);
        assert_eq!(header(0x1_0000), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
