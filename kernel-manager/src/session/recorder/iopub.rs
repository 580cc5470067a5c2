use std::sync::Arc;

use chrono::Utc;
use jupyter_protocol::zmq::{IopubSubscriber, MAX_MESSAGE_BYTES, Refused, Verifier};
use jupyter_protocol::{Channel, Signer, WireMessage};
use kernel_log::Lifecycle;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use super::reconnect::Pauses;
use super::{LARGE, Recording, skipped_text};
use crate::session::coalesce::{COALESCE_FOR, FloodDetector};
use crate::session::execution_state::StatusFollower;
use crate::session::synthetic_reply::MISSING;

/// The most iopub messages in one append, so that a flood does not delay its first output.
const MAX_BATCH: usize = 256;
/// The most bytes in one append.
const MAX_BATCH_BYTES: usize = 256 << 10;
/// The task yields after this many batches in a row.
const BATCHES: usize = 8;

/// Messages from iopub that are appended together. Dropping the batch appends them, in case the task ends first.
struct Batch {
    recording: Arc<Recording>,
    messages: Vec<WireMessage>,
    status: StatusFollower,
}

impl Batch {
    fn record(&mut self) {
        if !self.messages.is_empty() {
            self.recording
                .record_published(&self.messages, &mut self.status, Utc::now());
            self.messages.clear();
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.record();
    }
}

/// Records iopub without waiting for readers. Waits for the store only after a large message, and when the store is far
/// behind.
pub(super) async fn record_iopub(
    recording: Arc<Recording>,
    mut iopub: IopubSubscriber,
    address: String,
    signer: Signer,
    reconnected: Arc<Notify>,
) {
    let mut pauses = Pauses::new();
    // Whether the connection was lost and nothing has been recorded since.
    let mut silent = false;
    let mut verifier = Verifier::new(Channel::Iopub, signer);
    let mut batch = Batch {
        recording: recording.clone(),
        messages: Vec::new(),
        status: StatusFollower::default(),
    };
    let mut flood = FloodDetector::new();
    // Whether to keep reading for a moment, and to append everything that arrives meanwhile as one batch.
    let mut collects = false;
    let mut batches = 0;
    loop {
        recording.log.room().await;
        let mut next = Some(iopub.recv().await);
        let until = Instant::now() + COALESCE_FOR;
        let mut broken = false;
        let mut drained = true;
        let (mut received, mut bytes) = (0, 0);
        let mut skipped = None;
        while let Some(message) = next {
            received += 1;
            match verifier.admit(message).await {
                Ok(message) => {
                    bytes += message.size();
                    if !recording.setup.hides(&message) {
                        batch.messages.push(message);
                    }
                }
                Err(Refused::Message(message)) => {
                    bytes += message.size();
                    iopub.refused(&message);
                    recording.refused.invalid();
                }
                Err(Refused::Invalid) => recording.refused.invalid(),
                Err(Refused::Skipped(bytes)) => {
                    recording.refused.skipped();
                    skipped = Some(bytes);
                }
                Err(Refused::Broken) => broken = true,
            }
            if broken || skipped.is_some() || received >= MAX_BATCH || bytes >= MAX_BATCH_BYTES {
                drained = false;
                break;
            }
            next = match iopub.try_recv() {
                None if collects => timeout_at(until, iopub.recv()).await.ok(),
                next => next,
            };
        }
        if !batch.messages.is_empty() {
            let flooded = flood.is_flood(batch.messages.len());
            batch.record();
            silent = false;
            if !flooded {
                collects = false;
            } else if drained {
                collects = !iopub.gather(COALESCE_FOR).await;
            }
            if bytes >= LARGE {
                recording.log.flushed().await;
            }
        }
        if let Some(bytes) = skipped {
            recording.report_missing_output(&skipped_text(bytes, bytes > MAX_MESSAGE_BYTES), false);
        }
        if broken {
            // Connections that are lost again before a message arrives belong to the same gap.
            if !silent {
                recording.lifecycle(&Lifecycle::Disconnected);
            }
            silent = true;
            recording.publishing.send_replace(false);
            iopub = recording.reconnect_iopub(&address, &mut pauses).await;
            recording.publishing.send_replace(true);
            recording.report_missing_output(MISSING, true);
            // The kernel may have become idle while the connection was lost.
            batch.status = StatusFollower::default();
            reconnected.notify_one();
        }
        // Yield to other kernels and their clients, but not after every batch: a kernel that does not wait for its
        // subscriber drops what is not read in time.
        batches = if drained { 0 } else { batches + 1 };
        if batches == BATCHES {
            batches = 0;
            yield_now().await;
        }
    }
}
