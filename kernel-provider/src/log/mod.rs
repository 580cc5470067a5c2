//! The log of a kernel: every message of both directions, in order, from which any number of clients read.
//!
//! Whoever [appends](Log::append) never waits for whoever reads. Appended entries are handed to a writer thread, which
//! stores them and then wakes the readers: what a client was sent is in the store. While the writer is busy entries
//! gather, and are stored in one go; so a flood is stored in few large blocks, and a single message at once.
//!
//! A [`Reader`] is a position, not a queue. The newest entries are read from memory, older ones from the store; a
//! reader that stands still costs nothing.
//!
//! Beside its entries a log has an index: small records by key, which are stored with the block that they came with, so
//! that after a crash both are there or neither.
//!
//! The oldest blocks are dropped by their bytes and age ([`LogOptions`]). Whoever reads them still is told
//! ([`ReadError::Gap`]), and whoever keeps records of them follows [`Log::earliest_changes`].
//!
//! A store that refuses entries stops nothing: they go on from memory, as far as that reaches. Where they are missing
//! later, readers are told; and once the store takes entries again, an entry says which it had refused
//! ([`Log::is_recorded`]). Their numbers are never given to others.
//!
//! Where logs are kept is a [`LogStore`]: [`MemoryStore`], [`FjallStore`] on disk, and with the feature `nats`
//! `NatsStore`, which several gateways can share. What every store must do is a suite of tests, the module
//! `conformance` behind the feature of that name.
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
#[cfg(feature = "testing")]
pub mod conformance;
mod cursor;
mod entry;
mod handle;
mod index;
mod large_blocks;
mod logs;
mod options;
mod reader;
mod shared;
#[cfg(feature = "testing")]
mod stepper;
mod store;
mod sync;
mod unrecorded;
mod waiting;
mod writer;

pub use block::Block;
pub use cursor::{Cursor, Epoch, NoCursor, Seq};
pub use entry::{Entry, NewEntry, Origin};
pub use handle::Log;
pub use index::IndexUpdate;
pub use logs::{Logs, RemoveError};
pub use options::{Durability, LogOptions};
pub use reader::{ReadError, Reader};
#[cfg(feature = "testing")]
pub use stepper::Stepper;
#[cfg(feature = "fjall")]
pub use store::FjallStore;
pub use store::{LogInfo, LogStore, MemoryStore, Retention, StoreError, StoredLog};
#[cfg(feature = "nats")]
pub use store::{NatsOptions, NatsStore};

/// Does what may take long where it holds up nobody; at once where it `blocks` nothing.
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
