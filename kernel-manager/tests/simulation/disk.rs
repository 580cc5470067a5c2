//! A store on a simulated disk that outlives the process: a journal of records. Opening the store removes a torn record
//! at its end. The disk may be full, and the process may be killed during a write.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Bound, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, BufMut, Bytes};
use jupyter_protocol::KernelId;
use kernel_log::{Block, Epoch, IndexUpdate, LogInfo, LogStore, Origin, Retention, Seq, StoreError, StoredLog};

use super::random::Digest;

/// How many numbers after the refused entries are also marked as lost, as a store may do to save writes.
const LOST_AHEAD: u64 = 3;

/// The disk of one log. Clones share it.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<Inner>>);

struct Inner {
    epoch: Epoch,
    journal: Vec<u8>,
    state: JournalState,
    full: bool,
    /// Thousandths of the next record that are written before the process is killed.
    tear: Option<u64>,
    torn: bool,
    /// Ranges of entries that the full disk refused.
    refused: Vec<RangeInclusive<u64>>,
    refused_requests: BTreeSet<String>,
}

/// State that results from the journal's records.
#[derive(Default)]
struct JournalState {
    blocks: VecDeque<Block>,
    index: BTreeMap<Bytes, Bytes>,
    lost: u64,
    bytes: u64,
}

impl JournalState {
    /// Applies a record: the last number that is marked as lost, the first entry that is kept, a block, which may be
    /// empty, and index updates.
    fn apply(&mut self, mut record: Bytes) {
        let lost = record.get_u64_le();
        let first = record.get_u64_le();
        let length = record.get_u32_le() as usize;
        let block = record.split_to(length);
        self.lost = lost;
        if let Some(block) = Block::recover(block) {
            self.bytes += block.bytes().len() as u64;
            self.blocks.push_back(block);
        }
        while self.blocks.front().is_some_and(|block| block.last().0 < first) {
            if let Some(block) = self.blocks.pop_front() {
                self.bytes -= block.bytes().len() as u64;
            }
        }
        while record.has_remaining() {
            let length = record.get_u16_le() as usize;
            let key = record.split_to(length);
            let length = record.get_u32_le();
            if length == u32::MAX {
                self.index.remove(&key);
            } else {
                self.index.insert(key, record.split_to(length as usize));
            }
        }
    }

    fn first(&self) -> u64 {
        self.blocks.front().map_or(0, |block| block.first().0)
    }

    fn last(&self) -> u64 {
        self.blocks.back().map_or(0, |block| block.last().0).max(self.lost)
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut digest = Digest::default();
    digest.add(bytes);
    digest.0
}

impl Inner {
    fn record(&self, block: Option<&Block>, index: &[IndexUpdate], lost: u64, first: u64) -> Vec<u8> {
        let mut record = Vec::new();
        record.put_u64_le(lost);
        record.put_u64_le(first);
        let bytes = block.map_or(&[][..], |block| block.bytes());
        record.put_u32_le(bytes.len() as u32);
        record.put_slice(bytes);
        for update in index {
            record.put_u16_le(update.key.len() as u16);
            record.put_slice(&update.key);
            record.put_u32_le(update.value.as_ref().map_or(u32::MAX, |value| value.len() as u32));
            record.put_slice(update.value.as_deref().unwrap_or_default());
        }
        record
    }

    fn write(&mut self, record: Vec<u8>) -> Result<(), StoreError> {
        let mut framed = Vec::with_capacity(record.len() + 12);
        framed.put_u32_le(record.len() as u32);
        framed.put_u64_le(digest(&record));
        framed.put_slice(&record);
        if let Some(part) = self.tear.take() {
            framed.truncate(framed.len() * part as usize / 1000);
            self.journal.extend(framed);
            self.torn = true;
            return Err(StoreError::failed("write", "the process is killed"));
        }
        self.journal.extend(framed);
        self.state.apply(record.into());
        Ok(())
    }

    fn store(&mut self, block: Option<&Block>, index: &[IndexUpdate]) -> Result<(), StoreError> {
        if self.full {
            if let Some(block) = block {
                self.refused.push(block.first().0..=block.last().0);
                let requests = block.entries().filter(|entry| entry.origin() == Origin::Client);
                let ids = requests.map(|entry| entry.message().header_ref().unwrap().msg_id.to_string());
                self.refused_requests.extend(ids);
                let lost = block.last().0;
                if lost > self.state.lost {
                    // Use reserved space to mark the numbers as lost, so that numbers that readers have seen are not
                    // reused.
                    let record = self.record(None, &[], lost + LOST_AHEAD, self.state.first());
                    self.write(record)?;
                }
            }
            return Err(StoreError::Full {
                place: "the simulation".to_owned(),
                free: 0,
                needed: 1,
            });
        }
        let lost = if block.is_some() { 0 } else { self.state.lost };
        let record = self.record(block, index, lost, self.state.first());
        self.write(record)
    }
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            epoch: Epoch::random(),
            journal: Vec::new(),
            state: JournalState::default(),
            full: false,
            tear: None,
            torn: false,
            refused: Vec::new(),
            refused_requests: BTreeSet::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Kills the process at its next write, of which only these thousandths reach the disk.
    pub(crate) fn tear_next(&self, thousandths: u64) {
        self.lock().tear = Some(thousandths);
    }

    /// Whether a write was torn, so that the process must be killed.
    pub(crate) fn is_torn(&self) -> bool {
        self.lock().torn
    }

    /// Replays the journal, as a new process does, up to the first torn record.
    pub(crate) fn reopen(&self) {
        let mut inner = self.lock();
        (inner.torn, inner.tear) = (false, None);
        let mut state = JournalState::default();
        let mut rest = Bytes::from(inner.journal.clone());
        let mut valid = 0;
        while rest.len() >= 12 {
            let (length, expected) = (rest.get_u32_le() as usize, rest.get_u64_le());
            if rest.len() < length || digest(&rest[..length]) != expected {
                break;
            }
            state.apply(rest.split_to(length));
            valid += 12 + length;
        }
        inner.journal.truncate(valid);
        inner.state = state;
    }

    /// Whether the entry was refused, or its number was marked as lost with refused ones.
    pub(crate) fn has_refused(&self, seq: u64) -> bool {
        self.lock()
            .refused
            .iter()
            .any(|range| (*range.start()..=range.end() + LOST_AHEAD).contains(&seq))
    }

    /// Whether the entry of this request was refused.
    pub(crate) fn has_refused_request(&self, msg_id: &str) -> bool {
        self.lock().refused_requests.contains(msg_id)
    }
}

impl LogStore for Disk {
    fn blocks(&self) -> bool {
        false
    }

    fn open(&self, _: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        Ok(Box::new(self.clone()))
    }

    fn get(&self, _: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError> {
        Ok(Some(Box::new(self.clone())))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        Ok(Vec::new())
    }

    fn remove(&self, _: KernelId) -> Result<(), StoreError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl StoredLog for Disk {
    fn blocks(&self) -> bool {
        false
    }

    fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let inner = self.lock();
        let last = inner.state.last();
        Ok((last > 0).then(|| (Seq(inner.state.first().max(1)), Seq(last))))
    }

    fn bytes(&self) -> u64 {
        self.lock().state.bytes
    }

    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError> {
        self.lock().store(Some(block), index)
    }

    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError> {
        self.lock().store(None, index)
    }

    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.lock().state.index.get(key).cloned())
    }

    fn index_scan(
        &self,
        (start, end): (&[u8], &[u8]),
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let inner = self.lock();
        let records = inner
            .state
            .index
            .range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            .map(|(key, value)| (key.clone(), value.clone()));
        Ok(if newest_first {
            records.rev().take(limit).collect()
        } else {
            records.take(limit).collect()
        })
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        let inner = self.lock();
        let mut blocks = Vec::new();
        let mut bytes = 0;
        for block in inner.state.blocks.iter().filter_map(|block| block.after(after)) {
            bytes += block.bytes().len();
            blocks.push(block);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(blocks)
    }

    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError> {
        let mut inner = self.lock();
        let mut bytes = inner.state.bytes;
        let mut first = inner.state.first();
        for block in inner
            .state
            .blocks
            .iter()
            .take(inner.state.blocks.len().saturating_sub(1))
        {
            if bytes <= retention.max_bytes {
                break;
            }
            bytes -= block.bytes().len() as u64;
            first = block.last().0 + 1;
        }
        if first > inner.state.first() {
            let record = inner.record(None, &[], inner.state.lost, first);
            inner.write(record)?;
        }
        Ok(Seq(inner.state.first()))
    }
}
