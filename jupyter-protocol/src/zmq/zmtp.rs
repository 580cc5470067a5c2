//! ZMTP 3.0, ZeroMQ's wire protocol, with the NULL mechanism.
//!
//! <https://rfc.zeromq.org/spec/23/>

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::MAX_MESSAGE_BYTES;
use crate::wire::MAX_FRAMES;

/// The length of a greeting.
pub(super) const GREETING: usize = 64;
/// Asks for everything: the message of a subscription, with an empty prefix.
pub(super) const SUBSCRIBE_TO_ALL: [u8; 3] = [0, 1, 1];
/// How many bytes a command may have. Those that there are have some tens.
const MAX_COMMAND: u64 = 64 << 10;
/// A frame of at most so many bytes is copied to be sent together with those beside it.
const FEW: usize = 8 << 10;
/// A frame of at most so many bytes, of a message that is not whole, is copied out of the memory that it was read into:
/// who sends frame after frame slowly is not to be given room for a whole read with each.
const SMALL: usize = 32 << 10;

/// How large a message may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) frames: usize,
}

impl Limits {
    /// A message of the protocol.
    pub(super) const MESSAGE: Self = Self {
        bytes: MAX_MESSAGE_BYTES,
        frames: MAX_FRAMES,
    };
    /// A heartbeat or a subscription.
    #[cfg(feature = "kernel")]
    pub(super) const SHORT: Self = Self {
        bytes: 4 << 10,
        frames: 16,
    };
}

/// The largest message that is passed over. One that claims to be larger breaks the connection.
const MOST_SKIPPED: u64 = 1 << 34;

const VERSION: u8 = 3;
const MECHANISM: &[u8] = b"NULL";

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The other side does not speak as it should.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ZmtpError {
    #[error("it does not greet as ZMTP 3 does; is the port another program's?")]
    NotZmtp,
    #[error("it wants the security mechanism {0:?}; only NULL is known here")]
    Mechanism(String),
    #[error("it refused the connection: {0}")]
    Refused(String),
    #[error("its socket is a {found:?}, where {expected} was expected")]
    SocketType { found: String, expected: String },
    #[error("a frame's flags are {0:#04x}, which ZMTP does not have")]
    Flags(u8),
    #[error(
        "a message of more than {} bytes or {} frames, or a command of more than {MAX_COMMAND}", .0.bytes, .0.frames
    )]
    TooLarge(Limits),
}

/// What to greet with.
pub(super) fn greeting() -> [u8; GREETING] {
    let mut greeting = [0; GREETING];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = VERSION;
    greeting[12..12 + MECHANISM.len()].copy_from_slice(MECHANISM);
    greeting
}

/// Looks at as much of the other side's greeting as has come; whether that is all of it. An older version sends less,
/// and waits.
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

/// The command that ends our side of the handshake; the identity has at most 255 bytes.
pub(super) fn ready(socket_type: &str, identity: &[u8]) -> Bytes {
    let mut body = b"\x05READY".to_vec();
    let properties = [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)];
    for (name, value) in properties.into_iter().filter(|(_, value)| !value.is_empty()) {
        // Names are short, and so are values.
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend((value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    command(&body)
}

/// Whether what comes is a command, as far as that is known: until the handshake has ended nothing else may.
pub(super) fn check_is_command(data: &[u8]) -> Result<(), ZmtpError> {
    match data.first() {
        Some(flags) if flags & COMMAND == 0 => Err(ZmtpError::NotZmtp),
        _ => Ok(()),
    }
}

/// Looks at the command that ends the other side's handshake, of a socket of one of these types. Returns its identity,
/// which may be empty.
pub(super) fn check_ready(command: &Bytes, types: &[&str]) -> Result<Bytes, ZmtpError> {
    let (name, mut rest) = short(command).ok_or(ZmtpError::NotZmtp)?;
    match name {
        b"READY" => {}
        b"ERROR" => {
            let reason = short(rest).map_or(rest, |(reason, _)| reason);
            return Err(ZmtpError::Refused(String::from_utf8_lossy(reason).into_owned()));
        }
        _ => return Err(ZmtpError::NotZmtp),
    }
    let mut identity = Bytes::new();
    while let Some((name, after)) = short(rest) {
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

/// The answer to a PING (ZMTP 3.1), with the at most 16 bytes of context that it may have; `None` for other commands.
pub(super) fn pong(ping: &[u8]) -> Option<Bytes> {
    let context = ping.strip_prefix(b"\x04PING")?.get(2..)?;
    Some(command(&[b"\x04PONG", &context[..context.len().min(16)]].concat()))
}

/// What a subscriber asks for: the topic, and whether it is to have it from now on or no longer. As ZMTP 3.0 has it, a
/// message, or as 3.1 does, a command. `None` for anything else.
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
        Traffic::LeftOut(_) => return None,
        Traffic::Command(command) => match short(command)? {
            (b"SUBSCRIBE", topic) => (true, topic),
            (b"CANCEL", topic) => (false, topic),
            _ => return None,
        },
    };
    // A copy: it is kept, and what it came in is not to be.
    Some((is_wanted, Bytes::copy_from_slice(topic)))
}

/// A message as the pieces that are sent, none of which is empty.
pub(super) fn encode(frames: &[Bytes]) -> VecDeque<Bytes> {
    let mut pieces = VecDeque::new();
    let mut few = BytesMut::new();
    for (index, frame) in frames.iter().enumerate() {
        let more = u8::from(index + 1 < frames.len());
        put_head(&mut few, more, frame.len());
        if frame.len() <= FEW {
            few.extend_from_slice(frame);
        } else {
            pieces.extend([few.split().freeze(), frame.clone()]);
        }
    }
    if !few.is_empty() {
        pieces.push_back(few.freeze());
    }
    pieces
}

fn command(body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_head(&mut out, COMMAND, body.len());
    out.extend_from_slice(body);
    out.freeze()
}

fn put_head(out: &mut BytesMut, flags: u8, length: usize) {
    match u8::try_from(length) {
        Ok(length) => out.extend_from_slice(&[flags, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | LONG]);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// What has a byte of length in front of it, and what comes after.
fn short(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// What comes after the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// The body of a command.
    Command(Bytes),
    /// The frames of a message.
    Message(Vec<Bytes>),
    /// A message of so many bytes, which was passed over: it is larger than the limit, or there was no memory for it.
    LeftOut(u64),
}

/// A message that is passed over.
struct Skipped {
    /// How many bytes of it are known of.
    bytes: u64,
    /// How many bytes of its current frame have not come.
    left: u64,
    /// Whether another frame follows.
    more: bool,
}

/// Takes messages off what was read.
pub(super) struct Decoder {
    limits: Limits,
    /// The frames of a message whose last one has not come.
    frames: Vec<Bytes>,
    /// How many of these have nothing beside them in their memory.
    settled: usize,
    /// How many bytes they have.
    bytes: u64,
    /// How many bytes of the next frame have not come, as far as that is known.
    missing: usize,
    skipped: Option<Skipped>,
}

impl Decoder {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            frames: Vec::new(),
            settled: 0,
            bytes: 0,
            missing: 0,
            skipped: None,
        }
    }

    /// How many more bytes it takes to get on, as far as that is known.
    pub(super) fn missing(&self) -> usize {
        self.missing
    }

    /// How many bytes the message that is being received has, as far as that is known. `buffered` is how many of them
    /// have come and were not taken.
    pub(super) fn message_bytes(&self, buffered: usize) -> u64 {
        match &self.skipped {
            Some(_) => 0,
            None => self.bytes + (buffered + self.missing) as u64,
        }
    }

    /// Passes over the message that is being received: what has come of it, and what will.
    pub(super) fn leave_out(&mut self) {
        self.skipped = Some(Skipped {
            bytes: self.bytes,
            left: 0,
            more: true,
        });
        self.forget();
    }

    /// Drops the frames that have come.
    fn forget(&mut self) {
        self.frames.clear();
        (self.bytes, self.settled) = (0, 0);
    }

    /// The next message or command that is whole; its frames share the buffer's memory.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Traffic>, ZmtpError> {
        loop {
            if let Some(skipped) = &mut self.skipped {
                let there = skipped.left.min(buffer.len() as u64);
                // At most what the buffer has.
                buffer.advance(there as usize);
                skipped.left -= there;
                if skipped.left > 0 {
                    self.missing = 0;
                    return Ok(None);
                }
                if !skipped.more {
                    let bytes = skipped.bytes;
                    self.skipped = None;
                    return Ok(Some(Traffic::LeftOut(bytes)));
                }
            }
            let Some((flags, head, length)) = frame_head(buffer)? else {
                break;
            };
            let is_command = flags & COMMAND != 0;
            if is_command && length > MAX_COMMAND || !is_command && self.frames.len() == self.limits.frames {
                return Err(ZmtpError::TooLarge(self.limits));
            }
            let known = self.skipped.as_ref().map_or(self.bytes, |skipped| skipped.bytes);
            let bytes = known.saturating_add(length);
            if !is_command && (self.skipped.is_some() || bytes > self.limits.bytes) {
                if self.limits != Limits::MESSAGE || bytes > MOST_SKIPPED {
                    return Err(ZmtpError::TooLarge(self.limits));
                }
                self.forget();
                buffer.advance(head);
                self.skipped = Some(Skipped {
                    bytes,
                    left: length,
                    more: flags & MORE != 0,
                });
                continue;
            }
            // In range: that of a command or a message.
            let length = length as usize;
            if let Some(missing) = (head + length).checked_sub(buffer.len()).filter(|missing| *missing > 0) {
                self.missing = missing;
                self.settle();
                return Ok(None);
            }
            buffer.advance(head);
            let frame = buffer.split_to(length).freeze();
            if is_command {
                return Ok(Some(Traffic::Command(frame)));
            }
            self.bytes += length as u64;
            if self.frames.is_empty() {
                // What a message without buffers has.
                self.frames.reserve(7);
            }
            self.frames.push(frame);
            if flags & MORE == 0 {
                self.bytes = 0;
                self.settled = 0;
                return Ok(Some(Traffic::Message(std::mem::take(&mut self.frames))));
            }
        }
        self.missing = 0;
        self.settle();
        Ok(None)
    }

    /// Before more is waited for.
    fn settle(&mut self) {
        for frame in &mut self.frames[self.settled..] {
            if frame.len() <= SMALL {
                *frame = Bytes::copy_from_slice(frame);
            }
        }
        self.settled = self.frames.len();
    }
}

/// The next frame's flags, how long its head is, and its length; `None` where its head has not come.
fn frame_head(buffer: &[u8]) -> Result<Option<(u8, usize, u64)>, ZmtpError> {
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
    fn our_own_greeting_passes_and_others_do_not() {
        assert_eq!(check_greeting(&greeting()), Ok(true));
        for whole in 0..GREETING {
            assert_eq!(check_greeting(&greeting()[..whole]), Ok(false));
        }
        assert_eq!(check_greeting(b"H"), Err(ZmtpError::NotZmtp));
        // ZMTP 2.0, 1.0: what they send before they wait for an answer.
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
    fn only_sockets_that_fit_are_ready() {
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
    fn a_length_is_not_believed_and_flags_are_checked() {
        let huge = [&[LONG][..], &u64::MAX.to_be_bytes()].concat();
        let too_large = ZmtpError::TooLarge(Limits::MESSAGE);
        assert_eq!(decoded(&[&huge]), Err(too_large));
        assert_eq!(decoded(&[&[8, 0]]), Err(ZmtpError::Flags(8)));
        assert_eq!(
            decoded(&[&claim(MORE, MOST_SKIPPED + 1)]),
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
    fn a_message_that_is_left_out_is_passed_over_and_takes_no_room() {
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
            Ok(Some(Traffic::LeftOut(MAX_MESSAGE_BYTES + 3)))
        );
        buffer.extend_from_slice(&encoded(&[vec![next.clone()]]));
        assert_eq!(decoder.decode(&mut buffer), Ok(Some(Traffic::Message(vec![next]))));
    }

    #[test]
    fn a_message_can_be_left_out_at_any_point() {
        let frames = [b"one", b"two", b"end"].map(|frame| Bytes::from_static(frame));
        let next = vec![Bytes::from_static(b"next")];
        let bytes = encoded(&[frames.to_vec()]);
        for cut in 1..bytes.len() {
            let (mut decoder, mut buffer) = (Decoder::new(Limits::MESSAGE), BytesMut::from(&bytes[..cut]));
            assert_eq!(decoder.decode(&mut buffer), Ok(None));
            decoder.leave_out();
            assert_eq!(decoder.decode(&mut buffer), Ok(None));
            buffer.extend_from_slice(&[&bytes[cut..], &encoded(std::slice::from_ref(&next))].concat());
            assert_eq!(decoder.decode(&mut buffer), Ok(Some(Traffic::LeftOut(9))), "{cut}");
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
        fn messages_come_out_as_they_went_in_wherever_they_are_cut(
            messages in prop::collection::vec(
                prop::collection::vec(prop_oneof![0..400_usize, FEW - 1..FEW + 2], 1..5), 0..5),
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
