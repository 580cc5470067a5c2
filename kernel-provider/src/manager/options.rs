use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::KernelId;

/// How a manager treats its kernels.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ManagerOptions {
    /// The kernelspec that a start without a name takes; it fails where there is none of this name. `None` takes
    /// `python3`, else the first kernelspec of a Python kernel, else the first.
    pub default_spec: Option<String>,
    /// The most kernels at a time, those that start included; `None` for no limit.
    pub max_kernels: Option<usize>,
    /// The most kernels of one owner at a time; `None` for no limit.
    pub max_kernels_per_owner: Option<usize>,
    /// How often a kernel that ends by itself is started anew before it counts as dead. A kernel that ran for longer
    /// than [`stable_after`](Self::stable_after) starts counting anew.
    pub restart_limit: u32,
    /// After how long a kernel's earlier ends are forgotten.
    pub stable_after: Duration,
    /// How long a kernel has to end after it was asked to by message, and again after it was asked to by its provider
    /// (SIGTERM), before it is made to.
    pub shutdown_grace: Duration,
    /// When kernels that nobody uses are ended.
    pub culling: Culling,
    /// How long [`restore`](super::Manager::restore) waits for all kernels together, before it leaves those that are still
    /// being started for later.
    pub restore_patience: Duration,
    /// How long a log outlives its kernel, so that a result can be read after the kernel is gone.
    pub log_retention: Duration,
    /// How many bytes the large messages of all kernels may take together while they are received and stored; as
    /// [`MessageMemory`](jupyter_protocol::zmq::MessageMemory) has it. What the store takes for them comes on top.
    pub message_memory: u64,
    /// The runtime whose threads read what kernels publish; `None` for the one that kernels are started on. With a
    /// runtime of its own, that is read in time however busy clients keep the other threads: many kernels drop what is
    /// not. It must outlive the manager.
    pub recorder_runtime: Option<Handle>,
}

impl Default for ManagerOptions {
    /// `python3`, no limits, five restarts within ten seconds each, 2.5 s of grace, no culling, 30 s for kernels that
    /// run already, logs kept for a week, 256 MiB for large messages, the caller's runtime.
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

/// When kernels that nobody uses are ended. A kernelspec's `metadata` may say otherwise for its kernels, by the same
/// names as the command line has them: `cull_idle_timeout` in seconds, `cull_connected`, `cull_busy`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Culling {
    /// How long a kernel may be inactive; zero for ever.
    pub idle_timeout: Duration,
    /// How often to look.
    pub interval: Duration,
    /// Whether kernels with clients attached are ended too.
    pub connected: bool,
    /// Whether kernels that run something are ended too.
    pub busy: bool,
}

impl Default for Culling {
    /// Never; looks every 300 s.
    fn default() -> Self {
        Self {
            idle_timeout: Duration::ZERO,
            interval: Duration::from_secs(300),
            connected: false,
            busy: false,
        }
    }
}

/// A kernel to be started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StartRequest {
    /// The kernelspec's name, such as `python3` or `local/python3`.
    pub spec: String,
    /// The kernel's id; a random one where `None`.
    pub id: Option<KernelId>,
    /// Environment variables for the kernel, over those of its kernelspec.
    pub env: BTreeMap<String, String>,
    /// Where the kernel starts.
    pub working_dir: Option<PathBuf>,
    /// Whose kernel it is.
    pub owner: Option<String>,
    /// The longest that the start may take.
    pub timeout: Duration,
}

impl StartRequest {
    /// A request with a random id, no environment, the provider's working directory, no owner, and 60 s.
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
