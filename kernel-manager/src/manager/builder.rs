use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use kernel_log::{LogOptions, LogStore, Logs, MemoryStore, StoreError};
use kernel_provider::{KernelProvider, ProviderError};

use super::{Manager, ManagerOptions};

/// Why a [`Manager`] was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A provider cannot be opened.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The logs cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Opening<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// Sets up a [`Manager`]: its providers, where it keeps logs, and its options.
///
/// Without a store, logs are kept in memory and end with the process.
///
/// The façade crate `kernelmux` adds methods for the providers of its features, such as `local(folder)`.
#[must_use]
pub struct ManagerBuilder {
    providers: Vec<Opening<Arc<dyn KernelProvider>, ProviderError>>,
    store: Option<Opening<Arc<dyn LogStore>, StoreError>>,
    log_options: LogOptions,
    options: ManagerOptions,
}

impl ManagerBuilder {
    pub(super) fn new() -> Self {
        Self {
            providers: Vec::new(),
            store: None,
            log_options: LogOptions::default(),
            options: ManagerOptions::default(),
        }
    }

    /// Adds a provider. The first one is the default.
    pub fn provider(self, provider: impl KernelProvider) -> Self {
        self.provider_opened_by(async { Ok(provider) })
    }

    /// Adds a provider that [`open`](Self::open) opens by awaiting `opening`.
    pub fn provider_opened_by<P: KernelProvider>(
        mut self,
        opening: impl Future<Output = Result<P, ProviderError>> + Send + 'static,
    ) -> Self {
        self.providers.push(Box::pin(async {
            let provider: Arc<dyn KernelProvider> = Arc::new(opening.await?);
            Ok(provider)
        }));
        self
    }

    /// Keeps logs in this store.
    pub fn store(mut self, store: Arc<dyn LogStore>) -> Self {
        self.store = Some(Box::pin(async { Ok(store) }));
        self
    }

    /// Keeps logs in this folder, which is created if it does not exist. Only one process at a time can use it.
    #[cfg(feature = "disk")]
    pub fn on_disk(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
        let folder = folder.into();
        self.store = Some(Box::pin(async move {
            let opening = tokio::task::spawn_blocking(move || kernel_log::DiskStore::open(&folder));
            let store = opening
                .await
                .map_err(|error| StoreError::failed("open the logs", error))??;
            let store: Arc<dyn LogStore> = Arc::new(store);
            Ok(store)
        }));
        self
    }

    /// Sets the sizes and retention of logs.
    pub fn log_options(mut self, options: LogOptions) -> Self {
        self.log_options = options;
        self
    }

    /// Sets the manager's options.
    pub fn options(mut self, options: ManagerOptions) -> Self {
        self.options = options;
        self
    }

    /// Opens the store and the providers, and attaches to the kernels that they run already, as
    /// [`Manager::restore`] does.
    ///
    /// # Errors
    /// [`OpenError`] for the first store or provider that cannot be opened.
    pub async fn open(self) -> Result<Manager, OpenError> {
        let store = match self.store {
            Some(opening) => opening.await?,
            None => Arc::new(MemoryStore::new()),
        };
        let mut providers = Vec::new();
        for opening in self.providers {
            providers.push(opening.await?);
        }
        let manager = Manager::new(providers, Logs::new(store, self.log_options)?, self.options);
        manager.restore().await;
        Ok(manager)
    }
}

impl fmt::Debug for ManagerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerBuilder")
            .field("providers", &self.providers.len())
            .field("log_options", &self.log_options)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
