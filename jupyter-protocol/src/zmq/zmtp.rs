//! ZMTP 3.0, ZeroMQ's wire protocol, with the NULL mechanism.
//!
//! <https://rfc.zeromq.org/spec/23/>

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::MAX_MESSAGE_BYTES;
use crate::wire::MAX_FRAMES;

/// Length of a greeting in bytes.
pub(super) const GREETING: usize = 64;
/// Subscription message with an empty prefix, which matches all topics.
pub(super) const SUBSCRIBE_TO_ALL: [u8; 3] = [0, 1, 1];
/// Maximum size of a command in bytes. The commands of ZMTP 3 have a few dozen bytes.
const MAX_COMMAND: u64 = 64 << 10;
/// Frames of up to this many bytes are copied next to each other, so that they are sent as one piece.
const COPY_THRESHOLD: usize = 8 << 10;
/// Frames of an incomplete message of up to this many bytes are copied out of the read buffer. A peer that sends small
/// frames slowly would otherwise keep a whole read buffer alive with each.
const COMPACT_THRESHOLD: usize = 32 << 10;

/// Maximum size of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) frames: usize,
}

impl Limits {
    /// Limits of a Jupyter message.
    pub(super) const MESSAGE: Self = Self {
        bytes: MAX_MESSAGE_BYTES,
        frames: MAX_FRAMES,
    };
    /// Limits of a heartbeat or subscription.
    #[cfg(feature = "kernel")]
    pub(super) const SHORT: Self = Self {
        bytes: 4 << 10,
        frames: 16,
    };
}

/// Maximum size of a message that can be skipped. A message that claims to be larger closes the connection.
const MAX_SKIPPED_BYTES: u64 = 1 << 34;

const VERSION: u8 = 3;
const MECHANISM: &[u8] = b"NULL";

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The peer violated ZMTP or is not compatible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ZmtpError {
    #[error("the peer does not speak ZMTP 3; does another program use the port?")]
    NotZmtp,
    #[error("the peer requires the security mechanism {0:?}, but only NULL is supported")]
    Mechanism(String),
    #[error("the peer refused the connection: {0}")]
    Refused(String),
    #[error("the peer's socket type is {found:?}, expected {expected}")]
    SocketType { found: String, expected: String },
    #[error("a frame has invalid flags {0:#04x}")]
    Flags(u8),
    #[error(
        "a message exceeds {} bytes or {} frames, or a command exceeds {MAX_COMMAND} bytes", .0.bytes, .0.frames
    )]
    TooLarge(Limits),
}

/// Returns our greeting.
pub(super) fn greeting() -> [u8; GREETING] {
    let mut greeting = [0; GREETING];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = VERSION;
    greeting[12..12 + MECHANISM.len()].copy_from_slice(MECHANISM);
    greeting
}

/// Checks the part of the peer's greeting that has arrived. Returns `false` while it is incomplete.
///
/// Older versions send less and then wait for an answer, so the first bytes must suffice to reject them.
pub(super) fn check_greeting(greeting: &[u8]) -> Result<bool, ZmtpError> {
    let wrong = |at: usize, is: fn(u8) -> bool| greeting.get(at).is_some_and(|byte| is(*byte));
    if wrong(0, |byte| byte != 0xff) || wrong(9, |byte| byte & 1 == 0) || wrong(10, |version| version < VERSION) {
        return Err(ZmtpError::NotZmtp);
    }
    if greeting.len() < GREETING {
        return Ok(false);
    }
    let name = greeting[12..32].split(|byte| *byte == 0).next().unwrap_or_default();
    if name != MECHANISM {
        return Err(ZmtpError::Mechanism(String::from_utf8_lossy(name).into_owned()));
    }
    Ok(true)
}

/// Returns the READY command, which completes our side of the handshake. The identity has at most 255 bytes.
pub(super) fn ready(socket_type: &str, identity: &[u8]) -> Bytes {
    let mut body = b"\x05READY".to_vec();
    let properties = [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)];
    for (name, value) in properties.into_iter().filter(|(_, value)| !value.is_empty()) {
        // The casts cannot truncate: names and values have at most 255 bytes.
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend((value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    command(&body)
}

/// Checks that the next frame, if any has arrived, is a command: the handshake permits nothing else.
pub(super) fn check_is_command(data: &[u8]) -> Result<(), ZmtpError> {
    match data.first() {
        Some(flags) if flags & COMMAND == 0 => Err(ZmtpError::NotZmtp),
        _ => Ok(()),
    }
}

/// Checks the command that completes the peer's handshake, and returns the peer's identity, which may be empty.
///
/// Fails if the peer's socket type is not one of `types`.
pub(super) fn check_ready(command: &Bytes, types: &[&str]) -> Result<Bytes, ZmtpError> {
    let (name, mut rest) = split_short(command).ok_or(ZmtpError::NotZmtp)?;
    match name {
        b"READY" => {}
        b"ERROR" => {
            let reason = split_short(rest).map_or(rest, |(reason, _)| reason);
            return Err(ZmtpError::Refused(String::from_utf8_lossy(reason).into_owned()));
        }
        _ => return Err(ZmtpError::NotZmtp),
    }
    let mut identity = Bytes::new();
    while let Some((name, after)) = split_short(rest) {
        let (length, after) = after.split_first_chunk::<4>().ok_or(ZmtpError::NotZmtp)?;
        let value = after
            .get(..u32::from_be_bytes(*length) as usize)
            .ok_or(ZmtpError::NotZmtp)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") && !types.iter().any(|known| known.as_bytes() == value) {
            return Err(ZmtpError::SocketType {
                found: String::from_utf8_lossy(value).into_owned(),
                expected: types.join(" or "),
            });
        }
        if name.eq_ignore_ascii_case(b"Identity") {
            identity = Bytes::copy_from_slice(value);
        }
        rest = &after[value.len()..];
    }
    Ok(identity)
}

/// Returns the answer to a PING (ZMTP 3.1) with its context of at most 16 bytes, or `None` for other commands.
pub(super) fn pong(ping: &[u8]) -> Option<Bytes> {
    let context = ping.strip_prefix(b"\x04PING")?.get(2..)?;
    Some(command(&[b"\x04PONG", &context[..context.len().min(16)]].concat()))
}

/// Parses a subscription: `true` and the topic to subscribe, `false` and the topic to cancel.
///
/// Subscriptions are messages in ZMTP 3.0 and commands in ZMTP 3.1. Returns `None` for anything else.
#[cfg(feature = "kernel")]
pub(super) fn subscription(traffic: &Traffic) -> Option<(bool, Bytes)> {
    let (is_wanted, topic) = match traffic {
        Traffic::Message(frames) => match frames.as_slice() {
            [frame] => (
                *frame.first()? == 1,
                frame.strip_prefix(b"\x01").or_else(|| frame.strip_prefix(b"\0"))?,
            ),
            _ => return None,
        },
        Traffic::Skipped(_) => return None,
        Traffic::Command(command) => match split_short(command)? {
            (b"SUBSCRIBE", topic) => (true, topic),
            (b"CANCEL", topic) => (false, topic),
            _ => return None,
        },
    };
    // The topic is stored. A slice would keep the read buffer alive.
    Some((is_wanted, Bytes::copy_from_slice(topic)))
}

/// Encodes a message into pieces to be written, none of which is empty.
pub(super) fn encode(frames: &[Bytes]) -> VecDeque<Bytes> {
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

fn command(body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_frame_header(&mut out, COMMAND, body.len());
    out.extend_from_slice(body);
    out.freeze()
}

fn put_frame_header(out: &mut BytesMut, flags: u8, length: usize) {
    match u8::try_from(length) {
        Ok(length) => out.extend_from_slice(&[flags, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | LONG]);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Splits off a slice that is prefixed with its length in one byte.
fn split_short(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// Traffic after the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// The body of a command.
    Command(Bytes),
    /// The frames of a message.
    Message(Vec<Bytes>),
    /// The size in bytes of a message that was skipped: it exceeds the limit, or there was no memory for it.
    Skipped(u64),
}

/// A message that is being skipped.
struct SkippedMessage {
    /// Size of the message, as far as it is known.
    bytes: u64,
    /// Number of bytes of the current frame that have not arrived.
    left: u64,
    /// Whether another frame follows.
    more: bool,
}

/// Incremental decoder of messages and commands.
pub(super) struct Decoder {
    limits: Limits,
    /// Frames of an incomplete message.
    frames: Vec<Bytes>,
    /// Number of leading `frames` that were compacted.
    compacted: usize,
    /// Total size of `frames`.
    bytes: u64,
    /// Number of bytes of the next frame that have not arrived, as far as it is known.
    missing: usize,
    skipped: Option<SkippedMessage>,
}

impl Decoder {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            frames: Vec::new(),
            compacted: 0,
            bytes: 0,
            missing: 0,
            skipped: None,
        }
    }

    /// Returns the number of bytes that complete the next frame, as far as it is known.
    pub(super) fn missing(&self) -> usize {
        self.missing
    }

    /// Returns the size of the message that is being received, as far as it is known.
    ///
    /// `buffered` is the number of received bytes that are not decoded yet.
    pub(super) fn message_bytes(&self, buffered: usize) -> u64 {
        match &self.skipped {
            Some(_) => 0,
            None => self.bytes + (buffered + self.missing) as u64,
        }
    }

    /// Skips the message that is being received, including the part that has not arrived yet.
    pub(super) fn skip_message(&mut self) {
        self.skipped = Some(SkippedMessage {
            bytes: self.bytes,
            left: 0,
            more: true,
        });
        self.discard_frames();
    }

    fn discard_frames(&mut self) {
        self.frames.clear();
        (self.bytes, self.compacted) = (0, 0);
    }

    /// Decodes the next complete message or command, whose frames share the memory of `buffer`.
    ///
    /// Returns `None` until more bytes arrive.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Traffic>, ZmtpError> {
        loop {
            if let Some(skipped) = &mut self.skipped {
                let available = skipped.left.min(buffer.len() as u64);
                // The cast cannot truncate: `available` is at most the length of the buffer.
                buffer.advance(available as usize);
                skipped.left -= available;
                if skipped.left > 0 {
                    self.missing = 0;
                    return Ok(None);
                }
                if !skipped.more {
                    let bytes = skipped.bytes;
                    self.skipped = None;
                    return Ok(Some(Traffic::Skipped(bytes)));
                }
            }
            let Some((flags, header_length, length)) = frame_header(buffer)? else {
                break;
            };
            let is_command = flags & COMMAND != 0;
            if is_command && length > MAX_COMMAND || !is_command && self.frames.len() == self.limits.frames {
                return Err(ZmtpError::TooLarge(self.limits));
            }
            let known = self.skipped.as_ref().map_or(self.bytes, |skipped| skipped.bytes);
            let bytes = known.saturating_add(length);
            if !is_command && (self.skipped.is_some() || bytes > self.limits.bytes) {
                if self.limits != Limits::MESSAGE || bytes > MAX_SKIPPED_BYTES {
                    return Err(ZmtpError::TooLarge(self.limits));
                }
                self.discard_frames();
                buffer.advance(header_length);
                self.skipped = Some(SkippedMessage {
                    bytes,
                    left: length,
                    more: flags & MORE != 0,
                });
                continue;
            }
            // The cast cannot truncate: the length is within the limits of a command or a message.
            let length = length as usize;
            if let Some(missing) = (header_length + length)
                .checked_sub(buffer.len())
                .filter(|missing| *missing > 0)
            {
                self.missing = missing;
                self.compact();
                return Ok(None);
            }
            buffer.advance(header_length);
            let frame = buffer.split_to(length).freeze();
            if is_command {
                return Ok(Some(Traffic::Command(frame)));
            }
            self.bytes += length as u64;
            if self.frames.is_empty() {
                // A topic or identity, the delimiter, the signature and the four parts.
                self.frames.reserve(7);
            }
            self.frames.push(frame);
            if flags & MORE == 0 {
                self.bytes = 0;
                self.compacted = 0;
                return Ok(Some(Traffic::Message(std::mem::take(&mut self.frames))));
            }
        }
        self.missing = 0;
        self.compact();
        Ok(None)
    }

    /// Copies small frames out of the read buffer before waiting for more bytes.
    fn compact(&mut self) {
        for frame in &mut self.frames[self.compacted..] {
            if frame.len() <= COMPACT_THRESHOLD {
                *frame = Bytes::copy_from_slice(frame);
            }
        }
        self.compacted = self.frames.len();
    }
}

/// Returns the next frame's flags, the length of its header and the length of its body, or `None` while its header is
/// incomplete.
fn frame_header(buffer: &[u8]) -> Result<Option<(u8, usize, u64)>, ZmtpError> {
    let Some((&flags, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    if flags & !(MORE | LONG | COMMAND) != 0 {
        return Err(ZmtpError::Flags(flags));
    }
    Ok(if flags & LONG == 0 {
        rest.first().map(|length| (flags, 2, u64::from(*length)))
    } else {
        rest.first_chunk::<8>()
            .map(|length| (flags, 9, u64::from_be_bytes(*length)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(messages: &[Vec<Bytes>]) -> Vec<u8> {
        messages.iter().flat_map(|frames| encode(frames)).flatten().collect()
    }

    fn decoded(pieces: &[&[u8]]) -> Result<Vec<Traffic>, ZmtpError> {
        let (mut decoder, mut buffer, mut all) = (Decoder::new(Limits::MESSAGE), BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Some(arrived) = decoder.decode(&mut buffer)? {
                all.push(arrived);
            }
        }
        Ok(all)
    }

    #[test]
    fn only_greetings_of_zmtp_3_with_null_are_accepted() {
        assert_eq!(check_greeting(&greeting()), Ok(true));
        for whole in 0..GREETING {
            assert_eq!(check_greeting(&greeting()[..whole]), Ok(false));
        }
        assert_eq!(check_greeting(b"H"), Err(ZmtpError::NotZmtp));
        // The bytes that ZMTP 2.0 and 1.0 send before they wait for an answer.
        assert_eq!(
            check_greeting(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"),
            Err(ZmtpError::NotZmtp)
        );
        assert_eq!(check_greeting(b"\x01\0"), Err(ZmtpError::NotZmtp));
        let mut plain = greeting();
        plain[12..17].copy_from_slice(b"PLAIN");
        assert_eq!(check_greeting(&plain), Err(ZmtpError::Mechanism("PLAIN".to_owned())));
    }

    #[test]
    fn only_compatible_socket_types_are_accepted() {
        let check = |command: &[u8]| check_ready(&Bytes::copy_from_slice(command), &["XPUB", "PUB"]);
        assert_eq!(
            check(&ready("SUB", b"")[2..]),
            Err(ZmtpError::SocketType {
                found: "SUB".to_owned(),
                expected: "XPUB or PUB".to_owned()
            })
        );
        assert_eq!(check(&ready("PUB", b"me")[2..]), Ok(Bytes::from_static(b"me")));
        assert_eq!(
            check(b"\x05READY\x0bsocket-type\0\0\0\x04XPUB\x08Identity\0\0\0\0"),
            Ok(Bytes::new())
        );
        assert_eq!(check(b"\x05ERROR\x04full"), Err(ZmtpError::Refused("full".to_owned())));
        for bad in [
            &b""[..],
            b"\x06READY",
            b"\x04PING",
            b"\x05READY\x01a\0\0\0\x09b",
            b"\x05READY\x01a\0",
        ] {
            assert_eq!(check(bad), Err(ZmtpError::NotZmtp), "{bad:?}");
        }
    }

    #[test]
    fn a_ping_is_answered_with_its_context() {
        assert_eq!(pong(b"\x04PING\0\x0ahello").unwrap(), &b"\x04\x0a\x04PONGhello"[..]);
        assert_eq!(
            pong(&[&b"\x04PING\0\x0a"[..], &[b'x'; 99]].concat()).unwrap().len(),
            2 + 5 + 16
        );
        for other in [&b"\x04PING\0"[..], b"\x04PONG\0\0", b""] {
            assert_eq!(pong(other), None);
        }
    }

    #[cfg(feature = "kernel")]
    #[test]
    fn subscriptions_are_messages_or_commands() {
        let message = |frames: &[&'static [u8]]| {
            let frames = frames.iter().map(|frame| Bytes::from_static(frame));
            subscription(&Traffic::Message(frames.collect()))
        };
        let command = |body: &'static [u8]| subscription(&Traffic::Command(Bytes::from_static(body)));
        let topic = Bytes::from_static(b"kernel.");
        assert_eq!(message(&[b"\x01kernel."]), Some((true, topic.clone())));
        assert_eq!(message(&[b"\0kernel."]), Some((false, topic.clone())));
        assert_eq!(message(&[b"\x01"]), Some((true, Bytes::new())));
        assert_eq!(command(b"\x09SUBSCRIBEkernel."), Some((true, topic.clone())));
        assert_eq!(command(b"\x06CANCELkernel."), Some((false, topic)));
        let others: [&[&[u8]]; 4] = [&[], &[b""], &[b"\x02x"], &[b"\x01a", b"b"]];
        for other in others {
            assert_eq!(message(other), None);
        }
        for other in [&b""[..], b"\x04PONG", b"\x09SUBSCRIB"] {
            assert_eq!(command(other), None);
        }
    }

    #[test]
    fn claimed_lengths_and_flags_are_checked() {
        let huge = [&[LONG][..], &u64::MAX.to_be_bytes()].concat();
        let too_large = ZmtpError::TooLarge(Limits::MESSAGE);
        assert_eq!(decoded(&[&huge]), Err(too_large));
        assert_eq!(decoded(&[&[8, 0]]), Err(ZmtpError::Flags(8)));
        assert_eq!(
            decoded(&[&claim(MORE, MAX_SKIPPED_BYTES + 1)]),
            Err(ZmtpError::TooLarge(Limits::MESSAGE))
        );
        let long_command = [&[COMMAND | LONG][..], &(MAX_COMMAND + 1).to_be_bytes()].concat();
        assert_eq!(decoded(&[&long_command]), Err(ZmtpError::TooLarge(Limits::MESSAGE)));
        assert_eq!(check_is_command(&long_command), Ok(()));
        assert_eq!(check_is_command(&huge), Err(ZmtpError::NotZmtp));
        let mut decoder = Decoder::new(Limits::MESSAGE);
        let mut buffer = BytesMut::from(&[&[LONG][..], &(1_u64 << 26).to_be_bytes()].concat()[..]);
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        assert_eq!(decoder.missing(), 1 << 26);
        assert_eq!(buffer.len(), 9);
    }

    fn claim(flags: u8, length: u64) -> Vec<u8> {
        [&[flags | LONG][..], &length.to_be_bytes()].concat()
    }

    #[test]
    fn a_skipped_message_is_not_buffered() {
        let mut decoder = Decoder::new(Limits::MESSAGE);
        let mut buffer = BytesMut::new();
        let next = Bytes::from_static(b"next");
        buffer.extend_from_slice(&[&[MORE, 1, b'a'][..], &claim(MORE, MAX_MESSAGE_BYTES)].concat());
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        let mut left = MAX_MESSAGE_BYTES as usize;
        while left > 0 {
            let piece = left.min(1 << 20);
            buffer.extend_from_slice(&vec![b'x'; piece]);
            left -= piece;
            assert_eq!(decoder.decode(&mut buffer), Ok(None));
            assert!(buffer.is_empty());
        }
        // A command may come between its frames.
        buffer.extend_from_slice(&[COMMAND, 1, b'c', 0, 2, b'e']);
        assert_eq!(
            decoder.decode(&mut buffer),
            Ok(Some(Traffic::Command(Bytes::from_static(b"c"))))
        );
        buffer.extend_from_slice(b"f");
        assert_eq!(
            decoder.decode(&mut buffer),
            Ok(Some(Traffic::Skipped(MAX_MESSAGE_BYTES + 3)))
        );
        buffer.extend_from_slice(&encoded(&[vec![next.clone()]]));
        assert_eq!(decoder.decode(&mut buffer), Ok(Some(Traffic::Message(vec![next]))));
    }

    #[test]
    fn a_message_can_be_skipped_at_any_point() {
        let frames = [b"one", b"two", b"end"].map(|frame| Bytes::from_static(frame));
        let next = vec![Bytes::from_static(b"next")];
        let bytes = encoded(&[frames.to_vec()]);
        for cut in 1..bytes.len() {
            let (mut decoder, mut buffer) = (Decoder::new(Limits::MESSAGE), BytesMut::from(&bytes[..cut]));
            assert_eq!(decoder.decode(&mut buffer), Ok(None));
            decoder.skip_message();
            assert_eq!(decoder.decode(&mut buffer), Ok(None));
            buffer.extend_from_slice(&[&bytes[cut..], &encoded(std::slice::from_ref(&next))].concat());
            assert_eq!(decoder.decode(&mut buffer), Ok(Some(Traffic::Skipped(9))), "{cut}");
            assert_eq!(decoder.decode(&mut buffer), Ok(Some(Traffic::Message(next.clone()))));
        }
    }

    #[test]
    fn commands_come_between_messages() {
        let command = [COMMAND, 2, b'h', b'i'];
        let message = encoded(&[vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]]);
        assert_eq!(
            decoded(&[&command, &message, &command]).unwrap(),
            [
                Traffic::Command(Bytes::from_static(b"hi")),
                Traffic::Message(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]),
                Traffic::Command(Bytes::from_static(b"hi")),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_in_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let _ = decoded(&[first, second]);
            let _ = check_greeting(&bytes);
            let _ = pong(&bytes);
            let _ = check_ready(&bytes.into(), &["PUB"]);
        }

        #[test]
        fn messages_are_decoded_as_encoded_however_they_are_split(
            messages in prop::collection::vec(
                prop::collection::vec(prop_oneof![0..400_usize, COPY_THRESHOLD - 1..COPY_THRESHOLD + 2], 1..5), 0..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let messages: Vec<Vec<_>> = messages
                .into_iter()
                .map(|lengths| lengths.into_iter().map(|length| vec![length as u8; length].into()).collect())
                .collect();
            let bytes = encoded(&messages);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut from = 0;
            let pieces: Vec<_> = cuts.iter().map(|cut| &bytes[std::mem::replace(&mut from, *cut)..*cut]).collect();
            let expected: Vec<_> = messages.into_iter().map(Traffic::Message).collect();
            prop_assert_eq!(decoded(&pieces).unwrap(), expected);
        }
    }
}
