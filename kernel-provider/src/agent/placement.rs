//! The traits that a back end implements to run agents, and the kernels that are built on them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use jupyter_protocol::KernelId;
use tokio_util::task::TaskTracker;

use super::kernel::AgentKernel;
use super::{ANSWER_DEADLINE, Connect};
use crate::{
    AttachError, Exit, ExitCause, KernelHandle, KernelRecord, LaunchError, LaunchRequest, LaunchStage, Phase, Progress,
    ProviderError, lock,
};

/// Starts agents, for example as processes of this machine.
///
/// A back end implements this and [`Place`], and leaves the rest to [`AgentKernels`].
#[async_trait]
pub trait Placement: Send + Sync + 'static {
    /// Starts an agent, which starts the kernel. Returns once the agent accepts connections or is about to. Dropping
    /// the future leaves nothing behind.
    ///
    /// # Errors
    /// [`LaunchError`] if the agent cannot be started.
    async fn place(&self, request: &LaunchRequest, progress: &Progress) -> Result<Arc<dyn Place>, LaunchError>;

    /// Starts a new agent for a kernel whose agent is gone, with the same launch request.
    ///
    /// # Errors
    /// [`LaunchError`] if the agent cannot be started.
    async fn replace(&self, gone: &dyn Place, progress: &Progress) -> Result<Arc<dyn Place>, LaunchError>;
}

/// One agent: how to connect to it and how to end it.
#[async_trait]
pub trait Place: Connect {
    /// The record of the kernel.
    fn record(&self) -> KernelRecord;

    /// Records that the kernel has started, so that it is kept when this program ends.
    ///
    /// # Errors
    /// [`ProviderError`] if that cannot be recorded.
    async fn confirm(&self) -> Result<(), ProviderError>;

    /// Waits until the agent and its kernel are gone, and returns the cause. Cancel-safe.
    async fn gone(&self) -> Exit;

    /// Kills the agent and its kernel without waiting. May be called outside a runtime.
    fn kill(&self);

    /// Kills the agent and its kernel if they run, and removes their files.
    async fn remove(&self);
}

/// The kernels whose agents a [`Placement`] starts.
pub struct AgentKernels {
    placement: Arc<dyn Placement>,
    kernels: Arc<Kernels>,
    /// Tasks that end agents and remove their files.
    removing: TaskTracker,
}

/// The kernels by id, and a lock for each id whose kernel is being launched.
#[derive(Default)]
pub(super) struct Kernels {
    running: Mutex<HashMap<KernelId, Arc<AgentKernel>>>,
    launching: Mutex<HashMap<KernelId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Kernels {
    fn get(&self, id: KernelId) -> Option<Arc<AgentKernel>> {
        lock(&self.running).get(&id).cloned()
    }

    fn insert(&self, id: KernelId, kernel: Arc<AgentKernel>) {
        lock(&self.running).insert(id, kernel);
    }

    /// Removes this kernel. A newer kernel with the same id stays.
    pub(super) fn remove(&self, id: KernelId, kernel: &Weak<AgentKernel>) {
        let mut running = lock(&self.running);
        if running
            .get(&id)
            .is_some_and(|known| Arc::as_ptr(known) == kernel.as_ptr())
        {
            running.remove(&id);
        }
    }

    fn launch_lock(&self, id: KernelId) -> Arc<tokio::sync::Mutex<()>> {
        let mut launching = lock(&self.launching);
        launching.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = launching.get(&id).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        launching.insert(id, Arc::downgrade(&lock));
        lock
    }
}

impl fmt::Debug for AgentKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentKernels").finish_non_exhaustive()
    }
}

/// Guards an agent until its launch succeeds. If the guard is dropped before that, the agent is removed.
struct PlaceGuard {
    place: Option<Arc<dyn Place>>,
    removing: TaskTracker,
}

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            place.kill();
            // Without a runtime, the next program that opens the placement removes the agent.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                let removing = self.removing.track_future(async move { place.remove().await });
                runtime.spawn(removing);
            }
        }
    }
}

impl AgentKernels {
    /// Creates the set of a placement's kernels. `found` has the agents that run already. Must be called in a tokio
    /// runtime.
    #[must_use]
    pub fn new(placement: Arc<dyn Placement>, found: Vec<Arc<dyn Place>>) -> Self {
        let kernels = Self {
            placement,
            kernels: Arc::default(),
            removing: TaskTracker::new(),
        };
        for place in found {
            let id = place.record().id;
            kernels.kernels.insert(id, kernels.kernel(place, Phase::Running));
        }
        kernels
    }

    fn kernel(&self, place: Arc<dyn Place>, phase: Phase) -> Arc<AgentKernel> {
        AgentKernel::new(
            self.placement.clone(),
            place,
            phase,
            Arc::downgrade(&self.kernels),
            self.removing.clone(),
        )
    }

    /// Implements [`KernelProvider::launch`](crate::KernelProvider::launch).
    ///
    /// # Errors
    /// [`LaunchError`], by cause.
    pub async fn launch(
        &self,
        request: &LaunchRequest,
        progress: &Progress,
    ) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        let launch_lock = self.kernels.launch_lock(request.id);
        let _locked = launch_lock.lock().await;
        if let Some(kernel) = self.kernels.get(request.id) {
            if !matches!(*kernel.phase().borrow(), Phase::Exited(_)) {
                progress.report(LaunchStage::Ready);
                return Ok(kernel);
            }
            kernel.discard().await;
        }
        // The agent has the same timeout. Its error is more detailed, so wait a little longer.
        let deadline = tokio::time::Instant::now() + request.timeout + ANSWER_DEADLINE;
        let place = self.placement.place(request, progress).await?;
        let mut guard = PlaceGuard {
            place: Some(place.clone()),
            removing: self.removing.clone(),
        };
        progress.report(LaunchStage::Starting);
        let kernel = self.kernel(place.clone(), Phase::Starting);
        let started = match tokio::time::timeout_at(deadline, kernel.started()).await {
            Ok(started) => started,
            Err(_) => Err(LaunchError::TimedOut {
                timeout: request.timeout,
                output: String::new(),
            }),
        };
        let started = match started {
            Ok(()) => place.confirm().await.map_err(LaunchError::from),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            place.remove().await;
            guard.place = None;
            return Err(error);
        }
        guard.place = None;
        kernel.set_attached();
        self.kernels.insert(request.id, kernel.clone());
        progress.report(LaunchStage::Ready);
        Ok(kernel)
    }

    /// The records of the running kernels, and of kernels that ended before a caller attached to them.
    #[must_use]
    pub fn records(&self) -> Vec<KernelRecord> {
        let kernels: Vec<_> = lock(&self.kernels.running).values().cloned().collect();
        let listed = kernels.iter().filter(|kernel| kernel.is_listed());
        listed.map(|kernel| kernel.record()).collect()
    }

    /// Whether there is a kernel with this id.
    #[must_use]
    pub fn has(&self, id: KernelId) -> bool {
        self.kernels.get(id).is_some()
    }

    /// Implements [`KernelProvider::attach`](crate::KernelProvider::attach).
    ///
    /// # Errors
    /// [`AttachError::Gone`] if there is no such kernel.
    pub async fn attach(&self, id: KernelId) -> Result<Arc<dyn KernelHandle>, AttachError> {
        let gone = |cause| AttachError::Gone { id, cause };
        let Some(kernel) = self.kernels.get(id) else {
            return Err(gone(ExitCause::Unknown("it has no agent".to_owned())));
        };
        if let Some(exit) = kernel.known_end().await {
            if !kernel.is_attached() {
                kernel.discard().await;
                self.kernels.remove(id, &Arc::downgrade(&kernel));
            }
            return Err(gone(exit.cause));
        }
        kernel.set_attached();
        Ok(kernel)
    }

    /// Waits for agents that are being removed. Kernels keep running.
    pub async fn close(&self) {
        self.removing.close();
        self.removing.wait().await;
        lock(&self.kernels.running).clear();
    }
}
