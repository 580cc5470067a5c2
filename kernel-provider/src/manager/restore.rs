//! The kernels that run already when a manager begins.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::{Instrument, error, info, info_span, warn};

use super::{KernelEventKind, Manager, Shared};
use crate::log::StoreError;
use crate::provider::{AttachError, KernelHandle, KernelProvider, KernelRecord, Selector};

/// How many logs are opened and kernels connected to at a time.
const AT_A_TIME: usize = 32;

impl Manager {
    /// Finds the kernels that the providers run already, as after a restart of this process, and attaches to them, side
    /// by side. Returns how many there are. Those that cannot be attached to are told in the process's log. Those that
    /// take longer than [`restore_patience`](super::ManagerOptions::restore_patience), as pods whose image is still pulled,
    /// are attached to later, each as soon as it runs, and told as [`KernelEventKind::Attached`] as all are.
    ///
    /// # Errors
    /// [`StoreError`] where the logs cannot be opened.
    pub async fn restore(&self) -> Result<usize, StoreError> {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        // A message a kernel, no more.
        let (done, mut outcomes) = mpsc::unbounded_channel();
        for provider in &self.shared.providers {
            let records = match provider.list(&Selector::all()).await {
                Ok(records) => records,
                Err(error) => {
                    warn!(provider = provider.name(), %error, "the running kernels cannot be listed");
                    continue;
                }
            };
            for record in records {
                if self.shared.registry.knows(record.id) {
                    continue;
                }
                let span = info_span!("restore", kernel_id = %record.id);
                let (provider, places, done) = (provider.clone(), places.clone(), done.clone());
                let (shared, closing) = (Arc::downgrade(&self.shared), self.shared.closing.clone());
                let attaching = async move {
                    let attached = provider.attach(&record).await;
                    // It is never closed.
                    let _place = places.acquire().await;
                    let Some(shared) = shared.upgrade() else { return };
                    let outcome = shared.restored(&provider, &record, attached).await;
                    if let Err(mpsc::error::SendError(Err(error))) = done.send(outcome) {
                        error!(%error, "a kernel that runs is left alone");
                    }
                };
                let attaching = async move { closing.run_until_cancelled(attaching).await };
                self.shared.tasks.spawn(attaching.instrument(span));
            }
        }
        drop(done);
        let mut restored = 0;
        let attached = timeout(self.shared.options.restore_patience, async {
            while let Some(outcome) = outcomes.recv().await {
                restored += usize::from(outcome?);
            }
            Ok(())
        });
        match attached.await {
            Ok(all) => all?,
            Err(_) => info!("some kernels are still being started; they are attached to once they run"),
        }
        Ok(restored)
    }
}

impl Shared {
    /// Whether the kernel that was attached to is one of the manager's now.
    async fn restored(
        self: &Arc<Self>,
        provider: &Arc<dyn KernelProvider>,
        record: &KernelRecord,
        attached: Result<Arc<dyn KernelHandle>, AttachError>,
    ) -> Result<bool, StoreError> {
        let handle = match attached {
            Ok(handle) => handle,
            Err(error) => {
                warn!(%error, "a running kernel cannot be attached to");
                return Ok(false);
            }
        };
        let Ok(reserved) = self.registry.reserve_running(record.id, record.owner.as_deref()) else {
            return Ok(false);
        };
        let specs = provider.specs().borrow().clone();
        let spec = specs.by_name.get(&record.spec).cloned();
        let name = if Arc::ptr_eq(provider, &self.providers[0]) {
            record.spec.clone()
        } else {
            format!("{}/{}", provider.name(), record.spec)
        };
        let recorded = async {
            let log = self.logs.open(record.id).await?;
            self.kernel(name, spec, handle, log).await
        };
        let kernel = match recorded.await {
            Ok(kernel) => kernel,
            // Of this kernel alone: the others' logs are sound.
            Err(error @ StoreError::Damaged { .. }) => {
                error!(%error, "a running kernel is left alone, since its log is damaged; once that is removed, the kernel is attached to at the next start");
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if let Err(error) = kernel.reconnect().await {
            warn!(%error, "a running kernel cannot be connected to");
            return Ok(false);
        }
        self.watch(&kernel);
        reserved.fill(kernel);
        info!("kernel attached");
        self.events.tell(record.id, KernelEventKind::Attached);
        Ok(true)
    }
}
