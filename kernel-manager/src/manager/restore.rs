//! Attaches to kernels that were running before the manager was created.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jupyter_protocol::Backoff;
use kernel_log::StoreError;
use kernel_provider::{AttachError, KernelHandle, KernelProvider, KernelRecord, Selector};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::{Manager, ManagerInner};
use crate::groups;
use crate::kernel::{Keeper as _, Kernel, KernelEventKind};
use crate::session::ExecutionState;

/// How many logs are opened concurrently.
const AT_A_TIME: usize = 32;
/// The pauses between attempts to attach to a kernel.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// Result of one attempt to attach.
enum Outcome {
    /// The manager has the kernel. Its sockets are connected next.
    Attached(Arc<Kernel>),
    /// The kernel is gone, already managed, or must be left alone.
    Over,
    /// The kernel seems to run but could not be reached.
    Unreached,
}

impl Manager {
    /// Attaches to all kernels that the providers already run, as after a restart of this process, and returns how many
    /// were attached to at the first attempt within [`restore_timeout`](super::ManagerOptions::restore_timeout). It
    /// attaches later to kernels that take longer, such as pods whose image is still being pulled. It retries a failed
    /// attempt, with a warning in the process's log, until it succeeds, the kernel is gone, or the kernel's log turns
    /// out to be damaged. Each attached kernel causes a [`KernelEventKind::Attached`].
    ///
    /// An attached kernel can be shut down and restarted. Its sockets are connected afterwards: a kernel that accepts
    /// no connection, such as a stopped process, counts as busy until it does, and does not delay the others.
    pub async fn restore(&self) -> usize {
        let permits = Arc::new(Semaphore::new(AT_A_TIME));
        // At most one message per kernel.
        let (done, mut outcomes) = mpsc::unbounded_channel();
        for provider in &self.inner.providers {
            let records = match provider.list(&Selector::all()).await {
                Ok(records) => records,
                Err(error) => {
                    warn!(provider = provider.name(), %error, "the running kernels cannot be listed");
                    self.inner.has_unlisted.store(true, Ordering::Relaxed);
                    continue;
                }
            };
            for record in records {
                if self.inner.registry.contains(record.id) {
                    continue;
                }
                let span = info_span!("restore", kernel_id = %record.id);
                let (provider, permits, done) = (provider.clone(), permits.clone(), done.clone());
                let (inner, closing) = (Arc::downgrade(&self.inner), self.inner.closing.clone());
                self.inner.attaching().insert(record.id);
                let attaching = async move {
                    let (mut backoff, mut done) = (BACKOFF, Some(done));
                    loop {
                        let attached = provider.attach(&record).await;
                        // The semaphore is never closed.
                        let permit = permits.acquire().await;
                        let Some(inner) = inner.upgrade() else { return };
                        let outcome = inner.restored(&provider, &record, attached).await;
                        let is_unreached = matches!(outcome, Outcome::Unreached);
                        if !is_unreached {
                            inner.attaching().remove(&record.id);
                        }
                        // Only the first attempt is reported, and the receiver may be gone.
                        if let Some(done) = done.take() {
                            let _ = done.send(matches!(outcome, Outcome::Attached(_)));
                        }
                        drop((permit, inner));
                        match outcome {
                            Outcome::Attached(kernel) => return connect(&kernel).await,
                            Outcome::Over => return,
                            Outcome::Unreached => {}
                        }
                        sleep(backoff.next_pause()).await;
                    }
                };
                let attaching = async move { closing.run_until_cancelled(attaching).await };
                self.inner.tasks.spawn(attaching.instrument(span));
            }
        }
        drop(done);
        self.inner.restored.cancel();
        let mut restored = 0;
        let attached = timeout(self.options().restore_timeout, async {
            while let Some(attached) = outcomes.recv().await {
                restored += usize::from(attached);
            }
        });
        if attached.await.is_err() {
            info!("some kernels are still starting and will be attached once they run");
        }
        restored
    }
}

/// Connects to a kernel's sockets and retries until it succeeds.
async fn connect(kernel: &Kernel) {
    let mut backoff = BACKOFF;
    loop {
        match kernel.reconnect_once().await {
            Ok(true) => return,
            // A restart or shutdown took precedence. The next attempt waits until it is over.
            Ok(false) => continue,
            Err(error) if backoff.retries() == 0 => {
                warn!(%error, "cannot connect to a running kernel; it counts as busy until this succeeds");
            }
            Err(error) => debug!(%error, "cannot connect to a running kernel"),
        }
        sleep(backoff.next_pause()).await;
    }
}

impl ManagerInner {
    /// Adds the kernel to the manager if the provider has `attached` to it.
    async fn restored(
        self: &Arc<Self>,
        provider: &Arc<dyn KernelProvider>,
        record: &KernelRecord,
        attached: Result<Arc<dyn KernelHandle>, AttachError>,
    ) -> Outcome {
        let handle = match attached {
            Ok(handle) => handle,
            Err(error) => {
                warn!(%error, "cannot attach to a running kernel");
                return match error {
                    AttachError::Provider(_) => Outcome::Unreached,
                    _ => Outcome::Over,
                };
            }
        };
        let (owner, groups) = (record.owner.as_deref(), groups::of_record(record));
        let Ok(reserved) = self.registry.reserve_running(record.id, owner, &groups) else {
            return Outcome::Over;
        };
        let specs = provider.specs().borrow().clone();
        let spec = specs.by_name.get(&record.spec).cloned();
        let name = if Arc::ptr_eq(provider, &self.providers[0]) {
            record.spec.clone()
        } else {
            format!("{}/{}", provider.name(), record.spec)
        };
        let recorded = async {
            let log = self.logs.open_for(record.id, record.owner.as_deref()).await?;
            self.kernel(name, spec, handle, log).await
        };
        let kernel = match recorded.await {
            Ok(kernel) => kernel,
            // Retrying does not help, because the log stays damaged.
            Err(error @ StoreError::Damaged { .. }) => {
                error!(%error, "cannot attach to a running kernel because its log is damaged; remove the log and start again");
                return Outcome::Over;
            }
            Err(error) => {
                error!(%error, "a running kernel's log cannot be opened");
                return Outcome::Unreached;
            }
        };
        // Busy until the kernel answers and its state is known.
        kernel.recorder().set_state(ExecutionState::Busy);
        self.watch(&kernel);
        reserved.fill(kernel.clone());
        info!("kernel attached");
        self.events.publish(record.id, KernelEventKind::Attached);
        Outcome::Attached(kernel)
    }
}
