//! The traits of log stores, and the stores.

#[cfg(feature = "disk")]
mod disk;
mod memory;
#[cfg(feature = "nats")]
mod nats;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;

#[cfg(feature = "disk")]
pub use self::disk::{DiskOptions, DiskStore};
pub use self::memory::MemoryStore;
#[cfg(feature = "nats")]
pub use self::nats::{NatsOptions, NatsStore};
use super::{Block, Epoch, IndexUpdate, Seq};

/// Why a store operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The underlying disk or server failed.
    #[error("cannot {action}: {reason}")]
    Failed {
        /// The attempted action.
        action: String,
        /// The error.
        reason: String,
    },
    /// There is no room. Appends work again once there is.
    #[error("no room for the logs in {place}: {free} bytes are free and {needed} are needed; free some space")]
    Full {
        /// Location of the store.
        place: String,
        /// Free bytes.
        free: u64,
        /// Required bytes.
        needed: u64,
    },
    /// The store was [closed](LogStore::close).
    #[error("the logs in {place} were closed")]
    Closed {
        /// Location of the store.
        place: String,
    },
    /// The stored data is damaged.
    #[error("the log of kernel {id} is damaged: {reason}")]
    Damaged {
        /// The kernel whose log it is.
        id: KernelId,
        /// What is wrong.
        reason: String,
    },
}

impl StoreError {
    /// An `action` that failed with `error`.
    pub fn failed(action: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Failed {
            action: action.into(),
            reason: error.to_string(),
        }
    }

    /// A log that is damaged, as `error` shows.
    pub fn damaged(id: KernelId, error: impl std::fmt::Display) -> Self {
        Self::Damaged {
            id,
            reason: error.to_string(),
        }
    }
}

/// Stores logs. Calls may block: [`Logs`](crate::Logs) reads on blocking threads and appends on its writer thread, or
/// on the appending thread with [`Unstored::store_here`](crate::Unstored::store_here).
pub trait LogStore: Send + Sync + 'static {
    /// Whether calls may block the thread. If not, async code calls the store directly.
    fn blocks(&self) -> bool {
        true
    }

    /// Whether other processes may write to this store concurrently.
    fn is_shared(&self) -> bool {
        false
    }

    /// Opens the kernel's log, or creates an empty one with a new [`Epoch`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError>;

    /// As [`open`](Self::open), and stores the owner unless the log has one. The default ignores the owner.
    ///
    /// # Errors
    /// [`StoreError`].
    fn open_for(&self, id: KernelId, owner: &str) -> Result<Box<dyn StoredLog>, StoreError> {
        let _ = owner;
        self.open(id)
    }

    /// Opens the kernel's log if it exists.
    ///
    /// # Errors
    /// [`StoreError`].
    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError>;

    /// Lists the logs.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self) -> Result<Vec<LogInfo>, StoreError>;

    /// Information about one log; `None` if there is no such log. The default searches the [list](Self::list).
    ///
    /// # Errors
    /// [`StoreError`].
    fn info(&self, id: KernelId) -> Result<Option<LogInfo>, StoreError> {
        Ok(self.list()?.into_iter().find(|info| info.id == id))
    }

    /// Removes a log and frees its space. Removing a missing log succeeds.
    ///
    /// # Errors
    /// [`StoreError`].
    fn remove(&self, id: KernelId) -> Result<(), StoreError>;

    /// Makes everything appended so far survive a machine failure.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sync(&self) -> Result<(), StoreError>;

    /// Releases everything that the store holds, such as files, locks and connections, even if logs of it are open. Later
    /// calls fail with [`StoreError::Closed`]. Closing it again succeeds. The default does nothing.
    ///
    /// # Errors
    /// [`StoreError`] if it was not closed cleanly; it is closed nevertheless.
    fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Information about a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogInfo {
    /// The kernel's id.
    pub id: KernelId,
    /// The owner, if it is known.
    pub owner: Option<String>,
    /// The log's identity.
    pub epoch: Epoch,
    /// When it was created.
    pub created: DateTime<Utc>,
    /// When its last entry was appended, or when it was created if it has none.
    pub updated: DateTime<Utc>,
    /// The first entry that is kept, or the next one if none is.
    pub first: Seq,
    /// The last entry; [`Seq::START`] if there was none.
    pub last: Seq,
    /// Size of the kept entries in bytes.
    pub bytes: u64,
}

impl LogInfo {
    /// An empty log that is created now.
    #[must_use]
    pub fn new(id: KernelId, epoch: Epoch) -> Self {
        let now = Utc::now();
        Self {
            id,
            owner: None,
            epoch,
            created: now,
            updated: now,
            first: Seq::START.next(),
            last: Seq::START,
            bytes: 0,
        }
    }
}

/// One kernel's log in a store. Entries are appended and read in [`Block`]s.
pub trait StoredLog: Send + Sync + 'static {
    /// See [`LogStore::blocks`].
    fn blocks(&self) -> bool {
        true
    }

    /// Whether [`append`](Self::append) may be called by async code, because it usually takes microseconds. If not,
    /// [`Unstored::store_here`](crate::Unstored::store_here) leaves it to the writer thread, as for a store that is
    /// reached over a network.
    fn appends_fast(&self) -> bool {
        false
    }

    /// The log's identity.
    fn epoch(&self) -> Epoch;

    /// The first entry that is kept, and the last number that is in use, even if only for a [skipped](Self::skip)
    /// entry; `None` if no number is in use.
    ///
    /// # Errors
    /// [`StoreError`].
    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError>;

    /// Size of the kept entries in bytes.
    fn bytes(&self) -> u64;

    /// Appends a block and updates the index atomically. The block's entries have higher numbers than all earlier ones.
    /// When this returns, both survive the end of the process, unless the store is in memory. No key occurs twice in
    /// `index`.
    ///
    /// # Errors
    /// [`StoreError`], for example on a full disk. In this case, nothing was written.
    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError>;

    /// Records that readers have received the entries up to `last`, which the store refused. Their numbers must not be
    /// reused after the log is opened again. The default does nothing.
    fn skip(&self, last: Seq) {
        let _ = last;
    }

    /// Checks whether the store has room, as far as that is known without writing.
    ///
    /// # Errors
    /// [`StoreError::Full`] if it has none.
    fn check_room(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Updates the index atomically.
    ///
    /// # Errors
    /// [`StoreError`]. In this case, nothing was written.
    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError>;

    /// The index record of this key.
    ///
    /// # Errors
    /// [`StoreError`].
    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// At most `limit` index records with keys from the first bound (inclusive) to the second (exclusive), in key
    /// order, or in reverse with `newest_first`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn index_scan(
        &self,
        keys: (&[u8], &[u8]),
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Reads blocks after `after` in order: at least one if there is any. All blocks but the last have fewer than
    /// `max_bytes` bytes in total. The first block may start later than the next entry, if entries were dropped or
    /// could not be stored.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError>;

    /// Size of the largest block that the log had, in bytes; 0 if that is not known. This is called once, when the log
    /// is opened.
    fn largest_block(&self) -> usize {
        0
    }

    /// Size of the block that [`read`](Self::read) returns first, in bytes; 0 if there is none or the size is unknown.
    /// This is called for logs with large blocks, so that the reader can wait for memory.
    ///
    /// # Errors
    /// [`StoreError`].
    fn next_block_bytes(&self, after: Seq) -> Result<usize, StoreError> {
        let _ = after;
        Ok(0)
    }

    /// Whether [`trim`](Self::trim) would free space if the entries up to `acknowledged` are no longer needed. This is
    /// called with every [acknowledgement](crate::Log::acknowledge), so it must be cheap. With the default, `false`,
    /// acknowledged entries are dropped when the log is trimmed for another reason.
    fn can_drop(&self, acknowledged: Seq) -> bool {
        let _ = acknowledged;
        false
    }

    /// Drops the oldest blocks outside the retention, but never the newest block. Returns the first entry that is kept,
    /// or [`Seq::START`] if none is. The space is freed soon.
    ///
    /// # Errors
    /// [`StoreError`].
    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError>;
}

/// What to keep of a log. Anything outside one of the limits is dropped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Retention {
    /// Maximum size of the entries in bytes, approximately. The newest entries are kept.
    pub max_bytes: u64,
    /// The time from which entries are kept; `None` for no limit.
    pub oldest: Option<DateTime<Utc>>,
    /// The last entry that is no longer needed; [`Seq::START`] if all are needed.
    pub acknowledged: Seq,
}

impl Retention {
    /// Keeps this many bytes of any age.
    #[must_use]
    pub fn bytes(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            oldest: None,
            acknowledged: Seq::START,
        }
    }

    /// Also drops entries from before this time.
    #[must_use]
    pub fn since(self, oldest: DateTime<Utc>) -> Self {
        Self {
            oldest: Some(oldest),
            ..self
        }
    }

    /// Also drops entries up to this one.
    #[must_use]
    pub fn after(self, acknowledged: Seq) -> Self {
        Self { acknowledged, ..self }
    }
}
