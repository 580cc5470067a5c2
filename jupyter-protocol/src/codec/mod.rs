//! Encoding and decoding of messages on WebSockets. Encoders splice the frames together without reserializing them.
//!
//! | Format | Used for |
//! |---|---|
//! | [`websocket_v1`] | the subprotocol `v1.kernel.websocket.jupyter.org`, always binary |
//! | [`legacy_text`] | no subprotocol, messages without buffers |
//! | [`legacy_binary`] | no subprotocol, messages with buffers |
//!
//! <https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html>

pub mod legacy_binary;
pub mod legacy_text;
pub mod websocket_v1;

use bytes::Bytes;

use crate::channel::UnknownChannel;

/// Error of encoding or decoding a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The data ends within the offset table.
    #[error("{length} bytes end within the offset table of the message")]
    Truncated {
        /// Length of the data in bytes.
        length: usize,
    },
    /// The count at the start of the message is out of range.
    ///
    /// In [`legacy_binary`] it is the number of parts, in [`websocket_v1`] the number of offsets, one more than parts.
    #[error("the message has a count of {count}, expected {least} to {most}")]
    PartCount {
        /// Count in the message.
        count: u64,
        /// Minimum count.
        least: u64,
        /// Maximum count.
        most: u64,
    },
    /// An offset is smaller than the offset before it, within the offset table, or past the end of the message.
    #[error("offset {index} of the message is out of order or past the end of the message")]
    BadOffset {
        /// Index of the offset, from 0.
        index: usize,
    },
    /// The message names a channel that does not exist, or the heartbeat, which carries no messages.
    #[error(transparent)]
    UnknownChannel(#[from] UnknownChannel),
    /// A part is not JSON, or not an object.
    #[error("{part} is not the expected JSON: {reason}")]
    Json {
        /// Name of the part.
        part: &'static str,
        /// Why the part is invalid.
        reason: String,
    },
    /// The message is too large for the offsets of the format.
    #[error("an offset of {length} is too large for the format")]
    TooLarge {
        /// Offset or count that does not fit.
        length: usize,
    },
}

/// Concatenates pieces, without a copy if there is only one.
fn concat(pieces: Vec<Bytes>) -> Bytes {
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
