//! The layout of a log entry, which is the same in memory and in every store.
//!
//! ```text
//! u32 total length | u8 origin | u8 channel | u16 length of session | i64 time in µs | session | u64 seq | message
//! ```
//!
//! Numbers are little-endian. The message has the layout of `v1.kernel.websocket.jupyter.org`, so a WebSocket message
//! is a slice of the entry; together with the `seq` it is a frame of the resume protocol.

use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use jupyter_protocol::codec::websocket_v1::{self, V1Message};
use jupyter_protocol::{Channel, WireMessage};

use super::{Lifecycle, Seq};

const HEAD: usize = 16;
const SEQ: usize = 8;

/// The origin of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Sent by the kernel.
    Kernel,
    /// Sent by a client.
    Client,
    /// Made by the gateway or an agent: a life-cycle event, such as started, restarting or dead, or a message in place
    /// of the kernel, such as the reply to an execution that ended with the kernel.
    Lifecycle,
}

impl Origin {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Kernel => 0,
            Self::Client => 1,
            Self::Lifecycle => 2,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Kernel),
            1 => Some(Self::Client),
            2 => Some(Self::Lifecycle),
            _ => None,
        }
    }
}

const fn channel_byte(channel: Channel) -> u8 {
    match channel {
        Channel::Shell => 0,
        Channel::Control => 1,
        Channel::Stdin => 2,
        Channel::Iopub => 3,
        Channel::Heartbeat => 4,
    }
}

const fn channel_of(byte: u8) -> Option<Channel> {
    match byte {
        0 => Some(Channel::Shell),
        1 => Some(Channel::Control),
        2 => Some(Channel::Stdin),
        3 => Some(Channel::Iopub),
        _ => None,
    }
}

/// An entry to append to a log.
#[derive(Clone, Debug)]
pub struct NewEntry<'a> {
    /// Its origin.
    pub origin: Origin,
    /// Its channel.
    pub channel: Channel,
    /// The session that sent the request, for a request or its reply; empty for messages to all sessions. At most
    /// 65,535 bytes; the rest is cut off.
    pub session: &'a str,
    /// The message. Identities and signature are not stored.
    pub message: &'a WireMessage,
}

fn session_bytes<'a>(entry: &NewEntry<'a>) -> &'a [u8] {
    &entry.session.as_bytes()[..entry.session.len().min(usize::from(u16::MAX))]
}

/// Size of the encoded entry in bytes.
pub(super) fn encoded_len(entry: &NewEntry<'_>) -> usize {
    HEAD + session_bytes(entry).len() + SEQ + websocket_v1::encoded_len(entry.channel, entry.message)
}

/// Appends the encoded entry to `out`.
pub(super) fn encode_into(out: &mut BytesMut, entry: &NewEntry<'_>, time: DateTime<Utc>, seq: Seq) {
    out.reserve(encoded_len(entry));
    encode_head_into(out, entry, time, seq);
    for part in entry.message.parts_and_buffers() {
        out.put_slice(part);
    }
}

/// The encoded entry in pieces that share the memory of its message.
pub(super) fn encode_in_pieces(entry: &NewEntry<'_>, time: DateTime<Utc>, seq: Seq) -> Vec<Bytes> {
    let mut head = BytesMut::new();
    encode_head_into(&mut head, entry, time, seq);
    let mut pieces = vec![head.freeze()];
    pieces.extend(entry.message.parts_and_buffers().iter().cloned());
    pieces
}

/// Appends everything before the parts of the entry's message to `out`.
fn encode_head_into(out: &mut BytesMut, entry: &NewEntry<'_>, time: DateTime<Utc>, seq: Seq) {
    let session = session_bytes(entry);
    let length = encoded_len(entry);
    // Sockets and request bodies are limited to far less than 4 GiB.
    out.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    out.put_u8(entry.origin.to_byte());
    out.put_u8(channel_byte(entry.channel));
    out.put_u16_le(session.len() as u16);
    out.put_i64_le(time.timestamp_micros());
    out.put_slice(session);
    out.put_u64_le(seq.0);
    websocket_v1::encode_head_into(out, entry.channel, entry.message);
}

/// A log entry that shares the memory of its block.
#[derive(Clone, Debug)]
pub struct Entry {
    bytes: Bytes,
    origin: Origin,
    channel: Channel,
    session: usize,
}

impl Entry {
    /// Takes the first entry off `bytes`; `None` if it is incomplete or invalid, as after a torn write.
    pub(super) fn split_off(bytes: &mut Bytes) -> Option<Self> {
        let head = bytes.first_chunk::<HEAD>()?;
        let [l0, l1, l2, l3, origin, channel, s0, s1, ..] = *head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let session = usize::from(u16::from_le_bytes([s0, s1]));
        let origin = Origin::from_byte(origin)?;
        let channel = channel_of(channel)?;
        let message_at = HEAD + session + SEQ;
        if length > bytes.len() || length < message_at {
            return None;
        }
        std::str::from_utf8(&bytes[HEAD..HEAD + session]).ok()?;
        let message = V1Message::parse(&bytes[message_at..length]).ok()?;
        if message.len() != length - message_at {
            return None;
        }
        Some(Self {
            bytes: bytes.split_to(length),
            origin,
            channel,
            session,
        })
    }

    /// Its number.
    #[must_use]
    pub fn seq(&self) -> Seq {
        let at = HEAD + self.session;
        Seq(self.bytes[at..]
            .first_chunk::<SEQ>()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    /// When it was appended.
    #[must_use]
    pub fn time(&self) -> DateTime<Utc> {
        let micros = self.bytes[8..]
            .first_chunk::<8>()
            .map_or(0, |bytes| i64::from_le_bytes(*bytes));
        DateTime::from_timestamp_micros(micros).unwrap_or_default()
    }

    /// Its origin.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Its channel.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The session that sent the request, for requests and replies; empty for messages to all sessions.
    #[must_use]
    pub fn session(&self) -> &str {
        std::str::from_utf8(&self.bytes[HEAD..HEAD + self.session]).unwrap_or_default()
    }

    /// The message as a WebSocket message of the v1 subprotocol, without copying.
    #[must_use]
    pub fn v1(&self) -> Bytes {
        self.bytes.slice(HEAD + self.session + SEQ..)
    }

    /// The `seq` and the message as a frame of the resume protocol, without copying.
    #[must_use]
    pub fn seq_and_v1(&self) -> Bytes {
        self.bytes.slice(HEAD + self.session..)
    }

    /// The message, unsigned and without identities. It shares the entry's memory.
    #[must_use]
    pub fn message(&self) -> WireMessage {
        // The layout was checked when the entry was split off, so this always decodes.
        websocket_v1::decode(&self.v1()).map_or_else(
            |_| WireMessage::from_parts([(); 4].map(|()| Bytes::from_static(b"{}")), []),
            |(_, message)| message,
        )
    }

    /// The event in the kernel's life that this entry reports; `None` if the entry is another message, or an event that
    /// this version does not know.
    #[must_use]
    pub fn lifecycle(&self) -> Option<Lifecycle> {
        (self.origin == Origin::Lifecycle)
            .then(|| Lifecycle::from_message(&self.message()))
            .flatten()
    }

    /// Size of the encoded entry in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}
