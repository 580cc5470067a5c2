//! Reading a client's WebSocket (RFC 6455).
//!
//! Not a library's, because each that there is refuses text that is not UTF-8, as the RFC wants, and jupyter_server
//! passes a browser's binary messages on as just that.

use bytes::{Buf, Bytes, BytesMut};
use fastwebsockets::{OpCode, WebSocketError, unmask};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The largest message that a client may send, in bytes: what JupyterLab's largest uploads through widgets need.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The largest payload of a Ping, Pong or Close.
const MAX_CONTROL_BYTES: usize = 125;
/// How much room is made before it is known that it is needed: a length is only a claim.
const READ_BYTES: usize = 64 << 10;

pub(super) enum Received {
    /// A whole message, text or binary; text is not checked to be UTF-8.
    Message(OpCode, Bytes),
    Ping(Bytes),
    Pong(Bytes),
    Close,
}

/// Whole messages of a connection.
pub(super) struct Messages<S> {
    stream: S,
    buffer: BytesMut,
    /// The opcode and the pieces so far of a message that comes in fragments.
    partial: Option<(OpCode, BytesMut)>,
}

struct Frame {
    fin: bool,
    opcode: OpCode,
    payload: BytesMut,
}

impl<S: AsyncRead + Unpin> Messages<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            partial: None,
        }
    }

    /// The next message or control frame.
    ///
    /// # Errors
    /// Where the connection ends, or the client breaks the protocol: it cannot be read on then.
    pub(super) async fn next(&mut self) -> Result<Received, WebSocketError> {
        loop {
            let Frame { fin, opcode, payload } = self.frame().await?;
            match opcode {
                OpCode::Close => return Ok(Received::Close),
                OpCode::Ping => return Ok(Received::Ping(payload.freeze())),
                OpCode::Pong => return Ok(Received::Pong(payload.freeze())),
                OpCode::Text | OpCode::Binary => {
                    if self.partial.is_some() {
                        return Err(WebSocketError::InvalidFragment);
                    }
                    if fin {
                        return Ok(Received::Message(opcode, payload.freeze()));
                    }
                    self.partial = Some((opcode, payload));
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

    async fn frame(&mut self) -> Result<Frame, WebSocketError> {
        self.fill(2).await?;
        let (first, second) = (self.buffer.get_u8(), self.buffer.get_u8());
        if first & 0x70 != 0 {
            return Err(WebSocketError::ReservedBitsNotZero);
        }
        if second & 0x80 == 0 {
            // A client must mask (section 5.1).
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
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= MAX_MESSAGE_BYTES)
            .ok_or(WebSocketError::FrameTooLarge)?;
        if matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong) {
            if !fin {
                return Err(WebSocketError::ControlFrameFragmented);
            }
            if length > MAX_CONTROL_BYTES {
                return Err(WebSocketError::PingFrameTooLarge);
            }
        }
        self.fill(4).await?;
        let mask = self.buffer.get_u32().to_be_bytes();
        self.fill(length).await?;
        let mut payload = self.buffer.split_to(length);
        unmask(&mut payload, mask);
        Ok(Frame { fin, opcode, payload })
    }

    /// Reads until the buffer has this many bytes.
    async fn fill(&mut self, length: usize) -> Result<(), WebSocketError> {
        while self.buffer.len() < length {
            self.buffer.reserve((length - self.buffer.len()).clamp(1, READ_BYTES));
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(WebSocketError::UnexpectedEOF);
            }
        }
        Ok(())
    }
}
