//! Two third-party providers: processes with a command prefix, and a wrapper around any provider.
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use kernel_provider::{
    AttachError, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, Progress, ProviderError,
    Selector, Specs,
};
use provider_local::LocalOptions;
use tokio::sync::watch;

/// Options of a provider whose kernels run at low priority, with the batch's name in the variable `BATCH`.
pub fn batch(state: &Path, batch: &str) -> LocalOptions {
    let batch = batch.to_owned();
    LocalOptions::new(state)
        .with_name("batch")
        .with_command_prefix(["nice", "-n", "10"])
        .with_adjust_command(move |kernel| {
            kernel.command.env("BATCH", &batch);
            Ok(())
        })
}

/// Wraps a provider and limits how many kernels each owner may run. Concurrent launches may exceed the limit.
pub struct Quota<P> {
    inner: P,
    per_owner: usize,
}

impl<P> Quota<P> {
    pub fn new(inner: P, per_owner: usize) -> Self {
        Self { inner, per_owner }
    }
}

#[async_trait]
impl<P: KernelProvider> KernelProvider for Quota<P> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.inner.specs()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        let running = self.inner.list(&Selector::default()).await?;
        let others = running
            .iter()
            .filter(|kernel| kernel.owner == request.owner && kernel.id != request.id);
        if request.owner.is_some() && others.count() >= self.per_owner {
            let reason = format!("an owner may run {} kernels", self.per_owner);
            return Err(LaunchError::NoRoom { reason });
        }
        self.inner.launch(request, progress).await
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        self.inner.list(selector).await
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        self.inner.attach(record).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
