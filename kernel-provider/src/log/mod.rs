//! The log of a kernel: every message of both directions, in order, from which any number of clients read.
//!
//! Whoever [appends](Log::append) never waits for whoever reads. Appended entries are handed to a writer thread, which
//! stores them and then wakes the readers: what a client was sent is in the store. While the writer is busy entries
//! gather, and are stored in one go; so a flood is stored in few large blocks, and a single message at once.
//!
//! A [`Reader`] is a position, not a queue. The newest entries are read from memory, older ones from the store; a
//! reader that stands still costs nothing.
//!
//! ```
//! use std::sync::Arc;
//! use bytes::Bytes;
//! use jupyter_protocol::{Channel, WireMessage};
//! use kernel_provider::KernelId;
//! use kernel_provider::log::{LogOptions, Logs, MemoryStore, NewEntry, Origin, Seq};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default())?;
//! let log = logs.open(KernelId::random()).await?;
//! let header = Bytes::from_static(br#"{"msg_id":"1","msg_type":"status"}"#);
//! let empty = || Bytes::from_static(b"{}");
//! let message = WireMessage::from_parts([header, empty(), empty(), empty()], []);
//! log.append([NewEntry { origin: Origin::Kernel, channel: Channel::Iopub, session: "", message: &message }]);
//!
//! let mut reader = log.reader(Seq::START);
//! let entries: Vec<_> = reader.next().await?.expect("the log is open").entries().collect();
//! assert_eq!(entries[0].seq(), Seq(1));
//! assert_eq!(entries[0].message().header_ref()?.msg_type, "status");
//! # Ok(())
//! # }
//! ```

mod block;
mod cursor;
mod entry;
mod reader;
mod store;
mod waiting;
mod writer;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, watch};

pub use block::Block;
pub use cursor::{Cursor, Epoch, NoCursor, Seq};
pub use entry::{Entry, NewEntry, Origin};
pub use reader::{ReadError, Reader};
#[cfg(feature = "fjall")]
pub use store::FjallStore;
pub use store::{LogInfo, LogStore, MemoryStore, StoreError, StoredLog};

use crate::KernelId;
use waiting::Waiting;
use writer::Writer;

/// How much of each log is kept where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogOptions {
    /// How many bytes of a log's newest entries stay in memory.
    pub memory_bytes: usize,
    /// How many appended bytes may wait for the store. Beyond that [`Log::room`] waits.
    pub waiting_bytes: usize,
    /// How many bytes of a log the store keeps; the oldest entries are dropped first.
    pub stored_bytes: u64,
}

impl Default for LogOptions {
    /// 1 MiB in memory, 64 MiB waiting, 1 GiB stored.
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 20,
            waiting_bytes: 64 << 20,
            stored_bytes: 1 << 30,
        }
    }
}

/// All logs of a store, and the thread that writes to it.
pub struct Logs {
    store: Arc<dyn LogStore>,
    writer: Writer,
    options: LogOptions,
}

impl Logs {
    /// Logs kept in `store`, with a writer thread of their own.
    ///
    /// # Errors
    /// [`StoreError::Failed`] where no thread can be started.
    pub fn new(store: Arc<dyn LogStore>, options: LogOptions) -> Result<Self, StoreError> {
        Ok(Self {
            store,
            writer: Writer::start().map_err(|error| StoreError::failed("start the thread that writes logs", error))?,
            options,
        })
    }

    /// Opens the kernel's log, or makes an empty one. Open it once at a time: two would give the same numbers.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot.
    pub async fn open(&self, id: KernelId) -> Result<Log, StoreError> {
        let store = self.store.clone();
        let (stored, bounds) = blocking(move || {
            let stored = store.open(id)?;
            let bounds = stored.bounds()?;
            Ok((stored, bounds))
        })
        .await?;
        let last = bounds.map_or(Seq::START, |(_, last)| last);
        Ok(Log {
            shared: Arc::new(Shared {
                id,
                epoch: stored.epoch(),
                stored,
                options: self.options.clone(),
                writer: self.writer.queue(),
                state: Mutex::new(State {
                    waiting: Waiting::after(last),
                    writing_bytes: 0,
                    with_writer: false,
                    recent: VecDeque::new(),
                    recent_bytes: 0,
                    stored_since_trim: 0,
                    store_failed: false,
                }),
                head: watch::Sender::new(Head {
                    seq: last,
                    closed: false,
                }),
                room: Notify::new(),
            }),
        })
    }

    /// Waits until all that was appended is stored and the store is let go of. Logs that are still open keep it.
    pub async fn shutdown(self) {
        let Self { store, writer, .. } = self;
        drop(store);
        // Where a log is still open its handle keeps the thread; it then ends with the last of them.
        let _ = tokio::task::spawn_blocking(move || writer.finish()).await;
    }

    /// The logs that the store keeps, of kernels that run and of kernels that are gone.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot say.
    pub async fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        let store = self.store.clone();
        blocking(move || store.list()).await
    }

    /// Drops the kernel's log from the store.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot.
    pub async fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        let store = self.store.clone();
        blocking(move || store.remove(id)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::failed("wait for the store", error)),
    }
}

/// One kernel's log, open for appending and reading. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

/// How far readers may read.
#[derive(Clone, Copy, Debug)]
struct Head {
    seq: Seq,
    closed: bool,
}

struct Shared {
    id: KernelId,
    epoch: Epoch,
    stored: Box<dyn StoredLog>,
    options: LogOptions,
    writer: writer::Queue,
    state: Mutex<State>,
    head: watch::Sender<Head>,
    room: Notify,
}

struct State {
    waiting: Waiting,
    /// What the writer has taken and not yet stored.
    writing_bytes: usize,
    /// Whether the log is in the writer's queue or hands.
    with_writer: bool,
    /// The newest blocks, all of them stored.
    recent: VecDeque<Block>,
    recent_bytes: usize,
    stored_since_trim: u64,
    /// Whether the last append to the store failed.
    store_failed: bool,
}

impl Shared {
    /// A panic elsewhere while the lock was held leaves whole entries, so the state is good.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Whose log it is.
    #[must_use]
    pub fn kernel_id(&self) -> KernelId {
        self.shared.id
    }

    /// The log's identity.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// The last entry that readers can read.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.shared.head.borrow().seq
    }

    /// Appends entries, in order, at the time now. Never waits. Returns the last one's number.
    ///
    /// Ask for [`room`](Self::room) first where there may be many: what waits for the store is in memory.
    pub fn append<'a>(&self, entries: impl IntoIterator<Item = NewEntry<'a>>) -> Seq {
        self.append_at(Utc::now(), entries)
    }

    /// The same at a given time.
    pub fn append_at<'a>(&self, time: DateTime<Utc>, entries: impl IntoIterator<Item = NewEntry<'a>>) -> Seq {
        let mut state = self.shared.state();
        let state = &mut *state;
        for entry in entries {
            state.waiting.push(&entry, time);
        }
        if state.waiting.bytes() > 0 && !state.with_writer {
            state.with_writer = true;
            self.shared.writer.push(self.shared.clone());
        }
        state.waiting.last()
    }

    /// Waits until what waits for the store is below its bound. A slow disk then slows the kernel, not the memory.
    pub async fn room(&self) {
        loop {
            let freed = self.shared.room.notified();
            {
                let state = self.shared.state();
                if state.waiting.bytes() + state.writing_bytes < self.shared.options.waiting_bytes {
                    return;
                }
            }
            freed.await;
        }
    }

    /// A reader of the entries after `after`.
    #[must_use]
    pub fn reader(&self, after: Seq) -> Reader {
        Reader::new(self.shared.clone(), after)
    }

    /// Says that nothing will be appended any more, so that readers end at the last entry.
    pub fn close(&self) {
        self.shared.head.send_modify(|head| head.closed = true);
    }

    /// Waits until all that is appended is stored.
    pub async fn flushed(&self) {
        let target = self.shared.state().waiting.last();
        let mut head = self.shared.head.subscribe();
        // The sender is in `shared`, which is held here, so waiting cannot fail.
        let _ = head.wait_for(|head| head.seq >= target).await;
    }
}
