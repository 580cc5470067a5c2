//! Where logs are kept: the trait that a store implements, and the stores.

#[cfg(feature = "fjall")]
mod fjall;
mod memory;

use chrono::{DateTime, Utc};

#[cfg(feature = "fjall")]
pub use self::fjall::FjallStore;
pub use self::memory::MemoryStore;
use super::{Block, Epoch, Seq};
use crate::KernelId;

/// A store cannot do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk, or what else is under the store, says no.
    #[error("cannot {action}: {reason}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// What came of it.
        reason: String,
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
    pub fn failed(action: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Failed {
            action,
            reason: error.to_string(),
        }
    }
}

/// Keeps logs. Calls may block: the log makes appends on a thread of its own and reads where blocking is allowed.
pub trait LogStore: Send + Sync + 'static {
    /// Opens the kernel's log, or makes an empty one with a fresh [`Epoch`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError>;

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
}

/// One kernel's log in a store. Entries are appended and read in [`Block`]s.
pub trait StoredLog: Send + Sync + 'static {
    /// The log's identity.
    fn epoch(&self) -> Epoch;

    /// The first entry that is kept and the last, or `None` where there is none yet.
    ///
    /// # Errors
    /// [`StoreError`].
    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError>;

    /// Appends a block whose first entry comes after the last one's. Once it returns, the entries survive the process.
    ///
    /// # Errors
    /// [`StoreError`], for instance where the disk is full; nothing of the block is kept then.
    fn append(&self, block: &Block) -> Result<(), StoreError>;

    /// Blocks after `seq`, in order, at least one if there is one, and no more than about `max_bytes` beyond that.
    /// Where a store could not append for a while, the first block's first entry is not the one after `seq`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError>;

    /// Forgets the oldest entries until no more than about `max_bytes` are kept.
    ///
    /// # Errors
    /// [`StoreError`].
    fn trim(&self, max_bytes: u64) -> Result<(), StoreError>;

    /// Makes what was appended survive the machine.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sync(&self) -> Result<(), StoreError>;
}
