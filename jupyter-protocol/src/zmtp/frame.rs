//! Frames: a flag byte, a length of one or eight bytes, and the data.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::endpoint::{Reader, Writer};
use super::{MAX_MESSAGE_BYTES, ZmtpError};
use crate::wire::MAX_FRAMES;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The longest command, and the longest identity with its like: a handshake's parts are small.
const MAX_COMMAND: usize = 64 * 1024;

/// Messages up to this size are copied out of the read buffer, so that one that is kept does not keep the whole buffer.
const COPIED: usize = 16 * 1024;

const LEAST_READ: usize = 2 * 1024;
const MOST_READ: usize = 128 * 1024;

/// What a peer sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Message(Vec<Bytes>),
    Command(Bytes),
}

/// Finds messages in what has arrived so far. Looks at each frame's header once, however the bytes trickle in.
#[derive(Default)]
struct Decoder {
    /// Where the data of the message's frames found so far is in the buffer.
    frames: Vec<(usize, usize)>,
    /// Where the next frame starts in the buffer.
    at: usize,
}

impl Decoder {
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Incoming>, ZmtpError> {
        loop {
            let Some(&flags) = buffer.get(self.at) else {
                return Ok(None);
            };
            if flags & !(MORE | LONG | COMMAND) != 0 {
                return Err(ZmtpError::Protocol("a frame has unknown flags"));
            }
            let (length, start) = if flags & LONG == 0 {
                let Some(length) = buffer.get(self.at + 1) else {
                    return Ok(None);
                };
                (usize::from(*length), self.at + 2)
            } else {
                let Some(mut length) = buffer.get(self.at + 1..self.at + 9) else {
                    return Ok(None);
                };
                // What does not fit is larger than the limit anyway.
                (
                    usize::try_from(length.get_u64()).unwrap_or(usize::MAX),
                    self.at + 9,
                )
            };
            if flags & COMMAND != 0 {
                if !self.frames.is_empty() || flags & MORE != 0 {
                    return Err(ZmtpError::Protocol("a command within a message"));
                }
                if length > MAX_COMMAND {
                    return Err(ZmtpError::Protocol("an overlong command"));
                }
            }
            if length > MAX_MESSAGE_BYTES
                || start + length > MAX_MESSAGE_BYTES
                || self.frames.len() >= MAX_FRAMES
            {
                return Err(ZmtpError::TooLarge);
            }
            let end = start + length;
            if buffer.len() < end {
                return Ok(None);
            }
            self.at = end;
            if flags & COMMAND != 0 {
                let command = Bytes::copy_from_slice(&buffer[start..end]);
                self.consume(buffer);
                return Ok(Some(Incoming::Command(command)));
            }
            self.frames.push((start, end));
            if flags & MORE == 0 {
                let ranges = std::mem::take(&mut self.frames);
                let whole = self.consume(buffer);
                let frames = ranges
                    .iter()
                    .map(|(start, end)| whole.slice(start..end))
                    .collect();
                // The next message most likely has as many frames.
                self.frames = ranges;
                self.frames.clear();
                return Ok(Some(Incoming::Message(frames)));
            }
        }
    }

    /// Takes what was scanned out of the buffer.
    fn consume(&mut self, buffer: &mut BytesMut) -> Bytes {
        let length = std::mem::take(&mut self.at);
        if length <= COPIED {
            let whole = Bytes::copy_from_slice(&buffer[..length]);
            buffer.advance(length);
            whole
        } else {
            buffer.split_to(length).freeze()
        }
    }
}

/// The receiving half of a connection.
pub(super) struct FrameReader {
    io: Reader,
    buffer: BytesMut,
    decoder: Decoder,
    /// How much is read at once: grows while the peer has more to give, shrinks when it has not.
    chunk: usize,
}

impl FrameReader {
    pub(super) fn new(io: Reader) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            decoder: Decoder::default(),
            chunk: LEAST_READ,
        }
    }

    /// The next message or command. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Incoming, ZmtpError> {
        loop {
            if let Some(incoming) = self.decoder.decode(&mut self.buffer)? {
                return Ok(incoming);
            }
            self.read().await?;
        }
    }

    /// The next message where it is here already: nothing is read from the system.
    pub(super) fn buffered(&mut self) -> Result<Option<Incoming>, ZmtpError> {
        self.decoder.decode(&mut self.buffer)
    }

    /// The next `length` bytes. Cancel-safe.
    pub(super) async fn take(&mut self, length: usize) -> Result<Bytes, ZmtpError> {
        while self.buffer.len() < length {
            self.read().await?;
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    async fn read(&mut self) -> Result<(), ZmtpError> {
        if self.buffer.is_empty() && self.buffer.capacity() > 2 * self.chunk {
            // An idle connection gives back what a burst or one large message needed.
            self.buffer = BytesMut::new();
        }
        // Within a large message the buffer doubles with what has arrived; what is claimed to come is not believed.
        self.buffer
            .reserve(self.chunk.max(self.buffer.len().min(MOST_READ * 64)));
        let read = self
            .io
            .read_buf(&mut self.buffer)
            .await
            .map_err(|_| ZmtpError::Closed)?;
        if read == 0 {
            return Err(ZmtpError::Closed);
        }
        if read >= self.chunk {
            self.chunk = (self.chunk * 2).min(MOST_READ);
        } else if read < self.chunk / 4 {
            self.chunk = (self.chunk / 2).max(LEAST_READ);
        }
        Ok(())
    }
}

fn put_header(out: &mut BytesMut, flags: u8, length: usize) {
    match u8::try_from(length) {
        Ok(short) => {
            out.put_u8(flags);
            out.put_u8(short);
        }
        Err(_) => {
            out.put_u8(flags | LONG);
            out.put_u64(length as u64);
        }
    }
}

/// Puts a command: its body begins with its name.
pub(super) fn put_command(out: &mut BytesMut, body: &[u8]) {
    put_header(out, COMMAND, body.len());
    out.extend_from_slice(body);
}

/// Frames larger than this are written from where they are; smaller ones are copied together.
const WRITTEN_IN_PLACE: usize = 32 * 1024;

/// The sending half of a connection.
pub(super) struct FrameWriter {
    io: Writer,
    /// What is to be written before `tail`.
    head: VecDeque<Bytes>,
    tail: BytesMut,
}

impl FrameWriter {
    pub(super) fn new(io: Writer) -> Self {
        Self {
            io,
            head: VecDeque::new(),
            tail: BytesMut::new(),
        }
    }

    /// Puts a message behind what is to be written.
    pub(super) fn put(&mut self, frames: &[Bytes]) {
        for (index, frame) in frames.iter().enumerate() {
            put_header(
                &mut self.tail,
                if index + 1 < frames.len() { MORE } else { 0 },
                frame.len(),
            );
            if frame.len() <= WRITTEN_IN_PLACE {
                self.tail.extend_from_slice(frame);
            } else {
                self.head.push_back(self.tail.split().freeze());
                self.head.push_back(frame.clone());
            }
        }
    }

    /// Whether so much is put that it should be written before more is.
    pub(super) fn is_full(&self) -> bool {
        self.tail.len() >= 64 * 1024 || !self.head.is_empty()
    }

    /// Writes all that was put. Cancel-safe: what is left is written by the next call.
    pub(super) async fn flush(&mut self) -> Result<(), ZmtpError> {
        while let Some(first) = self.head.front_mut() {
            while !first.is_empty() {
                write_some(&mut self.io, first).await?;
            }
            self.head.pop_front();
        }
        while !self.tail.is_empty() {
            write_some(&mut self.io, &mut self.tail).await?;
        }
        if self.tail.capacity() > 256 * 1024 {
            self.tail = BytesMut::new();
        }
        Ok(())
    }
}

async fn write_some(io: &mut Writer, from: &mut impl Buf) -> Result<(), ZmtpError> {
    match io.write_buf(from).await {
        Ok(written) if written > 0 => Ok(()),
        _ => Err(ZmtpError::Closed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[Bytes]) -> BytesMut {
        let mut out = BytesMut::new();
        for (index, frame) in frames.iter().enumerate() {
            put_header(
                &mut out,
                if index + 1 < frames.len() { MORE } else { 0 },
                frame.len(),
            );
            out.extend_from_slice(frame);
        }
        out
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            let mut decoder = Decoder::default();
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }

        #[test]
        fn what_goes_out_comes_in_however_it_is_cut(
            messages in prop::collection::vec(prop::collection::vec(0_usize..40_000, 1..8), 1..4),
            cut in 1_usize..30_000,
        ) {
            let messages: Vec<Vec<Bytes>> = messages
                .into_iter()
                .map(|lengths| lengths.into_iter().map(|length| Bytes::from(vec![length as u8; length])).collect())
                .collect();
            let wire: Vec<u8> = messages.iter().flat_map(|message| encode(message).to_vec()).collect();
            let mut decoder = Decoder::default();
            let mut buffer = BytesMut::new();
            let mut received = Vec::new();
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(incoming) = decoder.decode(&mut buffer).unwrap() {
                    let Incoming::Message(frames) = incoming else { panic!("a command") };
                    received.push(frames);
                }
            }
            prop_assert_eq!(received, messages);
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::from(&[LONG, 0, 0, 0, 0, 0x3f, 0, 0, 0, 1, 2][..]);
        assert_eq!(decoder.decode(&mut buffer).unwrap(), None);
        assert!(buffer.capacity() < 1_000);
        for top in [0x01_u8, 0x3f, 0x40, 0x7f, 0x80, 0xff] {
            let mut buffer = BytesMut::from(&[LONG, top, 255, 255, 255, 255, 255, 255, 255][..]);
            assert!(matches!(
                Decoder::default().decode(&mut buffer),
                Err(ZmtpError::TooLarge)
            ));
        }
    }

    #[test]
    fn frames_without_end_are_refused() {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::from(&[MORE, 0].repeat(MAX_FRAMES + 1)[..]);
        assert!(matches!(
            decoder.decode(&mut buffer),
            Err(ZmtpError::TooLarge)
        ));
    }
}
