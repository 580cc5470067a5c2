//! Encodes messages into frames.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::LONG;

/// Frames of up to this many bytes are copied next to each other, so that they are sent as one piece.
pub(super) const COPY_THRESHOLD: usize = 8 << 10;

/// Encodes a message into pieces to be written, none of which is empty.
pub(in crate::zmq) fn encode(frames: &[Bytes]) -> VecDeque<Bytes> {
    let mut pieces = VecDeque::new();
    let mut copied = BytesMut::new();
    for (index, frame) in frames.iter().enumerate() {
        let more = u8::from(index + 1 < frames.len());
        put_frame_header(&mut copied, more, frame.len());
        if frame.len() <= COPY_THRESHOLD {
            copied.extend_from_slice(frame);
        } else {
            pieces.extend([copied.split().freeze(), frame.clone()]);
        }
    }
    if !copied.is_empty() {
        pieces.push_back(copied.freeze());
    }
    pieces
}

pub(super) fn put_frame_header(out: &mut BytesMut, flags: u8, length: usize) {
    match u8::try_from(length) {
        Ok(length) => out.extend_from_slice(&[flags, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | LONG]);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}
