//! Finds and reads a log's blocks in its stream.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind};
use bytes::{Bytes, BytesMut};

use super::NatsLog;
use crate::store::nats::part::{Head, Part};
use crate::store::nats::{StoreError, failed};
use crate::{Block, IndexUpdate, Seq};

/// How many block positions are kept in memory.
const PLACES: usize = 1024;

/// A block in the stream.
pub(super) struct Found {
    /// Number of its first message.
    pub(super) message: u64,
    pub(super) head: Head,
    pub(super) updates: Vec<IndexUpdate>,
    pub(super) entries: Bytes,
}

impl NatsLog {
    pub(super) fn places(&self) -> MutexGuard<'_, BTreeMap<Seq, u64>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remember(&self, first: Seq, message: u64) {
        let mut places = self.places();
        places.insert(first, message);
        if places.len() > PLACES {
            // Readers that lag a little need the newest positions. Older ones can be searched for.
            places.pop_first();
        }
    }

    /// The message with this number, or the next existing one.
    async fn message_at(&self, number: u64) -> Result<Option<StreamMessage>, StoreError> {
        if number > self.last_message.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let direct = self
            .stream
            .direct_get_builder()
            .sequence(number)
            .next_by_subject(self.subject.as_str())
            .send()
            .await;
        match direct {
            Ok(message) => return Ok(Some(message)),
            Err(error) if matches!(error.kind(), DirectGetErrorKind::NotFound) => {}
            Err(error) => return Err(failed("read a log", error)),
        }
        // A replica that lags behind may not have it yet, but the leader does.
        let raw = self
            .stream
            .raw_message_builder()
            .sequence(number)
            .next_by_subject(self.subject.as_str())
            .send()
            .await;
        match raw {
            Ok(message) => Ok(Some(message)),
            Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(error) => Err(failed("read a log", error)),
        }
    }

    pub(super) async fn part_at(&self, number: u64) -> Result<Option<Part>, StoreError> {
        Ok(match self.message_at(number).await? {
            Some(message) => Some(self.decode(message)?),
            None => None,
        })
    }

    fn decode(&self, message: StreamMessage) -> Result<Part, StoreError> {
        let number = message.sequence;
        Part::decode(message.payload)
            .ok_or_else(|| StoreError::damaged(self.id, format!("message {number} of its stream is invalid")))
    }

    /// The first complete block that begins at this message or later, and the number of the message after the block.
    pub(super) async fn block_from(&self, mut number: u64) -> Result<Option<(Found, u64)>, StoreError> {
        let mut found: Option<(Found, BytesMut)> = None;
        while let Some(message) = self.message_at(number).await? {
            let sequence = message.sequence;
            let part = self.decode(message)?;
            number = sequence + 1;
            let fits = found.as_ref().is_some_and(|(found, _)| {
                found.message + u64::from(part.head.part) == sequence && found.head.first == part.head.first
            });
            if part.head.part == 0 {
                let head = part.head;
                let updates = Vec::new();
                let entries = Bytes::new();
                // Most blocks are one message and need no copy.
                if part.is_last() {
                    let (updates, entries) = (part.updates, part.entries);
                    return Ok(Some((
                        Found {
                            message: sequence,
                            head,
                            updates,
                            entries,
                        },
                        number,
                    )));
                }
                let whole = Found {
                    message: sequence,
                    head,
                    updates,
                    entries,
                };
                found = Some((whole, BytesMut::from(&part.entries[..])));
            } else if !fits {
                // The rest of a block whose write was interrupted or whose start was dropped.
                found = None;
            } else if let Some((mut whole, mut entries)) = found.take() {
                entries.extend_from_slice(&part.entries);
                if part.is_last() {
                    whole.updates = part.updates;
                    whole.entries = entries.freeze();
                    return Ok(Some((whole, number)));
                }
                found = Some((whole, entries));
            }
        }
        Ok(None)
    }

    /// The last complete block or index update, unless it begins before message `first`.
    pub(super) async fn last_block(&self, first: u64) -> Result<Option<Found>, StoreError> {
        let mut number = self.last_message.load(Ordering::Relaxed);
        while number >= first {
            let Some(part) = self.part_at(number).await? else {
                return Ok(None);
            };
            let begin = number.saturating_sub(u64::from(part.head.part));
            if part.is_last()
                && let Some((found, _)) = self.block_from(begin).await?
            {
                return Ok(Some(found));
            }
            number = begin.saturating_sub(1);
        }
        Ok(None)
    }

    /// The first message of the last block for which `is_after` is false, or the stream's first message. `is_after`
    /// must hold for all blocks after the first one for which it holds.
    pub(super) async fn search(&self, is_after: impl Fn(&Head) -> bool) -> Result<u64, StoreError> {
        let info = self
            .stream
            .get_info()
            .await
            .map_err(|error| failed("read a log", error))?;
        let (mut low, mut high) = (info.state.first_sequence, info.state.last_sequence + 1);
        // `is_after` holds for messages from `high` on, and not for those before `low`.
        let mut place = low;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.part_at(middle).await? {
                Some(part) if !is_after(&part.head) => {
                    place = middle.saturating_sub(u64::from(part.head.part));
                    low = middle + 1;
                }
                _ => high = middle,
            }
        }
        Ok(place)
    }

    pub(super) async fn read_from(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        let wanted = after.next();
        let known = self.places().range(..=wanted).next_back().map(|(_, message)| *message);
        let newest = self.places().last_key_value().map(|(first, _)| *first);
        // Starts at the nearest known position, unless it may be far before the wanted entry.
        let mut number = match known {
            Some(message) if newest.is_some_and(|newest| newest >= wanted) || self.is_recent(message) => message,
            _ => self.search(|head| head.first > wanted).await?,
        };
        let mut blocks = Vec::new();
        let mut bytes = 0;
        while let Some((found, next)) = self.block_from(number).await? {
            number = next;
            if found.entries.is_empty() {
                continue;
            }
            self.remember(found.head.first, found.message);
            let block = Block::recover(found.entries)
                .ok_or_else(|| StoreError::damaged(self.id, "a block contains no complete entry"))?;
            let Some(block) = block.after(after) else {
                continue;
            };
            bytes += block.size();
            blocks.push(block);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(blocks)
    }

    /// Whether the message is among the last 16.
    fn is_recent(&self, message: u64) -> bool {
        self.last_message.load(Ordering::Relaxed) < message + 16
    }
}
