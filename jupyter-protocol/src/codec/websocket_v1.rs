//! `v1.kernel.websocket.jupyter.org`: a table of offsets (u64, little-endian), then channel, header, parent header,
//! metadata, content and buffers.
//!
//! ```text
//! N | offset[0] … offset[N-1] | channel | header | parent_header | metadata | content | buffer …
//! ```
//!
//! `offset[0]` is the start of the channel and the last offset is the total length, so `N` is the number of parts plus
//! one.
//!
//! <https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html#v1-kernel-websocket-jupyter-org-protocol>

use bytes::{BufMut, Bytes, BytesMut};

use super::CodecError;
use crate::channel::Channel;
use crate::wire::{MAX_FRAMES, WireMessage};

/// Name of the subprotocol in `Sec-WebSocket-Protocol`.
pub const SUBPROTOCOL: &str = "v1.kernel.websocket.jupyter.org";

/// Channel, header, parent header, metadata, content.
const PARTS_WITHOUT_BUFFERS: usize = 5;

/// Returns the number of bytes that [`encode_into`] appends for a message.
#[must_use]
pub fn encoded_len(channel: Channel, message: &WireMessage) -> usize {
    let parts = message.parts_and_buffers();
    8 * (parts.len() + 3) + channel.as_str().len() + parts.iter().map(Bytes::len).sum::<usize>()
}

/// Encodes a message and appends it to `out`.
pub fn encode_into(out: &mut BytesMut, channel: Channel, message: &WireMessage) {
    out.reserve(encoded_len(channel, message));
    encode_head_into(out, channel, message);
    for part in message.parts_and_buffers() {
        out.put_slice(part);
    }
}

/// Appends the start of an encoded message to `out`. The caller appends the unchanged
/// [parts and buffers](WireMessage::parts_and_buffers), which complete the message.
pub fn encode_head_into(out: &mut BytesMut, channel: Channel, message: &WireMessage) {
    let parts = message.parts_and_buffers();
    let offsets = parts.len() + 2;
    out.put_u64_le(offsets as u64);
    let mut offset = 8 * (offsets + 1) as u64;
    out.put_u64_le(offset);
    offset += channel.as_str().len() as u64;
    out.put_u64_le(offset);
    for part in parts {
        offset += part.len() as u64;
        out.put_u64_le(offset);
    }
    out.put_slice(channel.as_str().as_bytes());
}

/// Encodes a message as one binary WebSocket message, with a single allocation.
#[must_use]
pub fn encode(channel: Channel, message: &WireMessage) -> Bytes {
    let mut out = BytesMut::with_capacity(encoded_len(channel, message));
    encode_into(&mut out, channel, message);
    out.freeze()
}

/// Decodes a binary WebSocket message. The frames share its memory. The message is unsigned and has no identities.
///
/// # Errors
/// - [`CodecError::Truncated`], [`CodecError::PartCount`] and [`CodecError::BadOffset`] if the offset table is invalid.
/// - [`CodecError::UnknownChannel`] if the channel does not exist or is the heartbeat, which carries no messages.
pub fn decode(data: &Bytes) -> Result<(Channel, WireMessage), CodecError> {
    let view = V1Message::parse(data)?;
    let channel = view.channel()?;
    let part = |index: usize| data.slice_ref(view.part(index));
    let buffers = (PARTS_WITHOUT_BUFFERS..view.part_count()).map(part);
    Ok((
        channel,
        WireMessage::from_parts([part(1), part(2), part(3), part(4)], buffers),
    ))
}

/// View of an encoded message, without allocation or copies.
#[derive(Clone, Copy, Debug)]
pub struct V1Message<'a> {
    data: &'a [u8],
    offsets: usize,
}

impl<'a> V1Message<'a> {
    /// Creates a view, checking that the offsets are in order and within `data`.
    ///
    /// # Errors
    /// - [`CodecError::Truncated`] if `data` ends within the offset table.
    /// - [`CodecError::PartCount`] if the number of offsets is out of range.
    /// - [`CodecError::BadOffset`] if an offset is out of order or past the end.
    pub fn parse(data: &'a [u8]) -> Result<Self, CodecError> {
        let truncated = CodecError::Truncated { length: data.len() };
        let Some((first, _)) = data.split_first_chunk::<8>() else {
            return Err(truncated);
        };
        let count = u64::from_le_bytes(*first);
        let least = PARTS_WITHOUT_BUFFERS as u64 + 1;
        let most = MAX_FRAMES as u64;
        if !(least..=most).contains(&count) {
            return Err(CodecError::PartCount { count, least, most });
        }
        // The cast cannot truncate: the count is at most MAX_FRAMES.
        let offsets = count as usize;
        let table = 8 * (offsets + 1);
        if data.len() < table {
            return Err(truncated);
        }
        let view = Self { data, offsets };
        let mut previous = table as u64;
        for index in 0..offsets {
            let offset = view.raw_offset(index);
            if offset < previous || offset > data.len() as u64 {
                return Err(CodecError::BadOffset { index });
            }
            previous = offset;
        }
        Ok(view)
    }

    /// Returns the offset at `index`, or 0 if `index` is past the table.
    fn raw_offset(&self, index: usize) -> u64 {
        let start = 8 * (index + 1);
        self.data
            .get(start..start + 8)
            .and_then(|bytes| bytes.first_chunk::<8>())
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Returns the number of parts: the channel, the four JSON parts, and the buffers.
    #[must_use]
    pub fn part_count(&self) -> usize {
        self.offsets - 1
    }

    /// Returns the part at `index`, from 0, or an empty slice if there is none.
    #[must_use]
    pub fn part(&self, index: usize) -> &'a [u8] {
        if index >= self.part_count() {
            return &[];
        }
        let start = self.raw_offset(index) as usize;
        let end = self.raw_offset(index + 1) as usize;
        self.data.get(start..end).unwrap_or_default()
    }

    /// Returns the channel.
    ///
    /// # Errors
    /// [`CodecError::UnknownChannel`] if the channel does not exist or is the heartbeat, which carries no messages.
    pub fn channel(&self) -> Result<Channel, CodecError> {
        message_channel(&String::from_utf8_lossy(self.part(0)))
    }

    /// Returns the header as JSON.
    #[must_use]
    pub fn header(&self) -> &'a [u8] {
        self.part(1)
    }

    /// Returns the parent header as JSON.
    #[must_use]
    pub fn parent_header(&self) -> &'a [u8] {
        self.part(2)
    }

    /// Returns the metadata as JSON.
    #[must_use]
    pub fn metadata(&self) -> &'a [u8] {
        self.part(3)
    }

    /// Returns the content as JSON.
    #[must_use]
    pub fn content(&self) -> &'a [u8] {
        self.part(4)
    }

    /// Returns the number of binary buffers.
    #[must_use]
    pub fn buffer_count(&self) -> usize {
        self.part_count() - PARTS_WITHOUT_BUFFERS
    }

    /// Returns the length of the message in bytes, which is the end of its last part.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw_offset(self.offsets - 1) as usize
    }

    /// Returns `false`: a message is never empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Parses the name of a channel that carries messages.
pub(super) fn message_channel(name: &str) -> Result<Channel, CodecError> {
    match name.parse::<Channel>()? {
        Channel::Heartbeat => Err(crate::channel::UnknownChannel(name.to_owned()).into()),
        channel => Ok(channel),
    }
}
