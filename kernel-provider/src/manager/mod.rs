//! Owns the kernels of all providers: starts, restarts and ends them, and ends those that nobody uses.

mod culling;
mod error;
mod events;
mod kernel;
mod options;
mod registry;
mod restore;
mod supervisor;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jupyter_protocol::InstalledKernelspec;
use jupyter_protocol::zmq::MessageMemory;
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, info_span, warn};

pub use error::{RestartError, StartError};
pub use events::{KernelEvent, KernelEventKind};
pub use kernel::{Kernel, Room};
pub use options::{Culling, ManagerOptions, StartRequest};

use crate::KernelId;
use crate::log::{Log, Logs, StoreError};
use crate::provider::{KernelHandle, KernelProvider, LaunchRequest, Progress};
use crate::session::{Executions, Lifecycle, Recorder, RecorderOptions, Sessions};
use events::Events;
use registry::Registry;

/// The longest that a manager that ends waits for providers to clear away what was being started.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
/// The kernelspec that every Python installation calls its kernel by.
const PYTHON: &str = "python3";

/// The kernels of several providers. Cloning gives another handle to the same manager.
///
/// Dropping the last handle ends the manager's tasks and leaves the kernels running, to be found again by
/// [`restore`](Self::restore).
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
}

struct Shared {
    providers: Vec<Arc<dyn KernelProvider>>,
    options: ManagerOptions,
    recorder_options: RecorderOptions,
    logs: Logs,
    registry: Registry,
    /// Kernels that ran before this process and that it has not attached to yet.
    attaching: Mutex<HashSet<KernelId>>,
    events: Events,
    tasks: TaskTracker,
    /// Cancelled when no kernel is started any more: those that are being started are given up.
    closing: CancellationToken,
    stop: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Manager {
    /// A manager of these providers' kernels, logging to `logs`. The first provider is the default one. Starts the task
    /// that culls, where the options ask for it; needs a tokio runtime.
    #[must_use]
    pub fn new(providers: Vec<Arc<dyn KernelProvider>>, logs: Logs, options: ManagerOptions) -> Self {
        let stop = CancellationToken::new();
        let recorder_options = RecorderOptions {
            runtime: options.recorder_runtime.clone(),
            memory: MessageMemory::new(options.message_memory),
        };
        let manager = Self {
            shared: Arc::new(Shared {
                providers,
                registry: Registry::new(options.max_kernels, options.max_kernels_per_owner),
                options,
                recorder_options,
                logs,
                attaching: Mutex::default(),
                events: Events::new(),
                tasks: TaskTracker::new(),
                closing: stop.child_token(),
                stop,
            }),
        };
        culling::start(&manager.shared);
        manager
    }

    /// What can be launched, by name: of the default provider `python3`, of every provider also `local/python3`.
    #[must_use]
    pub fn specs(&self) -> BTreeMap<String, InstalledKernelspec> {
        let mut all = BTreeMap::new();
        let several = self.shared.providers.len() > 1;
        for (index, provider) in self.shared.providers.iter().enumerate() {
            let specs = provider.specs().borrow().clone();
            for (name, spec) in &specs.by_name {
                if index == 0 {
                    all.insert(name.clone(), spec.clone());
                }
                if several {
                    all.insert(format!("{}/{name}", provider.name()), spec.clone());
                }
            }
        }
        all
    }

    /// What is wrong with the kernelspecs that cannot be used, by name, as in [`specs`](Self::specs). The texts name the
    /// files.
    #[must_use]
    pub fn broken_specs(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let several = self.shared.providers.len() > 1;
        for (index, provider) in self.shared.providers.iter().enumerate() {
            for (name, reason) in &provider.specs().borrow().broken {
                if index == 0 {
                    all.insert(name.clone(), reason.clone());
                }
                if several {
                    all.insert(format!("{}/{name}", provider.name()), reason.clone());
                }
            }
        }
        all
    }

    /// The kernelspec that a start under this name takes, with the name that [`specs`](Self::specs) has for it: upper and
    /// lower case do not matter, and `python` is `python3` where it is no other kernelspec's name.
    ///
    /// # Errors
    /// [`StartError::NoSuchSpec`] and [`StartError::BrokenSpec`].
    pub fn find_spec(&self, name: &str) -> Result<(String, InstalledKernelspec), StartError> {
        self.shared.find_spec(name).map(|found| (found.name, found.spec))
    }

    /// The kernelspec that a start without a name takes, by [`ManagerOptions::default_spec`]; `None` where that is not
    /// set and there are no kernelspecs.
    #[must_use]
    pub fn default_spec(&self) -> Option<String> {
        if let Some(name) = &self.shared.options.default_spec {
            return Some(name.clone());
        }
        let specs = self.specs();
        let python = || {
            specs
                .iter()
                .find(|(_, spec)| spec.spec.language.eq_ignore_ascii_case("python"))
        };
        specs
            .get_key_value(PYTHON)
            .or_else(python)
            .or_else(|| specs.iter().next())
            .map(|(name, _)| name.clone())
    }

    /// Starts a kernel, and returns once it has answered.
    ///
    /// Dropping the future does not stop the start: the kernel is then there under its id, and is culled in its time.
    ///
    /// # Errors
    /// [`StartError`], by cause.
    pub async fn start(&self, request: StartRequest) -> Result<Arc<Kernel>, StartError> {
        let shared = self.shared.clone();
        let id = request.id.unwrap_or_else(KernelId::random);
        let starting = async move { shared.start(id, request).await }.instrument(info_span!("start", kernel_id = %id));
        match self.shared.tasks.spawn(starting).await {
            Ok(result) => result,
            Err(_) => Err(StartError::ShuttingDown),
        }
    }

    /// The kernel of this id.
    #[must_use]
    pub fn get(&self, id: KernelId) -> Option<Arc<Kernel>> {
        self.shared.registry.get(id)
    }

    /// All kernels, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Kernel>> {
        self.shared.registry.list()
    }

    /// What happens to the kernels, from now on. A receiver that falls behind by more than 1,024 events is told so.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<KernelEvent> {
        self.shared.events.subscribe()
    }

    /// The logs, of kernels that run and of kernels that are gone.
    #[must_use]
    pub fn logs(&self) -> &Logs {
        &self.shared.logs
    }

    /// Ends all kernels, side by side, and the manager's tasks. Kernels that are being started are given up.
    pub async fn shutdown(&self) {
        self.shared.start_no_more().await;
        let ending = self.list().into_iter().map(|kernel| async move {
            if let Err(error) = kernel.shutdown().await {
                warn!(kernel_id = %kernel.id(), %error, "the kernel could not be ended");
            }
        });
        futures::future::join_all(ending).await;
        self.shared.stop.cancel();
    }

    /// What the log of a kernel that this manager does not run says of executions; `None` where there is no log. Those
    /// that had not ended have died with it, unless the kernel may run all the same: not attached to yet, or at another
    /// manager that shares the store.
    ///
    /// # Errors
    /// [`StoreError`] where the log cannot be opened.
    pub async fn past_executions(&self, id: KernelId) -> Result<Option<Executions>, StoreError> {
        let Some(log) = self.shared.logs.find(id).await? else {
            return Ok(None);
        };
        let may_run = self.shared.closing.is_cancelled()
            || self.shared.registry.knows(id)
            || self.shared.attaching().contains(&id)
            || self.shared.logs.is_shared();
        Ok(Some(if may_run {
            Executions::of(log)
        } else {
            Executions::of_the_past(log)
        }))
    }

    /// Ends the manager's tasks and leaves the kernels running, with all that was recorded in the store. Kernels that are
    /// being started are given up.
    pub async fn detach(&self) {
        self.shared.start_no_more().await;
        self.shared.stop.cancel();
        // Side by side: one that is being restarted holds up no other.
        futures::future::join_all(self.list().iter().map(|kernel| kernel.detach())).await;
    }
}

/// A kernelspec that can be started.
struct FoundSpec {
    provider: Arc<dyn KernelProvider>,
    /// Its name among all providers.
    name: String,
    /// Its name within its provider.
    own_name: String,
    spec: InstalledKernelspec,
}

impl Shared {
    fn attaching(&self) -> MutexGuard<'_, HashSet<KernelId>> {
        self.attaching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start_no_more(&self) {
        self.registry.close();
        self.closing.cancel();
        self.registry.started().await;
        let settling = self.providers.iter().map(|provider| provider.settle());
        if timeout(SETTLE_DEADLINE, futures::future::join_all(settling))
            .await
            .is_err()
        {
            warn!("what kernels left that were being started could not be cleared away in time");
        }
    }

    /// The provider that this name names, and the rest of it.
    fn provider_of<'a>(&self, name: &'a str) -> Result<(&Arc<dyn KernelProvider>, &'a str), StartError> {
        if let Some((prefix, spec)) = name.split_once('/')
            && let Some(provider) = self.providers.iter().find(|provider| provider.name() == prefix)
        {
            return Ok((provider, spec));
        }
        self.providers
            .first()
            .map(|provider| (provider, name))
            .ok_or(StartError::NoProvider)
    }

    fn find_spec(&self, name: &str) -> Result<FoundSpec, StartError> {
        let (provider, own_name) = self.provider_of(name)?;
        let specs = provider.specs().borrow().clone();
        let prefix = &name[..name.len() - own_name.len()];
        let canonical = specs.canonical(own_name).unwrap_or_else(|| own_name.to_owned());
        if let Some(spec) = specs.by_name.get(&canonical).cloned() {
            return Ok(FoundSpec {
                provider: provider.clone(),
                name: format!("{prefix}{canonical}"),
                own_name: canonical,
                spec,
            });
        }
        Err(match specs.broken.get(&canonical).cloned() {
            Some(reason) => StartError::BrokenSpec {
                spec: format!("{prefix}{canonical}"),
                reason,
            },
            None => StartError::NoSuchSpec {
                spec: name.to_owned(),
                known: specs.by_name.keys().cloned().collect::<Vec<_>>().join(", "),
            },
        })
    }

    async fn start(self: &Arc<Self>, id: KernelId, request: StartRequest) -> Result<Arc<Kernel>, StartError> {
        let FoundSpec {
            provider,
            name,
            own_name,
            spec,
        } = self.find_spec(&request.spec)?;
        // It runs, and is not attached to yet.
        if self.attaching().contains(&id) {
            return Err(StartError::Duplicate(id));
        }
        let reserved = self.registry.reserve(id, request.owner.as_deref())?;
        let began = chrono::Utc::now();
        let mut launch = LaunchRequest::new(id, own_name);
        launch.env = request.env;
        launch.working_dir = request.working_dir;
        launch.owner = request.owner;
        launch.timeout = request.timeout;
        let begun = tokio::time::Instant::now();
        // The log is opened while the kernel starts.
        let launching = async { tokio::join!(provider.launch(launch, Progress::ignored()), self.logs.open(id)) };
        let launched = self.closing.run_until_cancelled(launching).await;
        let (handle, log) = launched.ok_or(StartError::ShuttingDown)?;
        let (handle, log) = match (handle, log) {
            (Ok(handle), Ok(log)) => (handle, log),
            (Ok(handle), Err(error)) => {
                kernel::abandon_new(&*handle, began).await;
                return Err(error.into());
            }
            (Err(error), _) => return Err(error.into()),
        };
        let kernel = match self.kernel(name, Some(spec), handle.clone(), log).await {
            Ok(kernel) => kernel,
            Err(error) => {
                kernel::abandon_new(&*handle, began).await;
                return Err(error.into());
            }
        };
        let left = request.timeout.saturating_sub(begun.elapsed());
        match self.closing.run_until_cancelled(kernel.connect(left)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                kernel::abandon_new(kernel.handle(), began).await;
                return Err(StartError::NoAnswer {
                    reason: error.to_string(),
                    output: kernel.handle().output().await.unwrap_or_default(),
                });
            }
            None => {
                kernel::abandon_new(kernel.handle(), began).await;
                return Err(StartError::ShuttingDown);
            }
        }
        kernel.recorder().lifecycle(&Lifecycle::Started);
        self.watch(&kernel);
        reserved.fill(kernel.clone());
        info!(spec = kernel.spec_name(), elapsed = ?begun.elapsed(), "kernel started");
        self.events.tell(id, KernelEventKind::Started);
        Ok(kernel)
    }

    /// The kernel, with what its log knows of requests and sessions.
    async fn kernel(
        self: &Arc<Self>,
        spec_name: String,
        spec: Option<InstalledKernelspec>,
        handle: Arc<dyn KernelHandle>,
        log: Log,
    ) -> Result<Arc<Kernel>, StoreError> {
        let recorder = Recorder::load(log.clone(), self.recorder_options.clone()).await?;
        let sessions = Sessions::load(log).await?;
        Ok(Arc::new(Kernel::new(self, spec_name, spec, handle, recorder, sessions)))
    }

    /// Watches over the kernel from now on.
    fn watch(self: &Arc<Self>, kernel: &Arc<Kernel>) {
        let watching = supervisor::watch(Arc::downgrade(self), kernel.clone());
        let stop = self.stop.clone();
        let span = info_span!("supervisor", kernel_id = %kernel.id());
        self.tasks.spawn(
            async move {
                stop.run_until_cancelled(watching).await;
            }
            .instrument(span),
        );
    }
}
