//! Reads a client's WebSocket messages (RFC 6455).
//!
//! Libraries refuse text that is not UTF-8, as the RFC requires, but jupyter_server forwards a browser's binary
//! messages as such text.

use std::io::{self, Cursor, ErrorKind};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kernel_manager::{Client, Room};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tungstenite::Error;
use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Largest message of a client in bytes, sized for JupyterLab's largest uploads through widgets.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The same limit if there is no kernel to receive the message.
const MAX_BYTES_WITHOUT_KERNEL: usize = 64 << 10;
/// Largest payload of a Ping, Pong or Close.
const MAX_CONTROL_BYTES: usize = 125;
/// Maximum allocation before a read, because a client may announce more bytes than it sends.
const READ_BYTES: usize = 64 << 10;
/// How long a client may pause in the middle of a message, which occupies memory.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a fragment waits for a reservation. The earlier fragments of its message already have reservations, so
/// without a deadline, clients could wait for each other forever.
const ROOM_DEADLINE: Duration = Duration::from_secs(60);

pub(super) enum Received {
    /// A whole message, text or binary, with its reservation. Text may be invalid UTF-8.
    Message(Data, Bytes, Option<Room>),
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
    kind: Data,
    data: BytesMut,
    room: Option<Room>,
}

struct Frame {
    header: FrameHeader,
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
    pub(super) async fn next(&mut self) -> Result<Received, Error> {
        loop {
            let Frame { header, payload, room } = self.frame().await?;
            match header.opcode {
                OpCode::Control(Control::Close) => return Ok(Received::Close),
                OpCode::Control(Control::Ping) => return Ok(Received::Ping(payload.freeze())),
                OpCode::Control(Control::Pong) => return Ok(Received::Pong(payload.freeze())),
                OpCode::Data(kind @ (Data::Text | Data::Binary)) => {
                    if self.partial.is_some() {
                        return Err(ProtocolError::ExpectedFragment(kind).into());
                    }
                    if header.is_final {
                        return Ok(Received::Message(kind, payload.freeze(), room));
                    }
                    self.partial = Some(Partial {
                        kind,
                        data: payload,
                        room,
                    });
                }
                OpCode::Data(Data::Continue) => {
                    let Some(mut partial) = self.partial.take() else {
                        return Err(ProtocolError::UnexpectedContinueFrame.into());
                    };
                    partial.data.extend_from_slice(&payload);
                    if let (Some(all), Some(room)) = (&mut partial.room, room) {
                        all.merge(room);
                    }
                    if header.is_final {
                        return Ok(Received::Message(partial.kind, partial.data.freeze(), partial.room));
                    }
                    self.partial = Some(partial);
                }
                OpCode::Control(Control::Reserved(code)) | OpCode::Data(Data::Reserved(code)) => {
                    return Err(ProtocolError::InvalidOpcode(code).into());
                }
            }
        }
    }

    fn max_message_bytes(&self) -> usize {
        if self.client.is_some() {
            MAX_MESSAGE_BYTES
        } else {
            MAX_BYTES_WITHOUT_KERNEL
        }
    }

    /// Reserves memory for a piece of a message.
    async fn room(&mut self, bytes: usize) -> Result<Option<Room>, Error> {
        match &self.client {
            Some(client) => match timeout(ROOM_DEADLINE, client.kernel().room(bytes)).await {
                Ok(room) => Ok(Some(room)),
                Err(_) => Err(timed_out("there is no memory for more messages to the kernel")),
            },
            None => Ok(None),
        }
    }

    async fn frame(&mut self) -> Result<Frame, Error> {
        if self.partial.is_none() && self.buffer.is_empty() {
            // A client may be silent between messages.
            self.read(2).await?;
        }
        let (header, length) = self.header().await?;
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(ProtocolError::NonZeroReservedBits.into());
        }
        let Some(mask) = header.mask else {
            // Clients must mask (section 5.1).
            return Err(ProtocolError::UnmaskedFrameFromClient.into());
        };
        let before = self.partial.as_ref().map_or(0, |partial| partial.data.len());
        let size = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(before);
        let max_size = self.max_message_bytes();
        if size > max_size {
            return Err(CapacityError::MessageTooLong { size, max_size }.into());
        }
        let length = size - before;
        let is_control = matches!(header.opcode, OpCode::Control(_));
        if is_control {
            if !header.is_final {
                return Err(ProtocolError::FragmentedControlFrame.into());
            }
            if length > MAX_CONTROL_BYTES {
                return Err(ProtocolError::ControlFrameTooBig.into());
            }
        }
        let room = if is_control { None } else { self.room(length).await? };
        self.fill(length).await?;
        let mut payload = self.buffer.split_to(length);
        unmask(&mut payload, mask);
        Ok(Frame { header, payload, room })
    }

    /// Reads a frame's header, and the length of its payload.
    async fn header(&mut self) -> Result<(FrameHeader, u64), Error> {
        loop {
            let mut cursor = Cursor::new(&self.buffer[..]);
            if let Some(parsed) = FrameHeader::parse(&mut cursor)? {
                // The length of the header as sent, which may be longer than necessary.
                let length = cursor.position() as usize;
                self.buffer.advance(length);
                return Ok(parsed);
            }
            self.fill(self.buffer.len() + 1).await?;
        }
    }

    /// Reads until the buffer has this many bytes of a message that has begun.
    async fn fill(&mut self, length: usize) -> Result<(), Error> {
        while self.buffer.len() < length {
            let in_time = timeout(IDLE_DEADLINE, self.read(length)).await;
            in_time.map_err(|_| timed_out("the client stopped in the middle of a message"))??;
        }
        Ok(())
    }

    /// Reads some of the bytes that the buffer lacks.
    async fn read(&mut self, length: usize) -> Result<(), Error> {
        let lacking = length.saturating_sub(self.buffer.len());
        self.buffer.reserve(lacking.clamp(1, READ_BYTES));
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }
}

fn timed_out(reason: &str) -> Error {
    io::Error::new(ErrorKind::TimedOut, reason).into()
}

/// Removes the mask of a payload (section 5.3).
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let (words, rest) = payload.as_chunks_mut();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_header_may_be_longer_than_necessary_and_any_length_is_unmasked() {
        let mask = [1, 2, 3, 4];
        for length in [0_u8, 1, 3, 4, 5, 8, 125] {
            let text: Vec<u8> = (0..length).collect();
            let masked = text
                .iter()
                .zip(mask.into_iter().cycle())
                .map(|(byte, mask)| byte ^ mask);
            let mut frame = vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, length];
            frame.extend(mask);
            frame.extend(masked);
            let mut messages = Messages::new(&frame[..], None);
            let Received::Message(Data::Binary, data, None) = messages.next().await.unwrap() else {
                panic!("no message of {length} bytes");
            };
            assert_eq!(data, text);
        }
    }

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
                matches!(&stopped, Error::Io(error) if error.kind() == ErrorKind::TimedOut),
                "{stopped}"
            );
        }
    }
}
