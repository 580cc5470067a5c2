//! Where logs are kept: the trait that a store implements, and the stores.

#[cfg(feature = "fjall")]
mod fjall;
mod memory;
#[cfg(feature = "nats")]
mod nats;

use bytes::Bytes;
use chrono::{DateTime, Utc};

#[cfg(feature = "fjall")]
pub use self::fjall::FjallStore;
pub use self::memory::MemoryStore;
#[cfg(feature = "nats")]
pub use self::nats::{NatsOptions, NatsStore};
use super::{Block, Epoch, IndexUpdate, Seq};
use crate::KernelId;

/// A store cannot do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk, or what else is under the store, says no.
    #[error("cannot {action}: {reason}")]
    Failed {
        /// What was tried.
        action: String,
        /// What came of it.
        reason: String,
    },
    /// There is no room. Appends are taken again once there is.
    #[error("no room for the logs in {place}: {free} bytes are free and {needed} are needed; free some")]
    Full {
        /// Where the store is.
        place: String,
        /// How many bytes are free.
        free: u64,
        /// How many are needed.
        needed: u64,
    },
    /// The store failed and could not be opened again yet. That is tried with later appends.
    #[error("the logs in {place} cannot be opened again after an error")]
    NotOpen {
        /// Where the store is.
        place: String,
    },
    /// What the store holds is not what was written.
    #[error("the log of kernel {id} is damaged: {reason}")]
    Damaged {
        /// Whose log.
        id: KernelId,
        /// What is wrong with it.
        reason: String,
    },
}

impl StoreError {
    /// `action` was tried, and `error` came.
    pub fn failed(action: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Failed {
            action: action.into(),
            reason: error.to_string(),
        }
    }

    /// `error` shows that the kernel's log is not as it was written.
    pub fn damaged(id: KernelId, error: impl std::fmt::Display) -> Self {
        Self::Damaged {
            id,
            reason: error.to_string(),
        }
    }
}

/// Keeps logs. Calls may block: the log makes appends on a thread of its own and reads where blocking is allowed.
pub trait LogStore: Send + Sync + 'static {
    /// Whether calls may take long, so that they are made on threads of their own. They are, unless a store says that
    /// all that it does is done in no time.
    fn blocks(&self) -> bool {
        true
    }

    /// Whether other processes may write logs of this store at the same time. None do, unless a store says so.
    fn is_shared(&self) -> bool {
        false
    }

    /// Opens the kernel's log, or makes an empty one with a fresh [`Epoch`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError>;

    /// Opens the kernel's log where there is one; makes none.
    ///
    /// # Errors
    /// [`StoreError`].
    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError>;

    /// The logs that are kept.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self) -> Result<Vec<LogInfo>, StoreError>;

    /// Drops a log and gives its space back. Dropping one that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    fn remove(&self, id: KernelId) -> Result<(), StoreError>;

    /// Makes what was appended to any of the logs survive the machine.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sync(&self) -> Result<(), StoreError>;
}

/// What a store says of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogInfo {
    /// Whose log.
    pub id: KernelId,
    /// Its identity.
    pub epoch: Epoch,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// When its last entry was appended; when it was made, where it has none.
    pub updated: DateTime<Utc>,
    /// The first entry that is kept; the one to come where none is.
    pub first: Seq,
    /// The last entry; [`Seq::START`] where there was none.
    pub last: Seq,
    /// How many bytes of entries are kept.
    pub bytes: u64,
}

impl LogInfo {
    /// What is said of an empty log that was made now.
    #[must_use]
    pub fn new(id: KernelId, epoch: Epoch) -> Self {
        let now = Utc::now();
        Self {
            id,
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
    /// As [`LogStore::blocks`].
    fn blocks(&self) -> bool {
        true
    }

    /// The log's identity.
    fn epoch(&self) -> Epoch;

    /// The first entry that is kept and the last, or `None` where there is none yet.
    ///
    /// # Errors
    /// [`StoreError`].
    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError>;

    /// How many bytes of entries are kept.
    fn bytes(&self) -> u64;

    /// Appends a block whose first entry comes after the last one's, and makes changes to the index, in one piece. Once
    /// it returns, they survive the process. No key is in `index` twice.
    ///
    /// # Errors
    /// [`StoreError`], for instance where the disk is full; nothing of the block and of the changes is kept then.
    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError>;

    /// Whether the store takes entries now, as far as it can tell without writing.
    ///
    /// # Errors
    /// [`StoreError::Full`] where it has no room.
    fn check_room(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Makes changes to the index, in one piece.
    ///
    /// # Errors
    /// [`StoreError`]; none of them is made then.
    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError>;

    /// The index's record of this key.
    ///
    /// # Errors
    /// [`StoreError`].
    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The index's records with keys from the first bound and before the second, in the order of their keys or, with
    /// `newest_first`, against it; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn index_scan(
        &self,
        keys: (&[u8], &[u8]),
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Blocks after `seq`, in order, at least one if there is one, and no more than about `max_bytes` beyond that.
    /// Where a store could not append for a while, the first block's first entry is not the one after `seq`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError>;

    /// Forgets the oldest blocks that need not be kept, though never the newest one. Returns the first entry that is
    /// kept; [`Seq::START`] where none is. The space is given back soon.
    ///
    /// # Errors
    /// [`StoreError`].
    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError>;
}

/// What is to be kept of a log. What either of the two does not allow is dropped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Retention {
    /// About how many bytes of entries, the newest.
    pub max_bytes: u64,
    /// Entries from then on; `None` for however old ones.
    pub oldest: Option<DateTime<Utc>>,
}

impl Retention {
    /// So many bytes, however old.
    #[must_use]
    pub fn bytes(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            oldest: None,
        }
    }

    /// The same, of entries from then on.
    #[must_use]
    pub fn since(self, oldest: DateTime<Utc>) -> Self {
        Self {
            oldest: Some(oldest),
            ..self
        }
    }
}
