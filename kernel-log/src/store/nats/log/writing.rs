//! Writes blocks and index updates, and completes writes that were interrupted.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use chrono::Utc;

use super::NatsLog;
use crate::store::nats::part::{self, Head, Part};
use crate::store::nats::{StoreError, failed};
use crate::{Block, IndexUpdate, Seq};

/// Bytes of the server's message limit that are reserved for headers.
const MESSAGE_OVERHEAD: usize = 1024;

/// The state of the writer, locked while it writes.
pub(super) struct Writing {
    /// Index updates that are in the log's stream and may be missing in the index's stream, with the number of the
    /// log's message that contains them.
    pub(super) unapplied: Option<(u64, Vec<IndexUpdate>)>,
    /// Whether a message without an acknowledgement may have been stored.
    pub(super) uncertain: bool,
}

impl NatsLog {
    pub(super) fn writing(&self) -> MutexGuard<'_, Writing> {
        // A panic while the lock is held leaves outdated state, which is validated when it is used.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn write(
        &self,
        writing: &mut Writing,
        block: Option<&Block>,
        updates: &[IndexUpdate],
    ) -> Result<(), StoreError> {
        if writing.uncertain {
            let last = self.resolve_unacknowledged().await?;
            writing.uncertain = false;
            if let Some((message, head)) = last
                && let Some(block) = block
                && (head.first, head.last) == (block.first(), block.last())
            {
                // This is a retry of a block that was stored.
                self.published(writing, message, Some((block, head.bytes_before)), updates)
                    .await;
                return Ok(());
            }
        }
        if let Some((message, earlier)) = &writing.unapplied {
            self.index.apply(*message, earlier).await?;
            writing.unapplied = None;
        }
        let max = self
            .nats
            .client
            .server_info()
            .max_payload
            .saturating_sub(MESSAGE_OVERHEAD);
        // Updates that accumulated while the server refused them may not fit into one message.
        let mut batches = part::batches(updates, max / 2);
        let with_block = batches.pop().unwrap_or_default();
        for batch in batches {
            self.publish(writing, None, batch, max).await?;
        }
        self.publish(writing, block, with_block, max).await
    }

    async fn publish(
        &self,
        writing: &mut Writing,
        block: Option<&Block>,
        updates: &[IndexUpdate],
        max: usize,
    ) -> Result<(), StoreError> {
        let bytes_before = self.bytes_appended.load(Ordering::Relaxed);
        let last = Seq(self.last.load(Ordering::Relaxed));
        let head = Head {
            writer: self.writer,
            part: 0,
            parts: 1,
            first: block.map_or(last.next(), Block::first),
            last: block.map_or(last, Block::last),
            bytes_before,
            time: block
                .and_then(|block| block.entries().next())
                .map_or_else(Utc::now, |entry| entry.time())
                .timestamp_micros(),
        };
        let messages = part::encode(head, block, updates, max)
            .ok_or_else(|| failed("append to a log", "the index updates exceed the server's message limit"))?;
        let mut first = None;
        for message in messages {
            let expected = self.last_message.load(Ordering::Relaxed);
            let publish = PublishMessage::build()
                .payload(message)
                .expected_last_sequence(expected);
            let context = &self.nats.context;
            let published = async { context.send_publish(self.subject.clone(), publish).await?.await };
            match published.await {
                Ok(ack) => {
                    self.last_message.store(ack.sequence, Ordering::Relaxed);
                    first.get_or_insert(ack.sequence);
                }
                Err(error) => {
                    writing.uncertain = true;
                    return Err(failed(&format!("append to the log of kernel {}", self.id), error));
                }
            }
        }
        let message = first.unwrap_or_default();
        let block = block.map(|block| (block, bytes_before));
        self.published(writing, message, block, updates).await;
        Ok(())
    }

    /// Updates the writer's state after the log's stream has stored a block and its index updates, and applies the
    /// updates to the index's stream. `message` is the number of the first stored message. `block` comes with the total
    /// size of all earlier blocks.
    async fn published(
        &self,
        writing: &mut Writing,
        message: u64,
        block: Option<(&Block, u64)>,
        updates: &[IndexUpdate],
    ) {
        if let Some((block, bytes_before)) = block {
            self.last.store(block.last().0, Ordering::Relaxed);
            let bytes = bytes_before + block.size() as u64;
            self.bytes_appended.store(bytes, Ordering::Relaxed);
            self.remember(block.first(), message);
        }
        if let Err(error) = self.index.apply(message, updates).await {
            // The updates are in the log's stream. Until the index's stream has them, they are read from `unapplied`.
            tracing::warn!(kernel_id = %self.id, %error, "the index is behind the log");
            writing.unapplied = Some((message, updates.to_vec()));
        }
    }

    /// Finds out whether an unacknowledged message was stored. If this message completed a block, returns the number of
    /// the block's first message and the block's head.
    async fn resolve_unacknowledged(&self) -> Result<Option<(u64, Head)>, StoreError> {
        let info = self
            .stream
            .get_info()
            .await
            .map_err(|error| failed("append to a log", error))?;
        let known = self.last_message.load(Ordering::Relaxed);
        let last = info.state.last_sequence;
        if last == known {
            return Ok(None);
        }
        let raw = self
            .stream
            .get_raw_message(last)
            .await
            .map_err(|error| failed("append to a log", error))?;
        let part = Part::decode(raw.payload).filter(|part| part.head.writer == self.writer);
        if last > self.opened_at.load(Ordering::Relaxed) && part.is_none() {
            let action = format!("append to the log of kernel {}", self.id);
            return Err(failed(
                &action,
                "another gateway has written to this log; only one gateway at a time may use the kernel",
            ));
        }
        if last < known {
            // This happens after a power failure of the server.
            tracing::error!(kernel_id = %self.id, "the server lost the newest entries of a log; readers will get a gap");
            self.places().retain(|_, message| *message <= last);
        }
        self.last_message.store(last, Ordering::Relaxed);
        let whole = part.filter(|part| last > known && part.is_last());
        Ok(whole.map(|part| (last - u64::from(part.head.part), part.head)))
    }

    /// Updates of the last block that are missing in the index's stream because the writer was interrupted.
    pub(super) async fn unapplied(
        &self,
        message: u64,
        updates: Vec<IndexUpdate>,
    ) -> Result<Option<(u64, Vec<IndexUpdate>)>, StoreError> {
        let mut unapplied = Vec::new();
        for update in updates {
            let record = self.index.get(&update.key).await?;
            let applied = match (&update.value, record) {
                (_, Some(record)) => record.came_with >= message,
                (value, None) => value.is_none(),
            };
            if !applied {
                unapplied.push(update);
            }
        }
        Ok((!unapplied.is_empty()).then_some((message, unapplied)))
    }

    /// Updates that are not in the index's stream yet.
    pub(super) fn unapplied_now(&self, is: impl Fn(&[u8]) -> bool) -> BTreeMap<Bytes, Option<Bytes>> {
        let writing = self.writing();
        let updates = writing.unapplied.iter().flat_map(|(_, updates)| updates);
        updates
            .filter(|update| is(&update.key))
            .map(|update| (update.key.clone(), update.value.clone()))
            .collect()
    }
}
