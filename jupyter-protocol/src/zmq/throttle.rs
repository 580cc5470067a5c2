use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::{MAX_MESSAGE_BYTES, SocketError};
use crate::wire::{WireError, WireMessage};

/// How much refused input is taken before a pause. A command counts as one.
const BURST: usize = 2_048;
/// What a refused message counts as, of which the signature was computed.
const MESSAGE: usize = 8;
/// How many of its bytes count as one.
const BYTES: usize = 128;
/// How long reading pauses then, so that what a peer sends waits on its own side.
const PAUSE: Duration = Duration::from_millis(10);

/// Slows down reading from a peer that sends input which is refused.
///
/// Such input produces no entry and so meets no other bound: without pauses a peer could keep a processor busy with it.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    refused: usize,
}

impl Throttle {
    /// Counts a command that was passed over, or answered.
    pub(super) fn command(&mut self, command: &[u8]) {
        self.refused = self.refused.saturating_add(1 + command.len() / BYTES);
    }

    /// Counts a message that was refused.
    pub(super) fn refused(&mut self, bytes: usize) {
        self.refused = self.refused.saturating_add(MESSAGE + bytes / BYTES);
    }

    /// The message that these frames are; refused where they are none.
    pub(super) fn message(&mut self, frames: Vec<Bytes>) -> Result<WireMessage, SocketError> {
        let bytes = size(&frames);
        WireMessage::from_frames(frames).map_err(|error| {
            self.refused(bytes);
            error.into()
        })
    }

    /// Whether the next [`wait`](Self::wait) pauses.
    pub(super) fn is_due(&self) -> bool {
        self.refused >= BURST
    }

    /// Pauses where enough was refused since the last pause. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        if self.is_due() {
            sleep(PAUSE).await;
            self.refused = 0;
        }
    }
}

/// The error in place of a message that was passed over.
pub(super) fn left_out(bytes: u64) -> SocketError {
    let most = MAX_MESSAGE_BYTES;
    let error = if bytes > most {
        WireError::TooLarge { bytes, most }
    } else {
        WireError::NoMemory { bytes }
    };
    error.into()
}

/// How many bytes the frames have.
pub(super) fn size(frames: &[Bytes]) -> usize {
    frames.iter().map(Bytes::len).sum()
}
