#![doc = include_str!("../README.md")]
//! # How it works
//!
//! [Appending](Log::append) never waits for readers. A writer thread stores appended entries and then wakes the
//! readers, so readers receive only stored entries, except those that the store refused (see below). Entries that
//! arrive while the writer is busy are stored together: many messages become a few large blocks, and a single message
//! is stored at once.
//!
//! A [`Reader`] is a position, not a queue. It reads the newest entries from memory and older ones from the store; an
//! idle reader costs nothing.
//!
//! A log also has an index: small records by key. The store writes them atomically with the entries that they came
//! with.
//!
//! Retention drops the oldest blocks by size and age ([`LogOptions`]). Readers of dropped entries get a
//! [`ReadError::Gap`]. To remove the index records of dropped entries, follow [`Log::earliest_changes`].
//!
//! Logs can have quotas, in total and for each owner ([`LogOptions::total_bytes`], [`Logs::apply_quotas`]).
//!
//! A log can also be a spool: its reader [acknowledges](Log::acknowledge) the entries that it has stored elsewhere, which
//! are then dropped, and its writer [waits](Log::acknowledged_below) while too many are not acknowledged.
//!
//! If the store refuses entries, the log continues: readers receive these entries as long as they are in memory, and
//! later readers get a gap. Once the store accepts entries again, an entry reports the refused ones
//! ([`Log::is_recorded`]). Their numbers are not reused. With [`WhenFull::Wait`], refused entries are kept and stored
//! later instead, and [`Log::room`] waits while too many are kept.
//!
//! A [`LogStore`] is where logs are kept: [`MemoryStore`], [`DiskStore`] in files, or, with the feature `nats`,
//! `NatsStore`, which several gateways can share. The module `conformance`, behind the feature `testing`, is a test
//! suite that every store must pass.
//!
//! ```
//! use std::sync::Arc;
//! use bytes::Bytes;
//! use jupyter_protocol::{Channel, WireMessage};
//! use jupyter_protocol::KernelId;
//! use kernel_log::{LogOptions, Logs, MemoryStore, NewEntry, Origin, Seq};
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
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acknowledged;
mod block;
#[cfg(feature = "testing")]
pub mod conformance;
mod counters;
mod cursor;
mod entry;
mod execution_status;
mod execution_tracker;
mod handle;
mod index;
mod large_blocks;
mod lifecycle;
mod logs;
mod open_log;
mod options;
mod pending_blocks;
mod quotas;
mod reader;
#[cfg(feature = "testing")]
mod stepper;
mod store;
mod sync;
mod unrecorded;
mod writer;

pub use block::Block;
pub use counters::LogCounters;
pub use cursor::{Cursor, Epoch, InvalidCursor, Seq};
pub use entry::{Entry, NewEntry, Origin};
pub use execution_status::{ExecutionStatus, InvalidExecutionStatus};
pub use execution_tracker::{ExecutionEvent, ExecutionTracker};
pub use handle::{Log, Unstored};
pub use index::IndexUpdate;
pub use lifecycle::{LIFECYCLE, Lifecycle};
pub use logs::{Logs, RemoveError};
pub use options::{Durability, LogOptions, WhenFull};
pub use reader::{ReadError, Reader};
#[cfg(feature = "testing")]
pub use stepper::Stepper;
#[cfg(feature = "disk")]
pub use store::{DiskOptions, DiskStore};
pub use store::{LogInfo, LogStore, MemoryStore, Retention, StoreError, StoredLog};
#[cfg(feature = "nats")]
pub use store::{NatsOptions, NatsStore};

/// Runs `work` on a thread for blocking operations, or directly if it does not block.
async fn blocking<T: Send + 'static>(
    blocks: bool,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    if !blocks {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::failed("wait for the store", error)),
    }
}
