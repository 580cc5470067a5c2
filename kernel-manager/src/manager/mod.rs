//! Starts, restarts and ends the kernels of all providers, and culls idle ones.

mod builder;
mod culling;
mod error;
mod log_quotas;
mod options;
mod registry;
mod restore;
mod supervisor;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jupyter_protocol::zmq::MessageMemory;
use jupyter_protocol::{InstalledKernelspec, KernelId};
use kernel_log::{Lifecycle, Log, Logs, StoreError};
use kernel_provider::{KernelHandle, KernelProvider, LaunchRequest};
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, info_span, warn};

pub use builder::{ManagerBuilder, OpenError};
pub use error::{Counted, StartError};
pub use options::{Culling, CullingRules, GroupOptions, ManagerOptions, StartRequest};

use crate::groups;
use crate::kernel::{Events, Keeper, Kernel, KernelEvent, KernelEventKind, abandon_new};
use crate::session::{Executions, Recorder, RecorderOptions, RefusedMessages, Sessions};
use registry::Registry;

/// How long a closing manager waits for providers to clean up cancelled launches.
const PROVIDERS_DEADLINE: Duration = Duration::from_secs(10);
/// The usual name of Python's kernelspec.
const PYTHON: &str = "python3";

/// Manages the kernels of several providers. Clones share the same manager.
///
/// Dropping the last clone ends the manager's tasks and leaves the kernels running, unless
/// [`ManagerOptions::end_kernels_on_drop`] is set; [`restore`](Self::restore) finds them again. [`close`](Self::close)
/// ends the kernels or leaves them running, and releases everything else.
///
/// ```
/// use kernel_manager::{AtClose, Manager};
/// use kernel_provider::fake::FakeProvider;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = Manager::builder().provider(FakeProvider::new()).open().await?;
/// let kernel = manager.start("echo").await?;
/// let result = kernel.run("hello").await?;
/// assert_eq!(result.text(), "hello");
/// manager.close(AtClose::EndKernels).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Manager {
    inner: Arc<ManagerInner>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("options", &self.options())
            .finish_non_exhaustive()
    }
}

struct ManagerInner {
    providers: Vec<Arc<dyn KernelProvider>>,
    options: watch::Sender<Arc<ManagerOptions>>,
    recorder_options: RecorderOptions,
    logs: Logs,
    registry: Registry,
    /// Running kernels of an earlier process that are not attached yet.
    attaching: Mutex<HashSet<KernelId>>,
    /// Cancelled once the running kernels of an earlier process are known.
    restored: CancellationToken,
    /// Whether a provider could not list its running kernels.
    has_unlisted: AtomicBool,
    events: Events,
    tasks: TaskTracker,
    /// Cancelled when the manager starts no more kernels, which cancels pending starts.
    closing: CancellationToken,
    /// Cancelled to end the manager's tasks.
    stop: CancellationToken,
}

impl Drop for ManagerInner {
    fn drop(&mut self) {
        self.stop.cancel();
        if self.options().end_kernels_on_drop {
            for kernel in self.registry.list() {
                kernel.handle().kill();
            }
        }
    }
}

impl Manager {
    /// Sets up a manager step by step.
    pub fn builder() -> ManagerBuilder {
        ManagerBuilder::new()
    }

    /// Creates a manager for these providers' kernels that records to `logs`. The first provider is the default. The
    /// manager starts tasks, so this must be called in a tokio runtime. Unlike [`ManagerBuilder::open`], it does not
    /// attach to running kernels; [`restore`](Self::restore) does.
    #[must_use]
    pub fn new(providers: Vec<Arc<dyn KernelProvider>>, logs: Logs, options: ManagerOptions) -> Self {
        let stop = CancellationToken::new();
        let recorder_options = RecorderOptions {
            runtime: options.recorder_runtime.clone(),
            memory: MessageMemory::new(options.message_memory),
            refused: Arc::default(),
        };
        let manager = Self {
            inner: Arc::new(ManagerInner {
                providers,
                registry: Registry::default(),
                options: watch::Sender::new(Arc::new(options)),
                recorder_options,
                logs,
                attaching: Mutex::default(),
                restored: CancellationToken::new(),
                has_unlisted: AtomicBool::new(false),
                events: Events::new(),
                tasks: TaskTracker::new(),
                closing: stop.child_token(),
                stop,
            }),
        };
        culling::start(&manager.inner);
        log_quotas::start(&manager.inner);
        manager
    }

    /// The current options.
    #[must_use]
    pub fn options(&self) -> Arc<ManagerOptions> {
        self.inner.options()
    }

    /// Replaces the options. Limits apply to starts from now on, so kernels beyond a lowered limit keep running. The
    /// restart limit and the grace of a shutdown apply to kernels that start from now on. `message_memory` and
    /// `recorder_runtime` stay as they were.
    pub fn set_options(&self, options: ManagerOptions) {
        self.inner.options.send_replace(Arc::new(options));
    }

    /// The kernelspecs by name. With several providers, each kernelspec is listed with its provider's name in front,
    /// such as `local/python3`. Those of the default provider are also listed without it.
    #[must_use]
    pub fn specs(&self) -> BTreeMap<String, InstalledKernelspec> {
        let mut all = BTreeMap::new();
        let several = self.inner.providers.len() > 1;
        for (index, provider) in self.inner.providers.iter().enumerate() {
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

    /// The errors of unusable kernelspecs, by name as in [`specs`](Self::specs). Each text names the file.
    #[must_use]
    pub fn broken_specs(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let several = self.inner.providers.len() > 1;
        for (index, provider) in self.inner.providers.iter().enumerate() {
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

    /// The kernelspec that a start with this name uses, preceded by its name in [`specs`](Self::specs). Case does not
    /// matter, and `python` and `python2` mean `python3` unless kernelspecs with these names exist.
    ///
    /// # Errors
    /// [`StartError::NoSuchSpec`] and [`StartError::BrokenSpec`].
    pub fn find_spec(&self, name: &str) -> Result<(String, InstalledKernelspec), StartError> {
        self.inner.find_spec(name).map(|found| (found.name, found.spec))
    }

    /// The name of the kernelspec to start for a client that names none: [`ManagerOptions::default_spec`] or, if that
    /// is unset, an installed kernelspec; `None` if there is neither.
    #[must_use]
    pub fn default_spec(&self) -> Option<String> {
        if let Some(name) = &self.options().default_spec {
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

    /// Starts a kernel and returns once it has answered. Takes the name of a kernelspec, or a [`StartRequest`].
    ///
    /// Dropping the future does not cancel the start: the kernel then runs under its id until it is shut down, or
    /// culled if [culling](ManagerOptions::culling) is on.
    ///
    /// # Errors
    /// [`StartError`], by cause.
    pub async fn start(&self, request: impl Into<StartRequest>) -> Result<Arc<Kernel>, StartError> {
        let request = request.into();
        let inner = self.inner.clone();
        let id = request.id.unwrap_or_else(KernelId::random);
        let starting = async move { inner.start(id, request).await }.instrument(info_span!("start", kernel_id = %id));
        match self.inner.tasks.spawn(starting).await {
            Ok(result) => result,
            Err(_) => Err(StartError::ShuttingDown),
        }
    }

    /// The kernel with this id.
    #[must_use]
    pub fn get(&self, id: KernelId) -> Option<Arc<Kernel>> {
        self.inner.registry.get(id)
    }

    /// All kernels, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Kernel>> {
        self.inner.registry.list()
    }

    /// Subscribes to kernel events. A receiver that lags more than 1,024 events behind gets the number of missed
    /// events.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<KernelEvent> {
        self.inner.events.subscribe()
    }

    /// The logs of running and past kernels.
    #[must_use]
    pub fn logs(&self) -> &Logs {
        &self.inner.logs
    }

    /// How many messages of kernels were not recorded.
    #[must_use]
    pub fn refused_messages(&self) -> RefusedMessages {
        self.inner.recorder_options.refused.read()
    }

    /// Ends all kernels or leaves them running, ends the manager's tasks, and closes the logs and their store. Pending
    /// starts are cancelled, and everything that was recorded is stored. Afterwards the store and the providers'
    /// folders can be opened again, even by another process and while handles of kernels or logs still exist. Closing a
    /// closed manager does nothing.
    ///
    /// # Errors
    /// [`StoreError`] if the store was not closed cleanly; it is closed nevertheless.
    pub async fn close(&self, kernels: AtClose) -> Result<(), StoreError> {
        self.inner.start_no_more().await;
        match kernels {
            AtClose::EndKernels => {
                let ending = self.list().into_iter().map(|kernel| async move {
                    if let Err(error) = kernel.shutdown().await {
                        warn!(kernel_id = %kernel.id(), %error, "the kernel could not be ended");
                    }
                });
                futures::future::join_all(ending).await;
                self.inner.stop.cancel();
            }
            AtClose::LeaveKernels => {
                // Stop the supervisors first, so that they do not restart a kernel that ends now.
                self.inner.stop.cancel();
                // Detach concurrently, so that a kernel that is restarting does not delay others.
                futures::future::join_all(self.list().iter().map(|kernel| kernel.detach())).await;
            }
        }
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        let providers = self.inner.providers.iter().map(|provider| provider.close());
        if timeout(PROVIDERS_DEADLINE, futures::future::join_all(providers))
            .await
            .is_err()
        {
            warn!("the cleanup of cancelled launches did not finish in time");
        }
        self.inner.logs.close().await
    }

    /// The executions of a kernel that this manager does not run; `None` if the kernel has no log. Unfinished
    /// executions count as died, unless the kernel [may still run](Self::may_run).
    ///
    /// # Errors
    /// [`StoreError`] if the log cannot be opened.
    pub async fn past_executions(&self, id: KernelId) -> Result<Option<Executions>, StoreError> {
        let Some(log) = self.inner.logs.find(id).await? else {
            return Ok(None);
        };
        Ok(Some(if self.may_run(id) {
            Executions::of(log)
        } else {
            Executions::of_the_past(log)
        }))
    }

    /// Whether the kernel may run. True for a kernel that [`get`](Self::get) finds, that is starting, or that is not
    /// attached yet. Always true if this manager is closing, or if other managers may share its store.
    #[must_use]
    pub fn may_run(&self, id: KernelId) -> bool {
        self.inner.may_run(id)
    }
}

/// What happens to the kernels when their [`Manager`] is [closed](Manager::close).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtClose {
    /// They are shut down.
    EndKernels,
    /// They keep running; [`Manager::restore`] of a later manager finds them.
    LeaveKernels,
}

/// A kernelspec that can be started.
struct FoundSpec {
    provider: Arc<dyn KernelProvider>,
    /// Its name in [`Manager::specs`].
    name: String,
    /// Its name at its provider.
    own_name: String,
    spec: InstalledKernelspec,
}

impl ManagerInner {
    fn options(&self) -> Arc<ManagerOptions> {
        self.options.borrow().clone()
    }

    fn attaching(&self) -> MutexGuard<'_, HashSet<KernelId>> {
        self.attaching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Manager::may_run`].
    fn may_run(&self, id: KernelId) -> bool {
        self.closing.is_cancelled()
            || self.registry.contains(id)
            || self.attaching().contains(&id)
            || self.logs.is_shared()
    }

    /// Cancels pending starts, waits for their end, and refuses further ones.
    async fn start_no_more(&self) {
        self.registry.close();
        self.closing.cancel();
        self.registry.started().await;
    }

    /// The provider that the name begins with, or else the first one, and the rest of the name.
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
        // A kernel with this id is running but not attached yet.
        if self.attaching().contains(&id) {
            return Err(StartError::Duplicate(id));
        }
        let (owner, options) = (request.owner.as_deref(), self.options());
        let reserved = self.registry.reserve(id, owner, &request.groups, &options)?;
        // No other start changes the log while the id is reserved.
        if let Some(owner) = &request.owner
            && let Some(log) = self.logs.info(id).await?
            && log.owner.is_some_and(|of_log| of_log != *owner)
        {
            return Err(StartError::OtherOwner(id));
        }
        let began = chrono::Utc::now();
        let mut launch = LaunchRequest::new(id, own_name);
        launch.env = request.env;
        launch.working_dir = request.working_dir;
        launch.owner = request.owner.clone();
        launch.annotations = request.annotations;
        groups::annotate(&request.groups, &mut launch.annotations);
        let owner = request.owner;
        launch.timeout = request.timeout;
        let timer = tokio::time::Instant::now();
        // The log opens while the kernel starts.
        let opening = self.logs.open_for(id, owner.as_deref());
        let launching = async { tokio::join!(provider.launch(launch, request.progress), opening) };
        let launched = self.closing.run_until_cancelled(launching).await;
        let (handle, log) = launched.ok_or(StartError::ShuttingDown)?;
        let (handle, log) = match (handle, log) {
            (Ok(handle), Ok(log)) => (handle, log),
            (Ok(handle), Err(error)) => {
                abandon_new(&*handle, began).await;
                return Err(error.into());
            }
            (Err(error), _) => return Err(error.into()),
        };
        let kernel = match self.kernel(name, Some(spec), handle.clone(), log).await {
            Ok(kernel) => kernel,
            Err(error) => {
                abandon_new(&*handle, began).await;
                return Err(error.into());
            }
        };
        let left = request.timeout.saturating_sub(timer.elapsed());
        match self.closing.run_until_cancelled(kernel.connect(left)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                abandon_new(kernel.handle(), began).await;
                return Err(StartError::NoAnswer {
                    reason: error.to_string(),
                    output: kernel.handle().output().await.unwrap_or_default(),
                });
            }
            None => {
                abandon_new(kernel.handle(), began).await;
                return Err(StartError::ShuttingDown);
            }
        }
        kernel.recorder().lifecycle(&Lifecycle::Started);
        self.watch(&kernel);
        reserved.fill(kernel.clone());
        info!(spec = kernel.spec_name(), elapsed = ?timer.elapsed(), "kernel started");
        self.events.publish(id, KernelEventKind::Started);
        Ok(kernel)
    }

    /// Creates the kernel with the requests and sessions of its log.
    async fn kernel(
        self: &Arc<Self>,
        spec_name: String,
        spec: Option<InstalledKernelspec>,
        handle: Arc<dyn KernelHandle>,
        log: Log,
    ) -> Result<Arc<Kernel>, StoreError> {
        let recorder = Recorder::load(log.clone(), self.recorder_options.clone()).await?;
        let sessions = Sessions::load(log).await?;
        let keeper: Weak<dyn Keeper> = Arc::<Self>::downgrade(self);
        let grace = self.options().shutdown_grace;
        Ok(Arc::new(Kernel::new(
            keeper, spec_name, spec, handle, recorder, sessions, grace,
        )))
    }
}

impl Keeper for ManagerInner {
    fn watch(&self, kernel: &Arc<Kernel>) {
        let options = self.options();
        let watching = supervisor::watch(kernel.clone(), options.restart_limit, options.stable_after);
        let stop = self.stop.clone();
        let span = info_span!("supervisor", kernel_id = %kernel.id());
        self.tasks.spawn(
            async move {
                stop.run_until_cancelled(watching).await;
            }
            .instrument(span),
        );
    }

    fn remove(&self, id: KernelId) {
        self.registry.remove(id);
    }

    fn publish(&self, id: KernelId, kind: KernelEventKind) {
        self.events.publish(id, kind);
    }
}
