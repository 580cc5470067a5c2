//! Commands after the handshake: heartbeats and subscriptions.

use bytes::{Bytes, BytesMut};

use super::COMMAND;
#[cfg(feature = "kernel")]
use super::Traffic;
use super::encode::put_frame_header;

/// Returns the answer to a PING (ZMTP 3.1) with its context of at most 16 bytes, or `None` for other commands.
pub(in crate::zmq) fn pong(ping: &[u8]) -> Option<Bytes> {
    let context = ping.strip_prefix(b"\x04PING")?.get(2..)?;
    Some(command(&[b"\x04PONG", &context[..context.len().min(16)]].concat()))
}

/// Parses a subscription: returns `true` and the topic to subscribe to, or `false` and the topic to cancel.
///
/// Subscriptions are messages in ZMTP 3.0 and commands in ZMTP 3.1. Returns `None` for anything else.
#[cfg(feature = "kernel")]
pub(in crate::zmq) fn subscription(traffic: &Traffic) -> Option<(bool, Bytes)> {
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

pub(super) fn command(body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_frame_header(&mut out, COMMAND, body.len());
    out.extend_from_slice(body);
    out.freeze()
}

/// Splits off a slice that is prefixed with its length in one byte.
pub(super) fn split_short(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
