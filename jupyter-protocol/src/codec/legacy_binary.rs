//! Legacy binary format, for messages with buffers: a table of offsets (u32, big-endian), then the JSON of
//! [`super::legacy_text`], then the buffers.
//!
//! ```text
//! count | offset[0] … offset[count-1] | json | buffer …
//! ```
//!
//! `count` is the number of parts, which are the JSON and the buffers. Each part ends where the next one starts, and
//! the last part ends at the end of the message.

use bytes::{BufMut, Bytes, BytesMut};

use super::{CodecError, legacy_text};
use crate::channel::Channel;
use crate::wire::{MAX_FRAMES, WireMessage};

/// Encodes a message as one binary WebSocket message.
///
/// # Errors
/// - [`CodecError::Json`] if a part is not JSON, or the header is not an object.
/// - [`CodecError::TooLarge`] if a part starts at an offset of 4 GiB or more.
pub fn encode(channel: Channel, message: &WireMessage) -> Result<Bytes, CodecError> {
    encode_pieces(channel, message).map(super::concat)
}

/// Encodes a message as [`encode`] does, into pieces to be sent one after the other.
///
/// Buffers, and unchanged parts of more than 64 KiB, share the memory of the message.
///
/// # Errors
/// As [`encode`].
pub fn encode_pieces(channel: Channel, message: &WireMessage) -> Result<Vec<Bytes>, CodecError> {
    let json = legacy_text::encode_pieces(channel, message)?;
    let json_length = json.iter().map(Bytes::len).sum();
    let buffers = message.buffers();
    let length = |bytes: usize| u32::try_from(bytes).map_err(|_| CodecError::TooLarge { length: bytes });
    let table = 4 * (buffers.len() + 2);
    let mut out = BytesMut::with_capacity(table);
    out.put_u32(length(buffers.len() + 1)?);
    let mut offset = table;
    for part in std::iter::once(json_length).chain(buffers.iter().map(Bytes::len)) {
        out.put_u32(length(offset)?);
        offset += part;
    }
    let mut pieces = vec![out.freeze()];
    pieces.extend(json);
    pieces.extend_from_slice(buffers);
    Ok(pieces)
}

/// Decodes a binary WebSocket message. The frames share its memory, except that JSON with `NaN` or infinities is
/// copied, as in [`legacy_text::decode`].
///
/// # Errors
/// - [`CodecError::Truncated`], [`CodecError::PartCount`] and [`CodecError::BadOffset`] if the offset table is invalid.
/// - The errors of [`legacy_text::decode`] if the JSON is invalid.
pub fn decode(data: &Bytes) -> Result<(Channel, WireMessage), CodecError> {
    let number = |index: usize| {
        data.get(4 * index..4 * index + 4)
            .and_then(|bytes| bytes.first_chunk::<4>())
            .map(|bytes| u32::from_be_bytes(*bytes))
            .ok_or(CodecError::Truncated { length: data.len() })
    };
    let count = number(0)? as usize;
    if !(1..=MAX_FRAMES).contains(&count) {
        return Err(CodecError::PartCount {
            count: count as u64,
            least: 1,
            most: MAX_FRAMES as u64,
        });
    }
    let table = 4 * (count + 1);
    if data.len() < table {
        return Err(CodecError::Truncated { length: data.len() });
    }
    let mut starts = Vec::with_capacity(count + 1);
    for index in 0..count {
        let start = number(index + 1)? as usize;
        if start < starts.last().copied().unwrap_or(table) || start > data.len() {
            return Err(CodecError::BadOffset { index });
        }
        starts.push(start);
    }
    starts.push(data.len());
    let mut parts = starts.windows(2).map(|ends| data.slice(ends[0]..ends[1]));
    let json = parts.next().unwrap_or_default();
    legacy_text::decode_with_buffers(&json, parts)
}
