//! Decodes frames into messages and commands as their bytes arrive.

use bytes::{Buf, Bytes, BytesMut};

use super::{COMMAND, LONG, Limits, MAX_COMMAND, MORE, Traffic, ZmtpError};

/// Frames of up to this many bytes are copied out of the read buffer if their message is incomplete. Otherwise, a peer
/// that sends small frames slowly would keep a whole read buffer alive with each frame.
const COMPACT_THRESHOLD: usize = 32 << 10;

/// Maximum size of a message that can be skipped. A message that claims to be larger closes the connection.
const MAX_SKIPPED_BYTES: u64 = 1 << 34;

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
pub(in crate::zmq) struct Decoder {
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
    pub(in crate::zmq) fn new(limits: Limits) -> Self {
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
    pub(in crate::zmq) fn missing(&self) -> usize {
        self.missing
    }

    /// Returns the size of the message that is being received, as far as it is known.
    ///
    /// `buffered` is the number of received bytes that are not decoded yet.
    pub(in crate::zmq) fn message_bytes(&self, buffered: usize) -> u64 {
        match &self.skipped {
            Some(_) => 0,
            None => self.bytes + (buffered + self.missing) as u64,
        }
    }

    /// Skips the message that is being received, including the part that has not arrived yet.
    pub(in crate::zmq) fn skip_message(&mut self) {
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
    pub(in crate::zmq) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Traffic>, ZmtpError> {
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

    use super::super::encode::{COPY_THRESHOLD, encode};
    use super::super::{MAX_MESSAGE_BYTES, check_greeting, check_is_command, check_ready, pong};
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
        // A command may arrive between the frames of a message.
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
    fn commands_between_messages_are_decoded() {
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
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
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
