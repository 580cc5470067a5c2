//! ZMTP 3.0, ZeroMQ's wire protocol, with the NULL mechanism.
//!
//! <https://rfc.zeromq.org/spec/23/>

mod commands;
mod decoder;
mod encode;
mod handshake;

use bytes::Bytes;

use super::MAX_MESSAGE_BYTES;
use crate::wire::MAX_FRAMES;

pub(super) use commands::pong;
#[cfg(feature = "kernel")]
pub(super) use commands::subscription;
pub(super) use decoder::Decoder;
pub(super) use encode::encode;
pub(super) use handshake::{GREETING, check_greeting, check_is_command, check_ready, greeting, ready};

/// Subscription message with an empty prefix, which matches all topics.
pub(super) const SUBSCRIBE_TO_ALL: [u8; 3] = [0, 1, 1];
/// Maximum size of a command in bytes. The commands of ZMTP 3 have a few dozen bytes.
const MAX_COMMAND: u64 = 64 << 10;

/// Maximum size of a message in bytes and in frames.
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

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Error of a peer that violates ZMTP or is not compatible.
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
