use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Handle;

use jupyter_protocol::KernelId;
use kernel_provider::Progress;

/// Options of a [`Manager`](super::Manager).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ManagerOptions {
    /// The name that [`Manager::default_spec`](super::Manager::default_spec) returns, even if no such kernelspec
    /// exists. `None` selects `python3`, else the first Python kernelspec, else the first one.
    pub default_spec: Option<String>,
    /// The most kernels at a time, including those that are starting; `None` for no limit.
    pub max_kernels: Option<usize>,
    /// The most kernels of one owner at a time; `None` for no limit.
    pub max_kernels_per_owner: Option<usize>,
    /// Rules for the kernels of [groups](StartRequest::groups), by the group's name.
    pub groups: BTreeMap<String, GroupOptions>,
    /// How often a kernel that ends by itself is restarted before it counts as dead. The count resets after a run of
    /// more than [`stable_after`](Self::stable_after).
    pub restart_limit: u32,
    /// How long a kernel must run for its earlier crashes to be forgotten.
    pub stable_after: Duration,
    /// How long a kernel has to end after a shutdown request, and again after SIGTERM, before it is killed.
    pub shutdown_grace: Duration,
    /// When idle kernels are ended.
    pub culling: Culling,
    /// How long [`restore`](super::Manager::restore) waits for all kernels together. It attaches later to kernels that
    /// are still starting then.
    pub restore_timeout: Duration,
    /// How long a log is kept after its kernel is gone. A quota
    /// ([`LogOptions::total_bytes`](kernel_log::LogOptions::total_bytes)) may drop it earlier.
    pub log_retention: Duration,
    /// Budget in bytes for the large messages of all kernels while they are received and stored; see
    /// [`MessageMemory`](jupyter_protocol::zmq::MessageMemory). A store other than `DiskStore` may copy these messages,
    /// and the budget does not count the copies.
    pub message_memory: u64,
    /// The runtime that reads iopub; `None` for the one that starts the kernels. A separate runtime reads iopub in time
    /// even if clients keep the other threads busy; many kernels drop output that is not read in time. The runtime must
    /// outlive the manager.
    pub recorder_runtime: Option<Handle>,
    /// Whether dropping the last clone of the manager kills its kernels, as far as their provider
    /// [can](kernel_provider::KernelHandle::kill), instead of leaving them to a later manager.
    pub end_kernels_on_drop: bool,
}

impl ManagerOptions {
    /// Sets the name that [`Manager::default_spec`](super::Manager::default_spec) returns.
    #[must_use]
    pub fn with_default_spec(mut self, default_spec: impl Into<String>) -> Self {
        self.default_spec = Some(default_spec.into());
        self
    }

    /// Limits the number of kernels at a time.
    #[must_use]
    pub fn with_max_kernels(mut self, max_kernels: usize) -> Self {
        self.max_kernels = Some(max_kernels);
        self
    }

    /// Limits the number of kernels of one owner at a time.
    #[must_use]
    pub fn with_max_kernels_per_owner(mut self, max_kernels_per_owner: usize) -> Self {
        self.max_kernels_per_owner = Some(max_kernels_per_owner);
        self
    }

    /// Sets rules for the kernels of a group.
    #[must_use]
    pub fn with_group(mut self, name: impl Into<String>, group: GroupOptions) -> Self {
        self.groups.insert(name.into(), group);
        self
    }

    /// Sets how often a kernel that ends by itself is restarted.
    #[must_use]
    pub fn with_restart_limit(mut self, restart_limit: u32) -> Self {
        self.restart_limit = restart_limit;
        self
    }

    /// Sets how long a kernel has to end after a request, and again after SIGTERM.
    #[must_use]
    pub fn with_shutdown_grace(mut self, shutdown_grace: Duration) -> Self {
        self.shutdown_grace = shutdown_grace;
        self
    }

    /// Sets when idle kernels are ended.
    #[must_use]
    pub fn with_culling(mut self, culling: Culling) -> Self {
        self.culling = culling;
        self
    }

    /// Sets how long a restore waits for all kernels together.
    #[must_use]
    pub fn with_restore_timeout(mut self, restore_timeout: Duration) -> Self {
        self.restore_timeout = restore_timeout;
        self
    }

    /// Sets how long a log is kept after its kernel is gone.
    #[must_use]
    pub fn with_log_retention(mut self, log_retention: Duration) -> Self {
        self.log_retention = log_retention;
        self
    }

    /// Sets the budget in bytes for large messages of all kernels.
    #[must_use]
    pub fn with_message_memory(mut self, message_memory: u64) -> Self {
        self.message_memory = message_memory;
        self
    }

    /// Sets the runtime that reads iopub.
    #[must_use]
    pub fn with_recorder_runtime(mut self, recorder_runtime: Handle) -> Self {
        self.recorder_runtime = Some(recorder_runtime);
        self
    }

    /// Sets whether dropping the last clone of the manager kills its kernels.
    #[must_use]
    pub fn with_end_kernels_on_drop(mut self, end_kernels_on_drop: bool) -> Self {
        self.end_kernels_on_drop = end_kernels_on_drop;
        self
    }
}

impl Default for ManagerOptions {
    /// `python3` or another installed kernelspec, no limit on kernels, five restarts of a kernel that ends within ten
    /// seconds each time, 2.5 s of grace, no culling, 30 s to attach to running kernels, logs kept for a week, 256 MiB
    /// for large messages, the caller's runtime, kernels that keep running when the manager is dropped.
    fn default() -> Self {
        Self {
            default_spec: None,
            max_kernels: None,
            max_kernels_per_owner: None,
            groups: BTreeMap::new(),
            restart_limit: 5,
            stable_after: Duration::from_secs(10),
            shutdown_grace: Duration::from_millis(2_500),
            culling: Culling::default(),
            restore_timeout: Duration::from_secs(30),
            log_retention: Duration::from_secs(7 * 24 * 60 * 60),
            message_memory: 256 << 20,
            recorder_runtime: None,
            end_kernels_on_drop: false,
        }
    }
}

/// Rules for the kernels of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupOptions {
    /// The most kernels of the group at a time; `None` for no limit.
    pub max_kernels: Option<usize>,
    /// The most kernels of each owner in the group, in place of [`ManagerOptions::max_kernels_per_owner`].
    pub max_kernels_per_owner: Option<usize>,
    /// When its kernels are ended, as far as that differs from other kernels'.
    pub culling: CullingRules,
}

impl GroupOptions {
    /// Limits the number of kernels at a time.
    #[must_use]
    pub fn with_max_kernels(mut self, max_kernels: usize) -> Self {
        self.max_kernels = Some(max_kernels);
        self
    }

    /// Limits the number of kernels of each owner in the group.
    #[must_use]
    pub fn with_max_kernels_per_owner(mut self, max_kernels_per_owner: usize) -> Self {
        self.max_kernels_per_owner = Some(max_kernels_per_owner);
        self
    }

    /// Sets when its kernels are ended.
    #[must_use]
    pub fn with_culling(mut self, culling: CullingRules) -> Self {
        self.culling = culling;
        self
    }
}

/// Rules that replace those of [`Culling`]; `None` replaces nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CullingRules {
    /// See [`Culling::idle_timeout`].
    pub idle_timeout: Option<Duration>,
    /// See [`Culling::connected`].
    pub connected: Option<bool>,
    /// See [`Culling::busy`].
    pub busy: Option<bool>,
    /// See [`Culling::max_age`].
    pub max_age: Option<Duration>,
}

impl CullingRules {
    /// Sets the idle time after which a kernel is ended; zero for never.
    #[must_use]
    pub fn with_idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.idle_timeout = Some(idle_timeout);
        self
    }

    /// Sets whether to end kernels with attached clients.
    #[must_use]
    pub fn with_connected(mut self, connected: bool) -> Self {
        self.connected = Some(connected);
        self
    }

    /// Sets whether to end busy kernels.
    #[must_use]
    pub fn with_busy(mut self, busy: bool) -> Self {
        self.busy = Some(busy);
        self
    }

    /// Sets the age at which a kernel is ended; zero for never.
    #[must_use]
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }
}

/// When kernels are ended. A kernelspec's `metadata` can override this for its kernels with `cull_idle_timeout` and
/// `cull_max_age` (in seconds), `cull_connected` and `cull_busy`, and [`GroupOptions::culling`] can override both.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Culling {
    /// Idle time after which a kernel is ended; zero for never.
    pub idle_timeout: Duration,
    /// How often to check.
    pub interval: Duration,
    /// Whether to end kernels with attached clients.
    pub connected: bool,
    /// Whether to end busy kernels.
    pub busy: bool,
    /// The age at which a kernel is ended, even if it is busy or has clients; zero for never. A restart of a kernel does
    /// not change its age.
    pub max_age: Duration,
    /// How long before its end attached clients are [warned](kernel_log::Lifecycle::Culling); zero for no warning. If
    /// the idle timeout or the greatest age is not longer, half of it. A kernel with attached clients is never ended
    /// earlier after a warning.
    pub warning: Duration,
}

impl Default for Culling {
    /// No culling and no warnings; an interval of 300 s.
    fn default() -> Self {
        Self {
            idle_timeout: Duration::ZERO,
            interval: Duration::from_secs(300),
            connected: false,
            busy: false,
            max_age: Duration::ZERO,
            warning: Duration::ZERO,
        }
    }
}

impl Culling {
    /// Ends kernels that have been idle for this long, unless clients are attached or code runs. Checks every 300 s.
    #[must_use]
    pub fn after(idle_timeout: Duration) -> Self {
        Self {
            idle_timeout,
            ..Self::default()
        }
    }

    /// Sets how often to check.
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets whether to end kernels with attached clients.
    #[must_use]
    pub fn with_connected(mut self, connected: bool) -> Self {
        self.connected = connected;
        self
    }

    /// Sets whether to end busy kernels.
    #[must_use]
    pub fn with_busy(mut self, busy: bool) -> Self {
        self.busy = busy;
        self
    }

    /// Sets the age at which a kernel is ended; zero for never.
    #[must_use]
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Sets how long before its end attached clients are warned.
    #[must_use]
    pub fn with_warning(mut self, warning: Duration) -> Self {
        self.warning = warning;
        self
    }
}

/// A request to start a kernel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StartRequest {
    /// Name of the kernelspec, such as `python3` or `local/python3`.
    pub spec: String,
    /// Id of the kernel; `None` for a random one.
    pub id: Option<KernelId>,
    /// Environment variables; they override the kernelspec's.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub working_dir: Option<PathBuf>,
    /// Owner of the kernel, to whom [`ManagerOptions::max_kernels_per_owner`] applies.
    pub owner: Option<String>,
    /// Groups for which the kernel counts, and whose [rules](ManagerOptions::groups) apply to it. If several groups have
    /// a rule, that of the first one applies. The groups are part of the kernel's record.
    pub groups: Vec<String>,
    /// Annotations in the kernel's [record](kernel_provider::KernelRecord), which outlives this process. They must not
    /// contain secrets.
    pub annotations: BTreeMap<String, String>,
    /// Timeout of the start.
    pub timeout: Duration,
    /// Receives the stages of the launch.
    pub progress: Progress,
}

impl StartRequest {
    /// A request with a random id, no environment, the provider's working directory, no owner, and a timeout of 60 s.
    #[must_use]
    pub fn new(spec: impl Into<String>) -> Self {
        Self {
            spec: spec.into(),
            id: None,
            env: BTreeMap::new(),
            working_dir: None,
            owner: None,
            groups: Vec::new(),
            annotations: BTreeMap::new(),
            timeout: Duration::from_secs(60),
            progress: Progress::ignored(),
        }
    }

    /// Sets the id of the kernel.
    #[must_use]
    pub fn with_id(mut self, id: KernelId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn with_working_dir(mut self, working_dir: impl Into<PathBuf>) -> Self {
        self.working_dir = Some(working_dir.into());
        self
    }

    /// Sets the owner.
    #[must_use]
    pub fn with_owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Sets the groups for which the kernel counts.
    #[must_use]
    pub fn with_groups(mut self, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.groups = groups.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an annotation to the kernel's record.
    #[must_use]
    pub fn with_annotation(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(name.into(), value.into());
        self
    }

    /// Sets the timeout of the start.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the receiver of the launch's stages, for example to show a progress bar.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }
}

impl From<&str> for StartRequest {
    fn from(spec: &str) -> Self {
        Self::new(spec)
    }
}

impl From<String> for StartRequest {
    fn from(spec: String) -> Self {
        Self::new(spec)
    }
}
