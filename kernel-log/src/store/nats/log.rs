//! A log: two streams of the server, one for blocks and one for the index.

mod reading;
mod writing;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::jetstream::stream::{Info, Stream};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;

use super::index::Index;
use super::part::Head;
use super::{EMPTY, Nats, StoreError, StoredLog, failed, meta_of};
use crate::{Block, Epoch, IndexUpdate, Retention, Seq};
use writing::Writing;

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

    /// The first and the last entry, and when the last was appended.
    pub(super) async fn described(&self) -> Result<(Seq, Seq, Option<DateTime<Utc>>), StoreError> {
        let (first, last) = (self.first.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed));
        let newest = self.read_from(Seq(last.saturating_sub(1)), 1).await?;
        let updated = newest.last().map(Block::updated);
        Ok((Seq(first), Seq(last), updated))
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
            if retention.acknowledged > Seq::START {
                let acknowledged = |head: &Head| head.last <= retention.acknowledged;
                let mut unacknowledged = self.search(|head| !acknowledged(head)).await?;
                if let Some(part) = self.part_at(unacknowledged).await?
                    && acknowledged(&part.head)
                {
                    unacknowledged += u64::from(part.head.parts - part.head.part);
                }
                place = place.max(unacknowledged);
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
