use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocketError, WebSocketRead, after_handshake_split};
use jupyter_protocol::{Channel, WireMessage};
use kernel_provider::session::{Client, SendError};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tracing::{Instrument, debug, warn};

use super::acknowledgement::Acknowledgement;
use super::format::Format;

/// The largest message that a client may send, in bytes: what JupyterLab's largest uploads through widgets need.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// How many messages may wait for a kernel that does not take them, as while it restarts. Then its client waits.
const MAX_WAITING: usize = 64;

/// What the client wants of the connection itself.
pub(super) enum Control {
    /// Answer its Ping.
    Pong(Bytes),
    /// It has what was asked for.
    Acknowledged,
    /// Close, with this code.
    Close(u16, &'static str),
}

/// Reads until the client is gone or breaks the protocol.
pub(super) async fn run(
    stream: impl AsyncRead + Unpin,
    client: Client,
    format: Format,
    acknowledgement: Arc<Acknowledgement>,
    control: mpsc::Sender<Control>,
) -> Result<&'static str, WebSocketError> {
    let (to_kernel, waiting) = mpsc::channel(MAX_WAITING);
    // Not ended with the connection: what a client sent before it left reaches the kernel all the same. It ends when
    // the queue is empty, which it is at the latest when the kernel answers again or is dead.
    tokio::spawn(forward(client, waiting).in_current_span());
    read(stream, format, acknowledgement, control, to_kernel).await
}

/// Hands messages to the kernel, in order, so that the reader goes on to see Pongs and the connection's end meanwhile.
async fn forward(client: Client, mut waiting: mpsc::Receiver<(Channel, WireMessage)>) {
    while let Some((channel, message)) = waiting.recv().await {
        match client.send(channel, message).await {
            Ok(()) => {}
            Err(SendError::Dead) => debug!(%channel, "a message for a dead kernel is dropped"),
            Err(error) => warn!(%channel, %error, "a message cannot be sent to the kernel"),
        }
    }
}

async fn read(
    stream: impl AsyncRead + Unpin,
    format: Format,
    acknowledgement: Arc<Acknowledgement>,
    control: mpsc::Sender<Control>,
    to_kernel: mpsc::Sender<(Channel, WireMessage)>,
) -> Result<&'static str, WebSocketError> {
    let mut messages = Messages::new(stream);
    loop {
        let received = match messages.next().await {
            Ok(received) => received,
            Err(error) => {
                // Told to the client where it can still hear; then the connection ends.
                let (code, reason) = close_code(&error);
                let _ = control.send(Control::Close(code, reason)).await;
                control.closed().await;
                return Err(error);
            }
        };
        match received {
            Received::Message(opcode, data) => match format.decode(opcode, &data) {
                Ok(message) => {
                    if to_kernel.send(message).await.is_err() {
                        return Ok("nothing more is forwarded");
                    }
                }
                Err(error) => warn!(%error, "a message from the client is ignored"),
            },
            Received::Ping(payload) => {
                if control.send(Control::Pong(payload)).await.is_err() {
                    return Ok("nothing more is written");
                }
            }
            Received::Pong(payload) => {
                acknowledgement.answered(&payload);
                // Where the queue is full the writer is awake anyway.
                let _ = control.try_send(Control::Acknowledged);
            }
            Received::Close => {
                let _ = control.send(Control::Close(1000, "")).await;
                control.closed().await;
                return Ok("closed by the client");
            }
        }
    }
}

fn close_code(error: &WebSocketError) -> (u16, &'static str) {
    match error {
        WebSocketError::FrameTooLarge => (1009, "message too big"),
        WebSocketError::UnexpectedEOF | WebSocketError::IoError(_) | WebSocketError::ConnectionClosed => (1000, ""),
        _ => (1002, "protocol error"),
    }
}

enum Received {
    Message(OpCode, Bytes),
    Ping(Bytes),
    Pong(Bytes),
    Close,
}

/// Whole messages of a connection. Text is not checked to be UTF-8: jupyter_server sends binary as text.
struct Messages<S> {
    frames: WebSocketRead<S>,
    /// The opcode and the pieces so far of a message that comes in fragments.
    partial: Option<(OpCode, BytesMut)>,
}

impl<S: AsyncRead + Unpin> Messages<S> {
    fn new(stream: S) -> Self {
        let (mut frames, _) = after_handshake_split(stream, tokio::io::sink(), Role::Server);
        frames.set_auto_close(false);
        frames.set_auto_pong(false);
        frames.set_max_message_size(MAX_MESSAGE_BYTES);
        Self { frames, partial: None }
    }

    async fn next(&mut self) -> Result<Received, WebSocketError> {
        loop {
            let mut frame = self
                .frames
                .read_frame(&mut |_| async { Ok::<(), Infallible>(()) })
                .await?;
            if !is_masked(&mut frame) {
                return Err(WebSocketError::InvalidValue);
            }
            let Frame {
                fin, opcode, payload, ..
            } = frame;
            let payload = to_bytes(payload);
            match opcode {
                OpCode::Close => return Ok(Received::Close),
                OpCode::Ping => return Ok(Received::Ping(payload)),
                OpCode::Pong => return Ok(Received::Pong(payload)),
                OpCode::Text | OpCode::Binary => {
                    if self.partial.is_some() {
                        return Err(WebSocketError::InvalidFragment);
                    }
                    if fin {
                        return Ok(Received::Message(opcode, payload));
                    }
                    self.partial = Some((opcode, BytesMut::from(&payload[..])));
                }
                OpCode::Continuation => {
                    let Some((opcode, mut data)) = self.partial.take() else {
                        return Err(WebSocketError::InvalidContinuationFrame);
                    };
                    if data.len() + payload.len() > MAX_MESSAGE_BYTES {
                        return Err(WebSocketError::FrameTooLarge);
                    }
                    data.extend_from_slice(&payload);
                    if fin {
                        return Ok(Received::Message(opcode, data.freeze()));
                    }
                    self.partial = Some((opcode, data));
                }
            }
        }
    }
}

/// Whether the client masked the frame, as it must (RFC 6455, 5.1).
fn is_masked(frame: &mut Frame<'_>) -> bool {
    const MASK_BIT: u8 = 0x80;
    let mut head = [0; 16];
    frame.fmt_head(&mut head);
    head[1] & MASK_BIT != 0
}

fn to_bytes(payload: Payload<'_>) -> Bytes {
    match payload {
        Payload::Bytes(data) => data.freeze(),
        Payload::Owned(data) => data.into(),
        Payload::Borrowed(data) => Bytes::copy_from_slice(data),
        Payload::BorrowedMut(data) => Bytes::copy_from_slice(data),
    }
}
