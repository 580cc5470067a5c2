use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jupyter_protocol::KernelId;

use super::counters::LogCounters;
use super::large_blocks::ReadMemory;
use super::open_log::{OpenLog, StoredWithBounds};
use super::quotas::{self, Quota, Quotas};
use super::writer::Writer;
use super::{Durability, Log, LogInfo, LogOptions, LogStore, StoreError, blocking};

/// Why a log was not removed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// It is open for appending.
    #[error("the log of kernel {0} is being written; end the kernel first")]
    Open(KernelId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The logs of a store and the thread that writes them.
pub struct Logs {
    store: Arc<dyn LogStore>,
    writer: Writer,
    read_memory: ReadMemory,
    quotas: Option<Arc<Quotas>>,
    options: LogOptions,
    /// Open logs. Each is open at most once, so that all handles share it.
    handles: Mutex<HashMap<KernelId, Weak<OpenLog>>>,
    /// Serializes opening and removing logs.
    opening: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Logs {
    /// Opens the logs in `store` and starts their writer thread.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the thread cannot be started, or if the options have
    /// [limits for many logs](LogOptions::total_bytes) and other processes may write to the store.
    pub fn new(store: Arc<dyn LogStore>, options: LogOptions) -> Result<Self, StoreError> {
        if store.is_shared() && Quotas::new(&options).is_some() {
            return Err(StoreError::failed(
                "limit the bytes of all logs",
                "other processes may write to the same store, and their logs must not be dropped",
            ));
        }
        let writer = Writer::start(store.clone(), &options)
            .map_err(|error| StoreError::failed("start the threads that write logs", error))?;
        Ok(Self::with_writer(store, options, writer))
    }

    /// Opens logs without a writer thread, for deterministic simulations. The stepper stores and publishes instead.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn stepped(store: Arc<dyn LogStore>, options: LogOptions) -> (Self, super::Stepper) {
        let (writer, rounds) = Writer::without_thread(store.clone(), &options);
        (Self::with_writer(store, options, writer), super::Stepper::new(rounds))
    }

    fn with_writer(store: Arc<dyn LogStore>, options: LogOptions, writer: Writer) -> Self {
        Self {
            store,
            writer,
            read_memory: ReadMemory::new(options.reading_bytes),
            quotas: Quotas::new(&options).map(Arc::new),
            options,
            handles: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
        }
    }

    /// Whether other processes may write to the store, too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    /// Maximum age of entries; `None` if unlimited.
    #[must_use]
    pub fn stored_age(&self) -> Option<Duration> {
        self.options.stored_age
    }

    /// What the store has accepted and refused since these logs were opened.
    #[must_use]
    pub fn counters(&self) -> LogCounters {
        self.writer.queue().counters.read()
    }

    /// Bytes of all logs that wait to be stored.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.writer.queue().waiting_bytes()
    }

    /// Opens the kernel's log for appending, and creates it if necessary. For an open log, returns another handle.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    pub async fn open(&self, id: KernelId) -> Result<Log, StoreError> {
        self.open_for(id, None).await
    }

    /// As [`open`](Self::open). The log counts for this owner's [quota](LogOptions::owner_bytes), also after a restart,
    /// unless it already has another owner.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    pub async fn open_for(&self, id: KernelId, owner: Option<&str>) -> Result<Log, StoreError> {
        let _opening = self.opening.lock().await;
        if let Some(log) = self.handle(id) {
            log.shared.set_closed(false);
            return Ok(log);
        }
        let store = self.store.clone();
        let for_owner = owner.map(str::to_owned);
        let stored = blocking(store.blocks(), move || {
            StoredWithBounds::new(match for_owner {
                Some(owner) => store.open_for(id, &owner)?,
                None => store.open(id)?,
            })
        })
        .await?;
        if let Some(quotas) = &self.quotas {
            quotas.add(id, owner, stored.bytes());
        }
        Ok(self.register(id, stored, false))
    }

    /// The kernel's log; `None` if it has none. If the kernel is gone, readers end at the last entry.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
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

    fn handles(&self) -> MutexGuard<'_, HashMap<KernelId, Weak<OpenLog>>> {
        // A panic while the lock is held leaves a consistent map.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, id: KernelId) -> Option<Log> {
        let shared = self.handles().get(&id)?.upgrade()?;
        Some(Log { shared })
    }

    fn register(&self, id: KernelId, stored: StoredWithBounds, closed: bool) -> Log {
        let options = self.options.clone();
        let shared = Arc::new(OpenLog::new(
            id,
            stored,
            options,
            self.writer.queue(),
            self.quotas.clone(),
            self.read_memory.clone(),
            closed,
        ));
        let mut handles = self.handles();
        handles.retain(|_, handle| handle.strong_count() > 0);
        handles.insert(id, Arc::downgrade(&shared));
        Log { shared }
    }

    /// Stores what was appended so far, ends all logs for their readers, and closes the store, even if handles of logs
    /// are still in use. With [`WhenFull::Wait`](super::WhenFull::Wait), it waits up to [`LogOptions::close_timeout`]
    /// for a store that refuses entries. Later calls to the store fail with [`StoreError::Closed`].
    ///
    /// # Errors
    /// [`StoreError`] if the store was not closed cleanly; it is closed nevertheless.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.writer.close_within(self.options.close_timeout);
        let _opening = self.opening.lock().await;
        let open: Vec<_> = self.handles().values().filter_map(Weak::upgrade).collect();
        for shared in open {
            shared.set_closed(true);
            Log { shared }.flushed().await;
        }
        let (store, durability) = (self.store.clone(), self.options.durability);
        blocking(store.blocks(), move || {
            let synced = match durability {
                Durability::Batched => store.sync(),
                Durability::Process | Durability::Always => Ok(()),
            };
            store.close()?;
            match synced {
                // The store was closed before.
                Err(StoreError::Closed { .. }) => Ok(()),
                synced => synced,
            }
        })
        .await
    }

    /// Lists the logs of running and past kernels.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    pub async fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        let store = self.store.clone();
        blocking(store.blocks(), move || store.list()).await
    }

    /// Information about the log of a running or past kernel; `None` if it has none.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    pub async fn info(&self, id: KernelId) -> Result<Option<LogInfo>, StoreError> {
        let store = self.store.clone();
        blocking(store.blocks(), move || store.info(id)).await
    }

    /// Applies retention to all logs. Active logs are also trimmed as they grow, so this call matters for quiet logs
    /// and those of past kernels. A log that cannot be trimmed is reported with `tracing` and skipped.
    ///
    /// # Errors
    /// [`StoreError`] if the logs cannot be listed.
    pub async fn trim(&self) -> Result<(), StoreError> {
        let retention = self.options.retention();
        for info in self.list().await? {
            let _opening = self.opening.lock().await;
            let trimmed = if let Some(log) = self.handle(info.id) {
                blocking(log.shared.stored.blocks(), move || log.shared.trim()).await
            } else {
                let (store, retention) = (self.store.clone(), retention.clone());
                let quotas = self.quotas.clone();
                blocking(store.blocks(), move || {
                    let Some(stored) = store.get(info.id)? else {
                        return Ok(());
                    };
                    stored.trim(&retention)?;
                    if let Some(quotas) = quotas {
                        quotas.was_trimmed(info.id, stored.bytes());
                    }
                    Ok(())
                })
                .await
            };
            if let Err(error) = trimmed {
                tracing::error!(kernel_id = %info.id, %error, "the log cannot be trimmed");
            }
        }
        Ok(())
    }

    /// Removes the kernel's log from the store. Removing a missing log succeeds. Readers that are still open get a gap.
    ///
    /// # Errors
    /// [`RemoveError::Open`] if the log is open for appending, [`RemoveError::Store`] if the store fails.
    pub async fn remove(&self, id: KernelId) -> Result<(), RemoveError> {
        let _opening = self.opening.lock().await;
        {
            let mut handles = self.handles();
            if let Some(shared) = handles.get(&id).and_then(Weak::upgrade)
                && !shared.is_closed()
            {
                return Err(RemoveError::Open(id));
            }
            if let Some(shared) = handles.remove(&id).and_then(|shared| shared.upgrade()) {
                shared.state().is_removed = true;
            }
        }
        let store = self.store.clone();
        blocking(store.blocks(), move || store.remove(id)).await?;
        if let Some(quotas) = &self.quotas {
            quotas.remove(id);
        }
        Ok(())
    }

    /// Whether there are [limits for many logs](LogOptions::total_bytes).
    #[must_use]
    pub fn has_quotas(&self) -> bool {
        self.quotas.is_some()
    }

    /// Waits until logs exceed a [quota](LogOptions::total_bytes). Never returns if there is no quota. Logs from before
    /// the store was opened do not count until [`apply_quotas`](Self::apply_quotas) is called.
    pub fn over_quota(&self) -> impl Future<Output = ()> + Send + 'static {
        let quotas = self.quotas.clone();
        async move {
            match quotas {
                Some(quotas) => quotas.exceeded().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Frees space until all [quotas](LogOptions::total_bytes) are met, first those of owners and then that of all
    /// logs. Returns whether the quotas are met.
    ///
    /// For each quota, this removes logs that are not open for appending, the least recently written first. It keeps
    /// those for which `may_run` is true, because their kernel may still run. If that is not enough, it trims the
    /// largest open logs, but never their newest block.
    ///
    /// `kernel_manager::Manager` calls this. Other programs call it once all logs of running kernels are open, and
    /// whenever [`over_quota`](Self::over_quota) returns:
    ///
    /// ```no_run
    /// # async fn example(logs: kernel_log::Logs) -> Result<(), kernel_log::StoreError> {
    /// while logs.apply_quotas(|_| false).await? {
    ///     logs.over_quota().await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`StoreError`] if the logs cannot be listed. A log that cannot be removed or trimmed is reported with `tracing` and
    /// skipped.
    pub async fn apply_quotas(&self, may_run: impl Fn(KernelId) -> bool) -> Result<bool, StoreError> {
        let Some(quotas) = &self.quotas else {
            return Ok(true);
        };
        quotas
            .loaded
            .get_or_try_init(async || {
                // The lock prevents removals while the logs are listed.
                let _opening = self.opening.lock().await;
                quotas.load(&self.list().await?);
                Ok::<_, StoreError>(())
            })
            .await?;
        for quota in quotas.exceeded_now() {
            // Freeing space for an earlier quota may have been enough.
            if !quotas.is_exceeded(&quota) {
                continue;
            }
            self.remove_past(quotas, &quota, &may_run).await;
            self.trim_largest(quotas, &quota).await;
        }
        Ok(quotas.exceeded_now().is_empty())
    }

    /// Removes logs that are not open, until the [excess](Quotas::excess) is freed.
    async fn remove_past(&self, quotas: &Quotas, quota: &Quota, may_run: impl Fn(KernelId) -> bool) {
        for log in quotas.logs(quota) {
            if quotas.excess(quota) == 0 {
                return;
            }
            let is_open = self.handle(log.id).is_some_and(|log| !log.is_closed());
            if is_open || may_run(log.id) {
                continue;
            }
            match self.remove(log.id).await {
                Ok(()) => {
                    let owner = quota.owner.as_deref();
                    tracing::info!(kernel_id = %log.id, bytes = log.bytes, owner, "the log of a past kernel was dropped to meet a quota");
                }
                // It was opened after the check.
                Err(RemoveError::Open(_)) => {}
                Err(RemoveError::Store(error)) => {
                    tracing::error!(kernel_id = %log.id, %error, "a log cannot be dropped to meet a quota");
                }
            }
        }
    }

    /// Trims the largest open logs, until the [excess](Quotas::excess) is freed.
    async fn trim_largest(&self, quotas: &Quotas, quota: &Quota) {
        // Logs that were already trimmed.
        let mut trimmed = HashSet::new();
        loop {
            let excess = quotas.excess(quota);
            let open = quotas.logs(quota).into_iter().filter(|log| !trimmed.contains(&log.id));
            let open: Vec<_> = open
                .filter_map(|log| Some((self.handle(log.id)?.shared, log.bytes)))
                .collect();
            if excess == 0 || open.is_empty() {
                return;
            }
            let level = quotas::level(open.iter().map(|(_, bytes)| *bytes).collect(), excess);
            for (log, _) in open.into_iter().filter(|(_, bytes)| *bytes > level) {
                // Each is trimmed once, so that the loop ends even if logs grow.
                trimmed.insert(log.id);
                let id = log.id;
                if let Err(error) = blocking(log.stored.blocks(), move || log.trim_to(level)).await {
                    tracing::error!(kernel_id = %id, %error, "a log cannot be trimmed to meet a quota");
                }
            }
        }
    }
}
