//! A log on disk: its segments and its index.

mod reading;
mod syncing;
mod trimming;
mod writing;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;

use super::folder::{Folder, create_private};
use super::frame::Totals;
use super::index::Index;
use super::opening;
use super::segment::{Offsets, Writer};
use super::{Handle, LogInfo, StoreError, StoredLog};
use crate::{Block, Epoch, IndexUpdate, Retention, Seq};

pub(super) use self::reading::Segment;

/// One log of the store.
pub(super) struct DiskLog {
    folder: Arc<Folder>,
    id: KernelId,
    owner: OnceLock<String>,
    epoch: Epoch,
    created: i64,
    path: PathBuf,
    /// Writes the newest segment; `None` before the first write. Locked while writing.
    writer: Mutex<Option<Writer>>,
    state: Mutex<ReadState>,
    /// Whether something was written since the last sync.
    is_dirty: AtomicBool,
    /// Number of the newest segment when the log was last synced; 0 before that.
    synced: AtomicU64,
    is_removed: AtomicBool,
}

/// The state that readers need. Not locked while writing.
pub(super) struct ReadState {
    pub(super) totals: Totals,
    /// Oldest first.
    pub(super) segments: Vec<Arc<Segment>>,
    /// Offsets in the newest segment.
    pub(super) offsets: Offsets,
    /// How many bytes of the newest segment may be read.
    pub(super) length: u64,
    /// Whether the newest segment cannot be continued.
    pub(super) is_ended: bool,
    /// Whether the log was closed and has not been written since.
    pub(super) is_closed: bool,
    pub(super) index: Index,
}

impl DiskLog {
    /// Opens the log; `None` if it does not exist.
    pub(super) fn open(folder: Arc<Folder>, id: KernelId) -> Result<Option<Self>, StoreError> {
        let path = folder.log(id);
        let Some(opened) = opening::open(&path, id, folder.cycle())? else {
            return Ok(None);
        };
        Ok(Some(Self {
            id,
            owner: folder.owner(id).map(OnceLock::from).unwrap_or_default(),
            epoch: opened.header.epoch,
            created: opened.header.created,
            path,
            writer: Mutex::new(None),
            state: Mutex::new(opened.state),
            is_dirty: AtomicBool::new(false),
            synced: AtomicU64::new(0),
            is_removed: AtomicBool::new(false),
            folder,
        }))
    }

    /// Creates the log.
    pub(super) fn create(folder: Arc<Folder>, id: KernelId) -> Result<Self, StoreError> {
        let path = folder.log(id);
        folder.expect_room(0)?;
        create_private(&path)
            .map_err(|error| StoreError::failed(format!("create the folder {}", path.display()), error))?;
        let log = Self {
            id,
            // An interrupted attempt to create the log may have left an owner.
            owner: folder.owner(id).map(OnceLock::from).unwrap_or_default(),
            epoch: Epoch::random(),
            created: Utc::now().timestamp_micros(),
            writer: Mutex::new(None),
            state: Mutex::new(ReadState {
                totals: Totals::default(),
                segments: Vec::new(),
                offsets: Offsets::default(),
                length: 0,
                is_ended: true,
                is_closed: false,
                index: Index::default(),
            }),
            is_dirty: AtomicBool::new(true),
            synced: AtomicU64::new(0),
            is_removed: AtomicBool::new(false),
            path,
            folder,
        };
        // An interrupted attempt may have left segments without a header.
        let next = opening::next_number(&log.path).map_err(|error| log.failed("create", &log.path, error))?;
        let writer = log.begin_segment(next)?;
        *log.writer() = Some(writer);
        Ok(log)
    }

    fn failed(&self, action: &str, path: &Path, error: io::Error) -> StoreError {
        if error.kind() == io::ErrorKind::InvalidData {
            return StoreError::damaged(self.id, error);
        }
        StoreError::failed(
            format!("{action} the log of kernel {} in {}", self.id, path.display()),
            error,
        )
    }

    /// Locks the writer, even after a panic, which cannot leave part of a frame.
    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, ReadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel's id.
    pub(super) fn id(&self) -> KernelId {
        self.id
    }

    fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Acquire)
    }

    /// Stores the owner, unless there is one.
    pub(super) fn set_owner(&self, owner: &str) -> Result<(), StoreError> {
        if self.owner.get().is_none() {
            self.folder
                .set_owner(self.id, owner)
                .map_err(|error| self.failed("write the owner of", &self.path, error))?;
            self.owner.get_or_init(|| owner.to_owned());
        }
        Ok(())
    }

    /// Information about the log.
    pub(super) fn info(&self) -> LogInfo {
        LogInfo {
            owner: self.owner.get().cloned(),
            ..info(self.id, self.epoch, self.created, &self.state().totals)
        }
    }
}

fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// Information about a log with these totals.
pub(super) fn info(id: KernelId, epoch: Epoch, created: i64, totals: &Totals) -> LogInfo {
    let created = time(created);
    LogInfo {
        created,
        updated: if totals.last > 0 { time(totals.updated) } else { created },
        first: totals.first(),
        last: Seq(totals.last),
        bytes: totals.bytes.saturating_sub(totals.kept_from_bytes),
        ..LogInfo::new(id, epoch)
    }
}

impl StoredLog for Handle {
    fn appends_fast(&self) -> bool {
        true
    }

    fn check_room(&self) -> Result<(), StoreError> {
        self.folder.expect_open()?;
        self.folder.look_for_room()
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let totals = self.state().totals;
        let last = Seq(totals.last_number());
        Ok((last > Seq::START).then(|| (totals.first(), last)))
    }

    fn bytes(&self) -> u64 {
        let totals = self.state().totals;
        totals.bytes.saturating_sub(totals.kept_from_bytes)
    }

    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError> {
        self.append_entries(Some(block), index)
    }

    fn skip(&self, last: Seq) {
        self.mark_skipped(last);
    }

    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError> {
        self.append_entries(None, index)
    }

    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.retry("read the index of", || {
            let files = {
                let state = self.state();
                if let Some(value) = state.index.recent(key) {
                    return Ok(value);
                }
                state.index.files.clone()
            };
            files.get(key)
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
        self.retry("read the index of", || {
            let (recent, files) = {
                let state = self.state();
                (state.index.recent_range(start, end), state.index.files.clone())
            };
            files.scan(recent, (start, end), limit, newest_first)
        })
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        self.retry("read", || self.read_blocks(after, max_bytes))
    }

    fn largest_block(&self) -> usize {
        self.state().totals.largest as usize
    }

    fn next_block_bytes(&self, after: Seq) -> Result<usize, StoreError> {
        self.retry("read", || self.size_after(after))
    }

    fn can_drop(&self, acknowledged: Seq) -> bool {
        self.has_acknowledged_segment(acknowledged)
    }

    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError> {
        let head = self.retry("trim", || self.first_to_keep(retention))?;
        let Some(head) = head else {
            let totals = self.state().totals;
            return Ok(if totals.last > 0 { totals.first() } else { Seq::START });
        };
        if head.first > self.state().totals.first().0 {
            self.trim_to(&head)?;
        }
        Ok(self.state().totals.first())
    }
}
