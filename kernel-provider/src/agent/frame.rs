//! The frames of the link.
//!
//! ```text
//! u32 length of the rest | u8 kind | payload
//! ```
//!
//! Numbers are little-endian. The gateway and the agent each send their own kinds of frames.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use jupyter_protocol::Channel;
use tokio_util::codec::LengthDelimitedCodec;

/// Maximum size of a frame, enough for a message of 128 MiB and its headers.
const MAX_FRAME: usize = 160 << 20;
/// A block of entries that is larger than this is offered before it is sent, so that the gateway can reserve memory.
pub const LARGE: usize = 1 << 20;
/// Maximum size of the first frame, which comes from a peer that is not authenticated yet.
pub const MAX_HELLO: usize = 4 << 10;

/// A frame from the gateway to the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum ToAgent {
    /// The first frame: [`Hello`](super::Hello) as JSON.
    Hello(Bytes),
    /// A [`Request`](super::Request) as JSON.
    Control(Bytes),
    /// Send the entries after this one.
    Read(u64),
    /// Send this many more bytes of entries.
    Credit(u64),
    /// Send the block that was offered with this number.
    Take(u64),
    /// Entries up to this one are stored and may be dropped.
    Acknowledge(u64),
    /// A message for the kernel.
    Message(Outgoing),
    /// Answer with [`FromAgent::Pong`].
    Ping,
}

/// A message for the kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Shell, control or stdin.
    pub channel: Channel,
    /// The target process, as in [`ProcessPhase`](super::ProcessPhase). If it has ended, the message is dropped.
    pub process: u64,
    /// The gateway's log that contains it.
    pub log: u128,
    /// The number of its entry, which grows with each message of a channel.
    pub number: u64,
    /// The message in the layout of `v1.kernel.websocket.jupyter.org`.
    pub message: Bytes,
}

/// A frame from the agent to the gateway.
#[derive(Clone, Debug, PartialEq)]
pub enum FromAgent {
    /// The first frame: [`Welcome`](super::Welcome) as JSON.
    Welcome(Bytes),
    /// The only frame: [`Refused`](super::Refused) as JSON.
    Refused(Bytes),
    /// A [`Reply`](super::Reply) as JSON.
    Reply(Bytes),
    /// A [`ProcessPhase`](super::ProcessPhase) as JSON.
    Phase(Bytes),
    /// Consecutive entries of the agent's log, in the log's layout; the numbers are those of the first and the last
    /// one.
    Entries(u64, u64, Bytes),
    /// The entries from the first number to the second, both included, are missing.
    Gap(u64, u64),
    /// The next block of entries is large: the number of its first entry, and its size in bytes. It follows after
    /// [`ToAgent::Take`].
    Offer(u64, u64),
    /// The message with this number, and all before it on its channel, were passed to the kernel, or dropped because
    /// their process has ended.
    Accepted(Channel, u64),
    /// The answer to [`ToAgent::Ping`].
    Pong,
}

/// A frame that does not follow the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of kind {kind} and {bytes} bytes is not valid")]
pub struct BadFrame {
    kind: u8,
    bytes: usize,
}

/// Splits a stream of bytes into frames.
#[must_use]
pub fn codec() -> LengthDelimitedCodec {
    with_max(MAX_FRAME)
}

/// As [`codec`], for the first frame of a peer, which has at most [`MAX_HELLO`] bytes.
#[must_use]
pub fn hello_codec() -> LengthDelimitedCodec {
    with_max(MAX_HELLO)
}

fn with_max(max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .little_endian()
        .max_frame_length(max)
        .new_codec()
}

const HELLO: u8 = 1;
const CONTROL: u8 = 2;
const READ: u8 = 3;
const CREDIT: u8 = 4;
const ACKNOWLEDGE: u8 = 5;
const MESSAGE: u8 = 6;
const PING: u8 = 7;
const TAKE: u8 = 8;
const WELCOME: u8 = 129;
const REFUSED: u8 = 130;
const REPLY: u8 = 131;
const PHASE: u8 = 132;
const ENTRIES: u8 = 133;
const GAP: u8 = 134;
const ACCEPTED: u8 = 135;
const PONG: u8 = 136;
const OFFER: u8 = 137;

/// The bytes of a frame with this payload.
fn encoded(kind: u8, fill: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u32_le(0);
    bytes.put_u8(kind);
    fill(&mut bytes);
    // A frame is far shorter than 4 GiB.
    let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes.freeze()
}

impl ToAgent {
    /// The frame's bytes, with the length.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Hello(json) => encoded(HELLO, |out| out.put_slice(json)),
            Self::Control(json) => encoded(CONTROL, |out| out.put_slice(json)),
            Self::Read(after) => encoded(READ, |out| out.put_u64_le(*after)),
            Self::Credit(bytes) => encoded(CREDIT, |out| out.put_u64_le(*bytes)),
            Self::Take(first) => encoded(TAKE, |out| out.put_u64_le(*first)),
            Self::Acknowledge(seq) => encoded(ACKNOWLEDGE, |out| out.put_u64_le(*seq)),
            Self::Message(message) => encoded(MESSAGE, |out| {
                out.reserve(33 + message.message.len());
                out.put_u8(channel_byte(message.channel));
                out.put_u64_le(message.process);
                out.put_u128_le(message.log);
                out.put_u64_le(message.number);
                out.put_slice(&message.message);
            }),
            Self::Ping => encoded(PING, |_| {}),
        }
    }

    /// Decodes a frame without its length.
    ///
    /// # Errors
    /// [`BadFrame`] if it is of no known kind or too short.
    pub fn decode(mut frame: Bytes) -> Result<Self, BadFrame> {
        let bytes = frame.len();
        let kind = frame.try_get_u8().unwrap_or_default();
        let bad = BadFrame { kind, bytes };
        let number = |mut frame: Bytes| frame.try_get_u64_le().map_err(|_| bad);
        Ok(match kind {
            HELLO => Self::Hello(frame),
            CONTROL => Self::Control(frame),
            READ => Self::Read(number(frame)?),
            CREDIT => Self::Credit(number(frame)?),
            TAKE => Self::Take(number(frame)?),
            ACKNOWLEDGE => Self::Acknowledge(number(frame)?),
            MESSAGE => {
                let channel = frame.try_get_u8().ok().and_then(channel_of).ok_or(bad)?;
                let process = frame.try_get_u64_le().map_err(|_| bad)?;
                let log = frame.try_get_u128_le().map_err(|_| bad)?;
                let number = frame.try_get_u64_le().map_err(|_| bad)?;
                Self::Message(Outgoing {
                    channel,
                    process,
                    log,
                    number,
                    message: frame,
                })
            }
            PING => Self::Ping,
            _ => return Err(bad),
        })
    }
}

impl FromAgent {
    /// The frame's bytes, with the length.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Welcome(json) => encoded(WELCOME, |out| out.put_slice(json)),
            Self::Refused(json) => encoded(REFUSED, |out| out.put_slice(json)),
            Self::Reply(json) => encoded(REPLY, |out| out.put_slice(json)),
            Self::Phase(json) => encoded(PHASE, |out| out.put_slice(json)),
            Self::Entries(first, last, block) => encoded(ENTRIES, |out| {
                out.put_u64_le(*first);
                out.put_u64_le(*last);
                out.put_slice(block);
            }),
            Self::Gap(first, last) => encoded(GAP, |out| {
                out.put_u64_le(*first);
                out.put_u64_le(*last);
            }),
            Self::Offer(first, bytes) => encoded(OFFER, |out| {
                out.put_u64_le(*first);
                out.put_u64_le(*bytes);
            }),
            Self::Accepted(channel, number) => encoded(ACCEPTED, |out| {
                out.put_u8(channel_byte(*channel));
                out.put_u64_le(*number);
            }),
            Self::Pong => encoded(PONG, |_| {}),
        }
    }

    /// The beginning of a frame of entries from `first` to `last`. The entries, which have this many `bytes`, follow
    /// it.
    #[must_use]
    pub fn entries_head(first: u64, last: u64, bytes: usize) -> Bytes {
        let mut head = BytesMut::with_capacity(21);
        head.put_u32_le(u32::try_from(bytes + 17).unwrap_or(u32::MAX));
        head.put_u8(ENTRIES);
        head.put_u64_le(first);
        head.put_u64_le(last);
        head.freeze()
    }

    /// Decodes a frame without its length.
    ///
    /// # Errors
    /// [`BadFrame`] if it is of no known kind or too short.
    pub fn decode(mut frame: Bytes) -> Result<Self, BadFrame> {
        let bytes = frame.len();
        let kind = frame.try_get_u8().unwrap_or_default();
        let bad = BadFrame { kind, bytes };
        let number = |frame: &mut Bytes| frame.try_get_u64_le().map_err(|_| bad);
        Ok(match kind {
            WELCOME => Self::Welcome(frame),
            REFUSED => Self::Refused(frame),
            REPLY => Self::Reply(frame),
            PHASE => Self::Phase(frame),
            ENTRIES => Self::Entries(number(&mut frame)?, number(&mut frame)?, frame),
            GAP => Self::Gap(number(&mut frame)?, number(&mut frame)?),
            OFFER => Self::Offer(number(&mut frame)?, number(&mut frame)?),
            ACCEPTED => {
                let channel = frame.try_get_u8().ok().and_then(channel_of).ok_or(bad)?;
                Self::Accepted(channel, number(&mut frame)?)
            }
            PONG => Self::Pong,
            _ => return Err(bad),
        })
    }
}

/// The channels on which the gateway sends. A frame contains the position of its channel in this array.
pub const CHANNELS: [Channel; 3] = [Channel::Shell, Channel::Control, Channel::Stdin];

/// The channel's position in [`CHANNELS`]; the position of shell for a channel on which the gateway does not send.
#[must_use]
pub fn channel_index(channel: Channel) -> usize {
    CHANNELS.iter().position(|known| *known == channel).unwrap_or_default()
}

fn channel_byte(channel: Channel) -> u8 {
    channel_index(channel) as u8
}

fn channel_of(byte: u8) -> Option<Channel> {
    CHANNELS.get(usize::from(byte)).copied()
}

#[cfg(test)]
mod tests {
    use tokio_util::codec::Decoder as _;

    use super::*;

    fn without_length(frame: &Bytes) -> Bytes {
        let mut bytes = BytesMut::from(&frame[..]);
        let split = codec().decode(&mut bytes).unwrap().unwrap();
        assert!(bytes.is_empty());
        split.freeze()
    }

    #[test]
    fn each_frame_is_read_back() {
        let text = Bytes::from_static(b"{}");
        for frame in [
            ToAgent::Hello(text.clone()),
            ToAgent::Control(text.clone()),
            ToAgent::Read(7),
            ToAgent::Credit(8),
            ToAgent::Take(8),
            ToAgent::Acknowledge(9),
            ToAgent::Message(Outgoing {
                channel: Channel::Stdin,
                process: 2,
                log: 10,
                number: 11,
                message: text.clone(),
            }),
            ToAgent::Ping,
        ] {
            assert_eq!(ToAgent::decode(without_length(&frame.encode())), Ok(frame));
        }
        for frame in [
            FromAgent::Welcome(text.clone()),
            FromAgent::Refused(text.clone()),
            FromAgent::Reply(text.clone()),
            FromAgent::Phase(text.clone()),
            FromAgent::Entries(4, 6, text.clone()),
            FromAgent::Gap(1, 2),
            FromAgent::Offer(4, 2 << 20),
            FromAgent::Accepted(Channel::Control, 3),
            FromAgent::Pong,
        ] {
            assert_eq!(FromAgent::decode(without_length(&frame.encode())), Ok(frame));
        }
        let entries = [&FromAgent::entries_head(4, 6, text.len())[..], &text].concat();
        assert_eq!(entries, FromAgent::Entries(4, 6, text).encode());
    }

    #[test]
    fn frames_that_are_cut_off_are_refused() {
        let message = ToAgent::Message(Outgoing {
            channel: Channel::Shell,
            process: 2,
            log: 1,
            number: 2,
            message: Bytes::new(),
        });
        for frame in [ToAgent::Read(1).encode(), message.encode()] {
            let whole = without_length(&frame);
            for length in 0..whole.len() {
                assert!(ToAgent::decode(whole.slice(..length)).is_err(), "{length}");
            }
        }
        for frame in [
            FromAgent::Gap(1, 2).encode(),
            FromAgent::Offer(1, 2).encode(),
            FromAgent::Accepted(Channel::Shell, 1).encode(),
        ] {
            let whole = without_length(&frame);
            for length in 0..whole.len() {
                assert!(FromAgent::decode(whole.slice(..length)).is_err(), "{length}");
            }
        }
    }
}
