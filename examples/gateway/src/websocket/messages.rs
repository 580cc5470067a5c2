//! Reads a client's WebSocket messages (RFC 6455).
//!
//! Libraries refuse text that is not UTF-8, as the RFC requires, but jupyter_server forwards a browser's binary
//! messages as such text.

use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fastwebsockets::{OpCode, WebSocketError, unmask};
use kernel_manager::{Client, Room};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// Largest message of a client in bytes, sized for JupyterLab's largest uploads through widgets.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The same if there is no kernel to receive it.
const MAX_UNTAKEN_BYTES: usize = 64 << 10;
/// Largest payload of a Ping, Pong or Close.
const MAX_CONTROL_BYTES: usize = 125;
/// Initial allocation for a message; its length is only a claim.
const READ_BYTES: usize = 64 << 10;
/// How long a client may pause in the middle of a message, which occupies memory.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a message waits for a reservation. Its first pieces have one already, so clients could wait for each other.
const ROOM_DEADLINE: Duration = Duration::from_secs(60);

pub(super) enum Received {
    /// A whole message, text or binary, with its reservation. Text may be invalid UTF-8.
    Message(OpCode, Bytes, Option<Room>),
    Ping(Bytes),
    Pong(Bytes),
    Close,
}

/// Reassembles a connection's messages.
pub(super) struct Messages<S> {
    stream: S,
    /// The kernel that the messages are for.
    client: Option<Client>,
    buffer: BytesMut,
    partial: Option<Partial>,
}

/// The fragments of an incomplete message.
struct Partial {
    opcode: OpCode,
    data: BytesMut,
    room: Option<Room>,
}

struct Frame {
    fin: bool,
    opcode: OpCode,
    payload: BytesMut,
    room: Option<Room>,
}

impl<S: AsyncRead + Unpin> Messages<S> {
    pub(super) fn new(stream: S, client: Option<Client>) -> Self {
        Self {
            stream,
            client,
            buffer: BytesMut::new(),
            partial: None,
        }
    }

    /// The next message or control frame.
    ///
    /// # Errors
    /// If the connection ends or the client violates the protocol; reading cannot continue then. An I/O error of kind
    /// `TimedOut` if no memory was free for the message, or the client paused in the middle of it.
    pub(super) async fn next(&mut self) -> Result<Received, WebSocketError> {
        loop {
            let Frame {
                fin,
                opcode,
                payload,
                room,
            } = self.frame().await?;
            match opcode {
                OpCode::Close => return Ok(Received::Close),
                OpCode::Ping => return Ok(Received::Ping(payload.freeze())),
                OpCode::Pong => return Ok(Received::Pong(payload.freeze())),
                OpCode::Text | OpCode::Binary => {
                    if self.partial.is_some() {
                        return Err(WebSocketError::InvalidFragment);
                    }
                    if fin {
                        return Ok(Received::Message(opcode, payload.freeze(), room));
                    }
                    self.partial = Some(Partial {
                        opcode,
                        data: payload,
                        room,
                    });
                }
                OpCode::Continuation => {
                    let Some(mut partial) = self.partial.take() else {
                        return Err(WebSocketError::InvalidContinuationFrame);
                    };
                    partial.data.extend_from_slice(&payload);
                    if let (Some(all), Some(room)) = (&mut partial.room, room) {
                        all.merge(room);
                    }
                    if fin {
                        return Ok(Received::Message(partial.opcode, partial.data.freeze(), partial.room));
                    }
                    self.partial = Some(partial);
                }
            }
        }
    }

    fn max_message_bytes(&self) -> usize {
        if self.client.is_some() {
            MAX_MESSAGE_BYTES
        } else {
            MAX_UNTAKEN_BYTES
        }
    }

    /// Reserves memory for a piece of a message.
    async fn room(&mut self, bytes: usize) -> Result<Option<Room>, WebSocketError> {
        match &self.client {
            Some(client) => match timeout(ROOM_DEADLINE, client.kernel().room(bytes)).await {
                Ok(room) => Ok(Some(room)),
                Err(_) => Err(timed_out("there is no room among the messages for the kernel")),
            },
            None => Ok(None),
        }
    }

    async fn frame(&mut self) -> Result<Frame, WebSocketError> {
        if self.partial.is_none() && self.buffer.is_empty() {
            // A client may be silent between messages.
            self.read(2).await?;
        }
        self.fill(2).await?;
        let (first, second) = (self.buffer.get_u8(), self.buffer.get_u8());
        if first & 0x70 != 0 {
            return Err(WebSocketError::ReservedBitsNotZero);
        }
        if second & 0x80 == 0 {
            // Clients must mask (section 5.1).
            return Err(WebSocketError::InvalidValue);
        }
        let fin = first & 0x80 != 0;
        let opcode = OpCode::try_from(first & 0x0f)?;
        let length = match second & 0x7f {
            126 => {
                self.fill(2).await?;
                u64::from(self.buffer.get_u16())
            }
            127 => {
                self.fill(8).await?;
                self.buffer.get_u64()
            }
            short => u64::from(short),
        };
        let before = self.partial.as_ref().map_or(0, |partial| partial.data.len());
        let length = usize::try_from(length)
            .ok()
            .filter(|length| length.saturating_add(before) <= self.max_message_bytes())
            .ok_or(WebSocketError::FrameTooLarge)?;
        let is_control = matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong);
        if is_control {
            if !fin {
                return Err(WebSocketError::ControlFrameFragmented);
            }
            if length > MAX_CONTROL_BYTES {
                return Err(WebSocketError::PingFrameTooLarge);
            }
        }
        self.fill(4).await?;
        let mask = self.buffer.get_u32().to_be_bytes();
        let room = if is_control { None } else { self.room(length).await? };
        self.fill(length).await?;
        let mut payload = self.buffer.split_to(length);
        unmask(&mut payload, mask);
        Ok(Frame {
            fin,
            opcode,
            payload,
            room,
        })
    }

    /// Reads until the buffer has this many bytes of a message that has begun.
    async fn fill(&mut self, length: usize) -> Result<(), WebSocketError> {
        while self.buffer.len() < length {
            let in_time = timeout(IDLE_DEADLINE, self.read(length)).await;
            in_time.map_err(|_| timed_out("the client stopped in the middle of a message"))??;
        }
        Ok(())
    }

    /// Reads some of the bytes that the buffer lacks.
    async fn read(&mut self, length: usize) -> Result<(), WebSocketError> {
        let lacking = length.saturating_sub(self.buffer.len());
        self.buffer.reserve(lacking.clamp(1, READ_BYTES));
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(WebSocketError::UnexpectedEOF),
            _ => Ok(()),
        }
    }
}

fn timed_out(reason: &str) -> WebSocketError {
    WebSocketError::IoError(io::Error::new(ErrorKind::TimedOut, reason))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_may_be_silent_between_messages_but_not_in_the_middle_of_one() {
        for pieces in [&[0x81][..], &[0x81, 0xfe, 1, 0], &[0x01, 0x80, 0, 0, 0, 0]] {
            let (mut client, stream) = tokio::io::duplex(1 << 10);
            let mut messages = Messages::new(stream, None);
            let silent = timeout(IDLE_DEADLINE * 10, messages.next()).await;
            assert!(silent.is_err(), "{pieces:?}");
            client.write_all(pieces).await.unwrap();
            let stopped = messages.next().await.err().unwrap();
            assert!(
                matches!(&stopped, WebSocketError::IoError(error) if error.kind() == ErrorKind::TimedOut),
                "{stopped}"
            );
        }
    }
}
