//! The ways a message crosses a WebSocket, each both ways, spliced from the same frames.
//!
//! | Format | Direction of choice |
//! |---|---|
//! | [`websocket_v1`] | the subprotocol `v1.kernel.websocket.jupyter.org`, always binary |
//! | [`legacy_text`] | no subprotocol, a message without buffers |
//! | [`legacy_binary`] | no subprotocol, a message with buffers |
//!
//! <https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html>

pub mod legacy_binary;
pub mod legacy_text;
pub mod websocket_v1;

use bytes::Bytes;

use crate::channel::UnknownChannel;

/// Bytes that are no message of the format, or a message that the format cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Shorter than its own offsets say.
    #[error("{length} bytes end before the message's offset table does")]
    Truncated {
        /// How many bytes there were.
        length: usize,
    },
    /// A number of parts that no message has.
    #[error("{count} parts, where a message has at least {least} and at most {most}")]
    PartCount {
        /// The number in the message.
        count: u64,
        /// The fewest that make a message.
        least: u64,
        /// The most that are taken.
        most: u64,
    },
    /// Offsets that run backwards or past the end.
    #[error("offset {index} of the message runs backwards or past its end")]
    BadOffset {
        /// Which one, from 0.
        index: usize,
    },
    /// The message names a channel that does not exist.
    #[error(transparent)]
    UnknownChannel(#[from] UnknownChannel),
    /// Not JSON, or not the object that was expected.
    #[error("{part} is not the JSON that was expected: {reason}")]
    Json {
        /// Which part of the message.
        part: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// Larger than the format's offsets can say.
    #[error("{length} bytes are more than the format's offsets can say")]
    TooLarge {
        /// How many bytes the message has.
        length: usize,
    },
}

/// The pieces in one.
fn whole(pieces: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(pieces) {
        Ok([piece]) => piece,
        Err(pieces) => pieces.concat().into(),
    }
}

impl CodecError {
    fn json(part: &'static str, error: &serde_json::Error) -> Self {
        Self::Json {
            part,
            reason: error.to_string(),
        }
    }
}
