//! The fake provider with changed connection information.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::ConnectionInfo;
use kernel_provider::fake::FakeProvider;
use kernel_provider::{
    AttachError, Exit, Interrupt, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, Phase,
    Progress, ProviderError, Selector, Specs,
};
use tokio::sync::watch;

type Rewire = Arc<dyn Fn(&mut ConnectionInfo) + Send + Sync>;

/// Applies a function to the connection information of each kernel of a fake provider.
pub(crate) struct RewiredProvider {
    fake: FakeProvider,
    rewire: Rewire,
}

impl RewiredProvider {
    pub(crate) fn new(fake: FakeProvider, rewire: impl Fn(&mut ConnectionInfo) + Send + Sync + 'static) -> Self {
        Self {
            fake,
            rewire: Arc::new(rewire),
        }
    }

    fn handle(&self, inner: Arc<dyn KernelHandle>) -> Arc<dyn KernelHandle> {
        Arc::new(Handle {
            inner,
            rewire: self.rewire.clone(),
        })
    }
}

struct Handle {
    inner: Arc<dyn KernelHandle>,
    rewire: Rewire,
}

#[async_trait]
impl KernelProvider for RewiredProvider {
    fn name(&self) -> &str {
        self.fake.name()
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.fake.specs()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        Ok(self.handle(self.fake.launch(request, progress).await?))
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        self.fake.list(selector).await
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        Ok(self.handle(self.fake.attach(record).await?))
    }
}

#[async_trait]
impl KernelHandle for Handle {
    fn record(&self) -> KernelRecord {
        self.inner.record()
    }

    async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        let mut info = self.inner.connection().await?;
        (self.rewire)(&mut info);
        Ok(info)
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.inner.phase()
    }

    async fn output(&self) -> Result<String, ProviderError> {
        self.inner.output().await
    }

    async fn interrupt(&self) -> Result<Interrupt, ProviderError> {
        self.inner.interrupt().await
    }

    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        self.inner.restart(grace, progress).await
    }

    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError> {
        self.inner.shutdown(grace).await
    }
}
