use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::{MAX_MESSAGE_BYTES, SocketError};
use crate::wire::{WireError, WireMessage};

/// Cost of commands and rejected messages at which reading pauses. A small command costs one.
const PAUSE_COST: usize = 2_048;
/// Base cost of a rejected message, which covers the computation of its signature.
const MESSAGE_COST: usize = 8;
/// Bytes of a command or message that add one to its cost.
const BYTES_PER_COST: usize = 128;
/// How long reading pauses, so that further input stays in the peer's queue.
const PAUSE: Duration = Duration::from_millis(10);

/// Slows down reading from a peer that sends many commands, or messages that are rejected.
///
/// Neither reaches the caller's queues, so no other bound limits them. Without pauses a peer could keep a CPU busy.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    cost: usize,
}

impl Throttle {
    /// Counts a command, ignored or answered.
    pub(super) fn command(&mut self, command: &[u8]) {
        self.cost = self.cost.saturating_add(1 + command.len() / BYTES_PER_COST);
    }

    /// Counts a rejected message of this size.
    pub(super) fn refused(&mut self, bytes: usize) {
        self.cost = self.cost.saturating_add(MESSAGE_COST + bytes / BYTES_PER_COST);
    }

    /// Returns the message in these frames, or counts them as rejected.
    pub(super) fn message(&mut self, frames: Vec<Bytes>) -> Result<WireMessage, SocketError> {
        let bytes = total_bytes(&frames);
        WireMessage::from_frames(frames).map_err(|error| {
            self.refused(bytes);
            error.into()
        })
    }

    /// Returns whether the next [`wait`](Self::wait) pauses.
    pub(super) fn is_due(&self) -> bool {
        self.cost >= PAUSE_COST
    }

    /// Pauses if commands and rejected messages since the last pause cost enough. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        if self.is_due() {
            sleep(PAUSE).await;
            self.cost = 0;
        }
    }
}

/// Returns the error for a skipped message of this size.
pub(super) fn skipped_error(bytes: u64) -> SocketError {
    let most = MAX_MESSAGE_BYTES;
    let error = if bytes > most {
        WireError::TooLarge { bytes, limit: most }
    } else {
        WireError::NoMemory { bytes }
    };
    error.into()
}

/// Returns the total size of the frames in bytes.
fn total_bytes(frames: &[Bytes]) -> usize {
    frames.iter().map(Bytes::len).sum()
}
