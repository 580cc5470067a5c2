use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::shared::{Shared, StoredWithBounds};
use super::writer::Writer;
use super::{Log, LogInfo, LogOptions, LogStore, StoreError, blocking};
use crate::KernelId;

/// Why a log was not dropped.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// It is open for appending.
    #[error("the log of kernel {0} is being written; end the kernel first")]
    Open(KernelId),
    /// The store cannot.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All logs of a store, and the thread that writes to it.
pub struct Logs {
    store: Arc<dyn LogStore>,
    writer: Writer,
    options: LogOptions,
    /// Those of which there are handles. One for a log at the most, so that all see the same.
    handles: Mutex<HashMap<KernelId, Weak<Shared>>>,
    /// Held while a log is opened or removed, so that neither sees half of the other.
    opening: tokio::sync::Mutex<()>,
}

impl Logs {
    /// Logs kept in `store`, with a writer thread of their own.
    ///
    /// # Errors
    /// [`StoreError::Failed`] where no thread can be started.
    pub fn new(store: Arc<dyn LogStore>, options: LogOptions) -> Result<Self, StoreError> {
        let writer = Writer::start(store.clone(), options.durability)
            .map_err(|error| StoreError::failed("start the threads that write logs", error))?;
        Ok(Self::with_writer(store, options, writer))
    }

    /// Logs without a writer thread: what is appended is stored, and readers told of it, as the stepper is moved. For
    /// simulations, in which nothing is to depend on how fast threads are.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn stepped(store: Arc<dyn LogStore>, options: LogOptions) -> (Self, super::Stepper) {
        let (writer, rounds) = Writer::by_hand(store.clone(), options.durability);
        (Self::with_writer(store, options, writer), super::Stepper::new(rounds))
    }

    fn with_writer(store: Arc<dyn LogStore>, options: LogOptions, writer: Writer) -> Self {
        Self {
            store,
            writer,
            options,
            handles: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
        }
    }

    /// Whether other processes may write logs of the store too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    /// For how long entries are kept; `None` where their age does not matter.
    pub(crate) fn stored_age(&self) -> Option<Duration> {
        self.options.stored_age
    }

    /// Opens the kernel's log for appending, or makes an empty one. Where it is open already, this is another handle.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot.
    pub async fn open(&self, id: KernelId) -> Result<Log, StoreError> {
        let _opening = self.opening.lock().await;
        if let Some(log) = self.handle(id) {
            log.shared.set_closed(false);
            return Ok(log);
        }
        let store = self.store.clone();
        let stored = blocking(store.blocks(), move || StoredWithBounds::new(store.open(id)?)).await?;
        Ok(self.register(id, stored, false))
    }

    /// The kernel's log where there is one; `None` where not. Where the kernel is gone, readers end at the last entry.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot say.
    pub async fn find(&self, id: KernelId) -> Result<Option<Log>, StoreError> {
        let _opening = self.opening.lock().await;
        if let Some(log) = self.handle(id) {
            return Ok(Some(log));
        }
        let store = self.store.clone();
        let found = blocking(store.blocks(), move || {
            store.get(id)?.map(StoredWithBounds::new).transpose()
        })
        .await?;
        Ok(found.map(|stored| self.register(id, stored, true)))
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<KernelId, Weak<Shared>>> {
        // A panic elsewhere while the lock was held leaves a whole map.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, id: KernelId) -> Option<Log> {
        let shared = self.handles().get(&id)?.upgrade()?;
        Some(Log { shared })
    }

    fn register(&self, id: KernelId, stored: StoredWithBounds, closed: bool) -> Log {
        let options = self.options.clone();
        let shared = Arc::new(Shared::new(id, stored, options, self.writer.queue(), closed));
        let mut handles = self.handles();
        handles.retain(|_, handle| handle.strong_count() > 0);
        handles.insert(id, Arc::downgrade(&shared));
        Log { shared }
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
        blocking(store.blocks(), move || store.list()).await
    }

    /// Drops what need not be kept any more of the logs, those of kernels that are gone included. A log that is written
    /// is trimmed as it grows; what grows old in one that is quiet is dropped by this. Those that cannot be trimmed are
    /// told in the process's log.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot say which logs there are.
    pub async fn trim(&self) -> Result<(), StoreError> {
        let retention = self.options.retention();
        for info in self.list().await? {
            let _opening = self.opening.lock().await;
            let trimmed = if let Some(log) = self.handle(info.id) {
                blocking(log.shared.stored.blocks(), move || log.shared.trim()).await
            } else {
                let (store, retention) = (self.store.clone(), retention.clone());
                blocking(store.blocks(), move || match store.get(info.id)? {
                    Some(stored) => stored.trim(&retention).map(drop),
                    None => Ok(()),
                })
                .await
            };
            if let Err(error) = trimmed {
                tracing::error!(kernel_id = %info.id, %error, "the log cannot be trimmed");
            }
        }
        Ok(())
    }

    /// Drops the kernel's log from the store. Dropping one that is not there is no error. Who reads it still is told
    /// that entries are missing.
    ///
    /// # Errors
    /// [`RemoveError::Open`] where the log is open for appending, [`RemoveError::Store`] where the store cannot.
    pub async fn remove(&self, id: KernelId) -> Result<(), RemoveError> {
        let _opening = self.opening.lock().await;
        {
            let mut handles = self.handles();
            if let Some(shared) = handles.get(&id).and_then(Weak::upgrade)
                && !shared.is_closed()
            {
                return Err(RemoveError::Open(id));
            }
            handles.remove(&id);
        }
        let store = self.store.clone();
        Ok(blocking(store.blocks(), move || store.remove(id)).await?)
    }
}
