use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use fjall::{AbstractTree, Keyspace};
use jupyter_protocol::KernelId;

use super::database::{Database, Open};
use super::{StoreError, StoredLog};
use crate::{Block, Entry, Epoch, IndexUpdate, Retention, Seq};

/// The most bytes of dropped blocks in memory and thus in a journal.
const DROPPED_IN_MEMORY: u64 = 1 << 20;

/// How many entries are marked as lost in advance, so that not every refused block needs a write.
const LOST_AHEAD: u64 = 4096;

/// One log of the database.
pub(super) struct FjallLog {
    id: KernelId,
    epoch: Epoch,
    database: Arc<Database>,
    /// Total size of all blocks, including dropped ones. Only the appending thread changes it.
    bytes_appended: AtomicU64,
    /// Locked while it moves.
    kept_from: Mutex<KeptFrom>,
    /// The entry up to which entries are marked as lost, or 0. Only the appending thread changes it.
    lost: AtomicU64,
}

/// Where the kept entries begin.
#[derive(Clone, Copy)]
pub(super) struct KeptFrom {
    /// First entry of the first kept block.
    pub(super) first: Seq,
    /// Total size of the blocks before it.
    pub(super) bytes_before: u64,
}

/// Key of [`KeptFrom`] in the list of logs.
pub(super) fn mark_key(id: KernelId) -> [u8; 17] {
    let mut key = [b'k'; 17];
    key[..16].copy_from_slice(id.as_uuid().as_bytes());
    key
}

/// Key in the list of logs for the last refused entry after the last block. Readers have seen refused entries, so later
/// processes must not reuse their numbers either.
pub(super) fn lost_key(id: KernelId) -> [u8; 17] {
    let mut key = mark_key(id);
    key[16] = b'l';
    key
}

pub(super) fn lost(open: &Open, id: KernelId) -> Result<Seq, StoreError> {
    let mark = open
        .logs
        .get(lost_key(id))
        .map_err(|error| open.failed("read the list of logs", error))?;
    let seq = mark.as_deref().and_then(<[u8]>::first_chunk);
    Ok(Seq(seq.map_or(0, |seq| u64::from_be_bytes(*seq))))
}

pub(super) fn kept_from(open: &Open, id: KernelId) -> Result<KeptFrom, StoreError> {
    let mark = open
        .logs
        .get(mark_key(id))
        .map_err(|error| open.failed("read the list of logs", error))?;
    let parsed = mark.as_deref().and_then(|mark| {
        let (first, bytes_before) = mark.split_first_chunk::<8>()?;
        Some(KeptFrom {
            first: Seq(u64::from_be_bytes(*first)),
            bytes_before: u64::from_be_bytes(*bytes_before.first_chunk::<8>()?),
        })
    });
    Ok(parsed.unwrap_or(KeptFrom {
        first: Seq::START.next(),
        bytes_before: 0,
    }))
}

/// A stored block, with the size of all blocks before it.
pub(super) struct StoredBlock {
    bytes_before: u64,
    pub(super) block: Block,
}

impl StoredBlock {
    pub(super) fn bytes_after(&self) -> u64 {
        self.bytes_before + self.block.bytes().len() as u64
    }
}

/// What is known of a block without reading it.
struct StoredHead {
    first: Seq,
    bytes_before: u64,
    /// When its first entry was appended.
    time: DateTime<Utc>,
}

fn value_of(guard: fjall::Guard, id: KernelId) -> Result<(u64, Bytes), StoreError> {
    let value: Bytes = guard
        .value()
        .map_err(|error| match error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
                StoreError::failed(format!("read the log of kernel {id}"), error)
            }
            error => StoreError::damaged(id, error),
        })?
        .into();
    let bytes_before = value
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .ok_or_else(|| no_entry(id))?;
    Ok((bytes_before, value.slice(8..)))
}

fn no_entry(id: KernelId) -> StoreError {
    StoreError::damaged(id, "a block contains no complete entry")
}

fn decode(guard: fjall::Guard, id: KernelId) -> Result<StoredBlock, StoreError> {
    let (bytes_before, bytes) = value_of(guard, id)?;
    Ok(StoredBlock {
        bytes_before,
        block: Block::recover(bytes).ok_or_else(|| no_entry(id))?,
    })
}

pub(super) fn last_of(blocks: &Keyspace, id: KernelId) -> Result<Option<StoredBlock>, StoreError> {
    blocks.last_key_value().map(|guard| decode(guard, id)).transpose()
}

/// The last block that starts at or before the entry.
fn head_at(blocks: &Keyspace, id: KernelId, seq: Seq) -> Result<Option<StoredHead>, StoreError> {
    let Some(guard) = blocks.range(..=seq.0.to_be_bytes()).next_back() else {
        return Ok(None);
    };
    let (bytes_before, mut bytes) = value_of(guard, id)?;
    let entry = Entry::split_off(&mut bytes).ok_or_else(|| no_entry(id))?;
    Ok(Some(StoredHead {
        first: entry.seq(),
        bytes_before,
        time: entry.time(),
    }))
}

impl FjallLog {
    pub(super) fn open(database: Arc<Database>, id: KernelId, epoch: Epoch) -> Result<Self, StoreError> {
        let (kept_from, bytes_appended, lost) = database.read(|open| {
            open.index(id)?;
            let last = last_of(&open.blocks(id)?, id)?;
            Ok((
                kept_from(open, id)?,
                last.map_or(0, |last| last.bytes_after()),
                lost(open, id)?,
            ))
        })?;
        Ok(Self {
            id,
            epoch,
            database,
            bytes_appended: AtomicU64::new(bytes_appended),
            kept_from: Mutex::new(kept_from),
            lost: AtomicU64::new(lost.0),
        })
    }

    fn kept_from(&self) -> KeptFrom {
        *self.kept_from.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, action: &str, error: fjall::Error) -> StoreError {
        let reason = match error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
            error => error.to_string(),
        };
        StoreError::failed(format!("{action} of kernel {}", self.id), reason)
    }

    fn write(&self, block: Option<&Block>, updates: &[IndexUpdate]) -> Result<(), StoreError> {
        let bytes_before = self.bytes_appended.load(Ordering::Relaxed);
        let lost = self.lost.load(Ordering::Relaxed);
        let value = block.map(|block| {
            let mut value = BytesMut::with_capacity(8 + block.bytes().len());
            value.put_u64_le(bytes_before);
            value.put_slice(block.bytes());
            (block.first().0.to_be_bytes(), value.freeze())
        });
        let updates_bytes: usize = updates
            .iter()
            .map(|update| update.key.len() + update.value.as_ref().map_or(0, Bytes::len))
            .sum();
        let length = value.as_ref().map_or(0, |(_, value)| value.len()) + updates_bytes;
        self.database.write(Some(length), |open| {
            let failed = |error| self.failed("append to the log", error);
            let blocks = open.blocks(self.id)?;
            open.expect_bytes(length)?;
            open.write_large_table(&blocks)?;
            if updates.is_empty()
                && lost == 0
                && let Some((key, value)) = &value
            {
                return blocks.insert(*key, value.clone()).map_err(failed);
            }
            let index = open.index(self.id)?;
            open.write_large_table(&index)?;
            let mut batch = open.database.batch();
            if let Some((key, value)) = &value {
                batch.insert(&blocks, *key, value.clone());
                batch.remove(&open.logs, lost_key(self.id));
            }
            for IndexUpdate { key, value } in updates {
                match value {
                    Some(value) => batch.insert(&index, key.clone(), value.clone()),
                    None => batch.remove(&index, key.clone()),
                }
            }
            batch.commit().map_err(failed)
        })?;
        if let Some(block) = block {
            let bytes = block.bytes().len() as u64;
            self.bytes_appended.store(bytes_before + bytes, Ordering::Relaxed);
            self.lost.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Marks entries up to this one as lost, if that is still possible.
    fn mark_lost(&self, last: Seq) {
        if last.0 <= self.lost.load(Ordering::Relaxed) {
            return;
        }
        let mark = last.0 + LOST_AHEAD;
        let marked = self.database.write(None, |open| {
            open.logs
                .insert(lost_key(self.id), mark.to_be_bytes())
                .map_err(|error| self.failed("mark entries as lost in the log", error))
        });
        match marked {
            Ok(()) => self.lost.store(mark, Ordering::Relaxed),
            Err(error) => tracing::debug!(kernel_id = %self.id, %error, "lost entries cannot be marked"),
        }
    }

    /// The first block to keep. The last one is always kept, because it has the newest number.
    fn first_to_keep(
        &self,
        blocks: &Keyspace,
        kept: KeptFrom,
        retention: &Retention,
    ) -> Result<Option<StoredHead>, StoreError> {
        let Some(last) = last_of(blocks, self.id)? else {
            return Ok(None);
        };
        let range = (kept.first, last.block.first());
        let end = self.bytes_appended.load(Ordering::Relaxed);
        let few = self.first_where(blocks, range, |block| {
            end.saturating_sub(block.bytes_before) <= retention.max_bytes
        })?;
        let young = match retention.oldest {
            None => kept.first,
            // The previous block may end with entries that are recent enough.
            Some(oldest) => match self.first_where(blocks, range, |block| block.time >= oldest)? {
                first if first > kept.first && first < range.1 => Seq(first.0 - 1),
                first => first,
            },
        };
        head_at(blocks, self.id, few.max(young))
    }

    /// The first block in the range for which `is` holds, given that it holds for all later ones; the range's end if it
    /// holds for none.
    fn first_where(
        &self,
        blocks: &Keyspace,
        (first, last): (Seq, Seq),
        is: impl Fn(&StoredHead) -> bool,
    ) -> Result<Seq, StoreError> {
        let (mut low, mut high) = (first.0, last.0);
        while low < high {
            let middle = low + (high - low) / 2;
            if head_at(blocks, self.id, Seq(middle))?.is_some_and(|block| is(&block)) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(Seq(low))
    }
}

impl StoredLog for FjallLog {
    fn check_room(&self) -> Result<(), StoreError> {
        self.database.expect_room(Some(0))
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let last = self.database.read(|open| last_of(&open.blocks(self.id)?, self.id))?;
        let last = last.map_or(Seq::START, |last| last.block.last());
        let last = last.max(Seq(self.lost.load(Ordering::Relaxed)));
        Ok((last > Seq::START).then(|| (self.kept_from().first, last)))
    }

    fn bytes(&self) -> u64 {
        let appended = self.bytes_appended.load(Ordering::Relaxed);
        appended.saturating_sub(self.kept_from().bytes_before)
    }

    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError> {
        self.write(Some(block), index)
            .inspect_err(|_| self.mark_lost(block.last()))
    }

    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError> {
        self.write(None, index)
    }

    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.database.read(|open| {
            open.index(self.id)?
                .get(key)
                .map(|value| value.map(Bytes::from))
                .map_err(|error| self.failed("read the index", error))
        })
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
        self.database.read(|open| {
            let records = open.index(self.id)?.range(start..end);
            let record = |guard: fjall::Guard| {
                guard
                    .into_inner()
                    .map(|(key, value)| (key.into(), value.into()))
                    .map_err(|error| self.failed("read the index", error))
            };
            if newest_first {
                records.rev().take(limit).map(record).collect()
            } else {
                records.take(limit).map(record).collect()
            }
        })
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        let after = after.max(Seq(self.kept_from().first.0.saturating_sub(1)));
        self.database.read(|open| {
            let stored = open.blocks(self.id)?;
            // The entry after `after` is in the last block that starts at or before it, or in the next one. Everything
            // from there is read at once; concurrent appends go to the end.
            let holding = stored.range(..=after.next().0.to_be_bytes()).next_back();
            let from = match holding.map(fjall::Guard::key) {
                Some(key) => key.map_err(|error| self.failed("read the log", error))?,
                None => after.next().0.to_be_bytes().into(),
            };
            let mut blocks = Vec::new();
            let mut bytes = 0;
            for guard in stored.range(from..) {
                let block = decode(guard, self.id)?.block;
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
        })
    }

    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError> {
        let mut kept = self.kept_from.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self
            .database
            .read(|open| self.first_to_keep(&open.blocks(self.id)?, *kept, retention))?;
        let Some(head) = first else {
            return Ok(Seq::START);
        };
        if head.first <= kept.first {
            return Ok(kept.first);
        }
        self.database.write(None, |open| {
            let failed = |error| self.failed("trim the log", error);
            let mut mark = [0; 16];
            mark[..8].copy_from_slice(&head.first.0.to_be_bytes());
            mark[8..].copy_from_slice(&head.bytes_before.to_be_bytes());
            open.logs.insert(mark_key(self.id), mark).map_err(failed)?;
            let blocks = open.blocks(self.id)?;
            // Data in memory is in no table yet that could be dropped; it is dropped the next time.
            let kept_bytes = self
                .bytes_appended
                .load(Ordering::Relaxed)
                .saturating_sub(head.bytes_before);
            if blocks.tree.active_memtable().size() > kept_bytes + DROPPED_IN_MEMORY {
                blocks.rotate_memtable().map_err(failed)?;
            }
            blocks
                .tree
                .drop_range(..head.first.0.to_be_bytes())
                .map_err(|error| failed(error.into()))?;
            open.give_back().map_err(failed)
        })?;
        *kept = KeptFrom {
            first: head.first,
            bytes_before: head.bytes_before,
        };
        Ok(head.first)
    }
}
