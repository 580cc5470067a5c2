use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Handle;

use jupyter_protocol::KernelId;

/// Options of a [`Manager`](super::Manager).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ManagerOptions {
    /// The kernelspec of a start without a name; such a start fails if it does not exist. `None` selects `python3`,
    /// else the first Python kernelspec, else the first one.
    pub default_spec: Option<String>,
    /// The most kernels at a time, including those that are starting; `None` for no limit.
    pub max_kernels: Option<usize>,
    /// The most kernels of one owner at a time; `None` for no limit.
    pub max_kernels_per_owner: Option<usize>,
    /// How often a kernel that ends by itself is restarted before it counts as dead. The count resets when it ran for
    /// longer than [`stable_after`](Self::stable_after).
    pub restart_limit: u32,
    /// How long a kernel must run for its earlier crashes to be forgotten.
    pub stable_after: Duration,
    /// How long a kernel has to end after a shutdown request, and again after SIGTERM, before it is killed.
    pub shutdown_grace: Duration,
    /// When idle kernels are ended.
    pub culling: Culling,
    /// How long [`restore`](super::Manager::restore) waits for all kernels together. Those that still start after that
    /// are attached later.
    pub restore_patience: Duration,
    /// How long a log is kept after its kernel is gone.
    pub log_retention: Duration,
    /// Budget in bytes for the large messages of all kernels while they are received and stored; see
    /// [`MessageMemory`](jupyter_protocol::zmq::MessageMemory). The store's own copies come on top.
    pub message_memory: u64,
    /// The runtime that reads iopub; `None` for the one that starts the kernels. A separate runtime reads iopub in time
    /// even if clients keep the other threads busy; many kernels drop output that is not read in time. It must outlive
    /// the manager.
    pub recorder_runtime: Option<Handle>,
}

impl Default for ManagerOptions {
    /// `python3`, no limits, five restarts within ten seconds each, 2.5 s of grace, no culling, 30 s for running
    /// kernels, logs kept for a week, 256 MiB for large messages, the caller's runtime.
    fn default() -> Self {
        Self {
            default_spec: None,
            max_kernels: None,
            max_kernels_per_owner: None,
            restart_limit: 5,
            stable_after: Duration::from_secs(10),
            shutdown_grace: Duration::from_millis(2_500),
            culling: Culling::default(),
            restore_patience: Duration::from_secs(30),
            log_retention: Duration::from_secs(7 * 24 * 60 * 60),
            message_memory: 256 << 20,
            recorder_runtime: None,
        }
    }
}

/// When idle kernels are ended. A kernelspec's `metadata` overrides this for its kernels, with the names of the command
/// line: `cull_idle_timeout` in seconds, `cull_connected`, `cull_busy`.
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
}

impl Default for Culling {
    /// Never; checks every 300 s.
    fn default() -> Self {
        Self {
            idle_timeout: Duration::ZERO,
            interval: Duration::from_secs(300),
            connected: false,
            busy: false,
        }
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
    /// Owner.
    pub owner: Option<String>,
    /// Timeout of the start.
    pub timeout: Duration,
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
            timeout: Duration::from_secs(60),
        }
    }
}
