//! How an entry is laid out: the same bytes in memory, on disk and, but for its head, in a WebSocket frame.
//!
//! ```text
//! u32 length of all | u8 origin | u8 channel | u16 length of session | i64 time in µs | session | u64 seq | message
//! ```
//!
//! Numbers are little-endian. The message is in the layout of `v1.kernel.websocket.jupyter.org`, so what a client is
//! sent is a slice of the entry; with the `seq` in front of it, it is a frame of the resume protocol.

use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use jupyter_protocol::codec::websocket_v1::{self, V1Message};
use jupyter_protocol::{Channel, WireMessage};

use super::Seq;

const HEAD: usize = 16;
const SEQ: usize = 8;

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The kernel said it.
    Kernel,
    /// A client asked it.
    Client,
    /// The kernel's life: started, restarting, dead, a gap. Made here, as a message on iopub.
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

/// What is to be appended to a log.
#[derive(Clone, Debug)]
pub struct NewEntry<'a> {
    /// Where it comes from.
    pub origin: Origin,
    /// The channel it went over.
    pub channel: Channel,
    /// For a request the session that asked, for its reply the same; empty where it is for all. At most 65,535 bytes,
    /// the rest is cut off.
    pub session: &'a str,
    /// The message; identities and signature are not kept.
    pub message: &'a WireMessage,
}

/// Appends the entry's bytes to `out`.
pub(super) fn encode_into(out: &mut BytesMut, entry: &NewEntry<'_>, time: DateTime<Utc>, seq: Seq) {
    let session = &entry.session.as_bytes()[..entry.session.len().min(usize::from(u16::MAX))];
    let length = HEAD + session.len() + SEQ + websocket_v1::encoded_len(entry.channel, entry.message);
    out.reserve(length);
    // Messages of 4 GiB do not come this far: sockets and bodies are limited below that.
    out.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    out.put_u8(entry.origin.to_byte());
    out.put_u8(channel_byte(entry.channel));
    out.put_u16_le(session.len() as u16);
    out.put_i64_le(time.timestamp_micros());
    out.put_slice(session);
    out.put_u64_le(seq.0);
    websocket_v1::encode_into(out, entry.channel, entry.message);
}

/// An entry of a log, sharing its block's memory.
#[derive(Clone, Debug)]
pub struct Entry {
    bytes: Bytes,
    origin: Origin,
    channel: Channel,
    session: usize,
}

impl Entry {
    /// Takes the first entry off `bytes`; `None` where no whole, sound one is there, as after a torn write.
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

    /// Where it comes from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The channel it went over.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The session that asked, of a request and its replies; empty where it is for all.
    #[must_use]
    pub fn session(&self) -> &str {
        std::str::from_utf8(&self.bytes[HEAD..HEAD + self.session]).unwrap_or_default()
    }

    /// The message as a WebSocket message of the v1 subprotocol: a slice of the entry, nothing is copied.
    #[must_use]
    pub fn v1(&self) -> Bytes {
        self.bytes.slice(HEAD + self.session + SEQ..)
    }

    /// The `seq` and the message, as a frame of the resume protocol: a slice of the entry, nothing is copied.
    #[must_use]
    pub fn seq_and_v1(&self) -> Bytes {
        self.bytes.slice(HEAD + self.session..)
    }

    /// The message's frames, sharing the entry's memory, unsigned and without identities.
    #[must_use]
    pub fn message(&self) -> WireMessage {
        // The layout was checked when the entry was split off, so an entry always has its message.
        websocket_v1::decode(&self.v1()).map_or_else(
            |_| WireMessage::from_parts([(); 4].map(|()| Bytes::from_static(b"{}")), []),
            |(_, message)| message,
        )
    }

    /// How many bytes it takes in memory and on disk.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}
