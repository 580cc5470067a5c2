use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{DirectGetErrorKind, Info, RawMessageErrorKind, Stream};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;

use super::index::Index;
use super::part::{self, Head, Part};
use super::{EMPTY, Nats, StoreError, StoredLog, failed, meta_of};
use crate::{Block, Epoch, IndexUpdate, Retention, Seq};

/// Reserved for headers in the server's largest message.
const MESSAGE_OVERHEAD: usize = 1024;
/// How many block positions are kept in memory.
const PLACES: usize = 1024;

/// One log of the store.
pub(super) struct NatsLog {
    id: KernelId,
    epoch: Epoch,
    nats: Arc<Nats>,
    stream: Stream<Info>,
    index: Index,
    subject: String,
    /// Random number that identifies this writer's messages.
    writer: u64,
    /// Sequence number of the last known message of the stream.
    last_message: AtomicU64,
    /// Sequence number of the last message when this process opened the log.
    opened_at: AtomicU64,
    /// First entry that is kept.
    first: AtomicU64,
    last: AtomicU64,
    bytes_appended: AtomicU64,
    bytes_dropped: AtomicU64,
    writing: Mutex<Writing>,
    /// Sequence numbers of the messages at which blocks begin, by first entry.
    places: Mutex<BTreeMap<Seq, u64>>,
}

/// Locked while writing.
struct Writing {
    /// Index updates that are in the log's stream and may be missing in the index's, with the message that has them.
    unapplied: Option<(u64, Vec<IndexUpdate>)>,
    /// Whether a message without an acknowledgement may have been stored.
    uncertain: bool,
}

/// A block in the stream.
struct Found {
    /// Number of its first message.
    message: u64,
    head: Head,
    updates: Vec<IndexUpdate>,
    entries: Bytes,
}

impl NatsLog {
    pub(super) async fn open(
        nats: Arc<Nats>,
        id: KernelId,
        stream: Stream<Info>,
        index: Stream<Info>,
    ) -> Result<Self, StoreError> {
        let epoch = meta_of(id, stream.cached_info())?.epoch;
        let mut log = Self {
            id,
            epoch,
            subject: nats.log_subject(id),
            index: Index {
                stream: index,
                context: nats.context.clone(),
                subject: nats.index_subject(id),
            },
            stream,
            writer: uuid::Uuid::new_v4().as_u64_pair().0,
            last_message: AtomicU64::new(0),
            opened_at: AtomicU64::new(0),
            first: AtomicU64::new(EMPTY.0.0),
            last: AtomicU64::new(EMPTY.1.0),
            bytes_appended: AtomicU64::new(0),
            bytes_dropped: AtomicU64::new(0),
            writing: Mutex::new(Writing {
                unapplied: None,
                uncertain: false,
            }),
            places: Mutex::default(),
            nats,
        };
        let info = log
            .stream
            .get_info()
            .await
            .map_err(|error| failed("open a log", error))?;
        log.last_message.store(info.state.last_sequence, Ordering::Relaxed);
        log.opened_at.store(info.state.last_sequence, Ordering::Relaxed);
        if info.state.messages == 0 {
            return Ok(log);
        }
        if let Some(first) = log.part_at(info.state.first_sequence).await? {
            log.first.store(first.head.first.0, Ordering::Relaxed);
            log.bytes_dropped.store(first.head.bytes_before, Ordering::Relaxed);
        }
        if let Some(last) = log.last_block(info.state.first_sequence).await? {
            log.last.store(last.head.last.0, Ordering::Relaxed);
            let bytes = last.head.bytes_before + last.entries.len() as u64;
            log.bytes_appended.store(bytes, Ordering::Relaxed);
            let unapplied = log.unapplied(last.message, last.updates).await?;
            log.writing.get_mut().unwrap_or_else(PoisonError::into_inner).unapplied = unapplied;
        }
        Ok(log)
    }

    /// Updates of the last block that are missing in the index's stream because the writer was interrupted.
    async fn unapplied(
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

    /// The first and the last entry, and when the last was appended.
    pub(super) async fn described(&self) -> Result<(Seq, Seq, Option<DateTime<Utc>>), StoreError> {
        let (first, last) = (self.first.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed));
        let updated = match self.read_from(Seq(last.saturating_sub(1)), 1).await?.last() {
            Some(block) => block.updated(),
            None => None,
        };
        Ok((Seq(first), Seq(last), updated))
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        // A panic while the lock is held leaves old information, which is validated when it is used.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Seq, u64>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, first: Seq, message: u64) {
        let mut places = self.places();
        places.insert(first, message);
        if places.len() > PLACES {
            // Readers that lag a little need the newest ones; others can be searched for.
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

    async fn part_at(&self, number: u64) -> Result<Option<Part>, StoreError> {
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

    /// The whole block at or after this message, and the number of the message after it.
    async fn block_from(&self, mut number: u64) -> Result<Option<(Found, u64)>, StoreError> {
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
                // The rest of a block that was interrupted or whose start was dropped.
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

    /// The last whole block or index update.
    async fn last_block(&self, first: u64) -> Result<Option<Found>, StoreError> {
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

    /// The message at which the last block begins for which `is_after` is false, or the stream's first message.
    /// `is_after` must hold for all blocks after the first one for which it holds.
    async fn search(&self, is_after: impl Fn(&Head) -> bool) -> Result<u64, StoreError> {
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

    async fn read_from(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        let wanted = after.next();
        let known = self.places().range(..=wanted).next_back().map(|(_, message)| *message);
        let newest = self.places().last_key_value().map(|(first, _)| *first);
        // Starts at the nearest known position, unless it may be far before the wanted entry.
        let mut number = match known {
            Some(message) if newest.is_some_and(|newest| newest >= wanted) || self.follows(message) => message,
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
            bytes += block.bytes().len();
            blocks.push(block);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(blocks)
    }

    /// Whether the message is among the last ones.
    fn follows(&self, message: u64) -> bool {
        self.last_message.load(Ordering::Relaxed) < message + 16
    }

    async fn write(
        &self,
        writing: &mut Writing,
        block: Option<&Block>,
        updates: &[IndexUpdate],
    ) -> Result<(), StoreError> {
        if writing.uncertain {
            self.find_out().await?;
            writing.uncertain = false;
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
        if let Some(block) = block {
            self.last.store(block.last().0, Ordering::Relaxed);
            let bytes = bytes_before + block.bytes().len() as u64;
            self.bytes_appended.store(bytes, Ordering::Relaxed);
            self.remember(block.first(), message);
        }
        if let Err(error) = self.index.apply(message, updates).await {
            // The updates are in the log's stream. Until the index's stream has them, they are read from `unapplied`.
            tracing::warn!(kernel_id = %self.id, %error, "the index is behind the log");
            writing.unapplied = Some((message, updates.to_vec()));
        }
        Ok(())
    }

    /// Finds out whether an unacknowledged message was stored.
    async fn find_out(&self) -> Result<(), StoreError> {
        let info = self
            .stream
            .get_info()
            .await
            .map_err(|error| failed("append to a log", error))?;
        let known = self.last_message.load(Ordering::Relaxed);
        let last = info.state.last_sequence;
        if last == known {
            return Ok(());
        }
        let raw = self
            .stream
            .get_raw_message(last)
            .await
            .map_err(|error| failed("append to a log", error))?;
        let ours = last <= self.opened_at.load(Ordering::Relaxed)
            || Part::decode(raw.payload).is_some_and(|part| part.head.writer == self.writer);
        if !ours {
            let action = format!("append to the log of kernel {}", self.id);
            return Err(failed(
                &action,
                "another gateway has written it; detach the kernel here",
            ));
        }
        if last < known {
            // As after a power failure of the server.
            tracing::error!(kernel_id = %self.id, "the server lost the newest entries of a log; readers will get a gap");
            self.places().retain(|_, message| *message <= last);
        }
        self.last_message.store(last, Ordering::Relaxed);
        Ok(())
    }

    /// Updates that are not in the index's stream yet.
    fn unapplied_now(&self, is: impl Fn(&[u8]) -> bool) -> BTreeMap<Bytes, Option<Bytes>> {
        let writing = self.writing();
        let updates = writing.unapplied.iter().flat_map(|(_, updates)| updates);
        updates
            .filter(|update| is(&update.key))
            .map(|update| (update.key.clone(), update.value.clone()))
            .collect()
    }
}

impl StoredLog for NatsLog {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let last = Seq(self.last.load(Ordering::Relaxed));
        Ok((last > Seq::START).then(|| (Seq(self.first.load(Ordering::Relaxed)), last)))
    }

    fn bytes(&self) -> u64 {
        let appended = self.bytes_appended.load(Ordering::Relaxed);
        appended.saturating_sub(self.bytes_dropped.load(Ordering::Relaxed))
    }

    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError> {
        let mut writing = self.writing();
        self.nats.block_on(self.write(&mut writing, Some(block), index))
    }

    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError> {
        let mut writing = self.writing();
        self.nats.block_on(self.write(&mut writing, None, index))
    }

    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if let Some((_, value)) = self.unapplied_now(|other| other == key).pop_first() {
            return Ok(value);
        }
        let record = self.nats.block_on(self.index.get(key))?;
        Ok(record.map(|record| record.value))
    }

    fn index_scan(
        &self,
        (start, end): (&[u8], &[u8]),
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let unapplied = self.unapplied_now(|key| start <= key && key < end);
        let wanted = limit.saturating_add(unapplied.len());
        let records = self
            .nats
            .block_on(self.index.scan((start, end), wanted, newest_first))?;
        Ok(crate::index::overlay(records, unapplied, limit, newest_first))
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        self.nats.block_on(self.read_from(after, max_bytes))
    }

    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError> {
        let kept = Seq(self.first.load(Ordering::Relaxed));
        let end = self.bytes_appended.load(Ordering::Relaxed);
        let last = Seq(self.last.load(Ordering::Relaxed));
        if last == Seq::START {
            return Ok(Seq::START);
        }
        self.nats.block_on(async {
            // The oldest block that, with all later ones, fits into `max_bytes`.
            let too_many = |head: &Head| end.saturating_sub(head.bytes_before) > retention.max_bytes;
            let mut place = self.search(|head| !too_many(head)).await?;
            if let Some(part) = self.part_at(place).await?
                && too_many(&part.head)
            {
                place += u64::from(part.head.parts - part.head.part);
            }
            if let Some(oldest) = retention.oldest {
                // The last old block may end with entries that are recent enough.
                let young = self.search(|head| head.time >= oldest.timestamp_micros()).await?;
                place = place.max(young);
            }
            // The last block stays, because it has the newest number.
            let newest = self.search(|head| head.first > last).await?;
            place = place.min(newest);
            let Some((found, _)) = self.block_from(place).await? else {
                return Ok(kept);
            };
            if found.head.first <= kept {
                return Ok(kept);
            }
            self.stream
                .purge()
                .sequence(found.message)
                .await
                .map_err(|error| failed("trim a log", error))?;
            self.first.store(found.head.first.0, Ordering::Relaxed);
            self.bytes_dropped.store(found.head.bytes_before, Ordering::Relaxed);
            self.places().retain(|_, message| *message >= found.message);
            Ok(found.head.first)
        })
    }
}
