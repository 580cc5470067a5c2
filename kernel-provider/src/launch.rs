use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::kernelspec::{SearchPath, canonical_name, find_kernelspecs};
use jupyter_protocol::{InstalledKernelspec, KernelId};

/// A request to launch a kernel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LaunchRequest {
    /// Id of the kernel, chosen by the caller.
    pub id: KernelId,
    /// Name of the kernelspec at the provider, such as `python3`.
    pub spec: String,
    /// Environment variables; they override the kernelspec's.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` for the provider's default.
    pub working_dir: Option<PathBuf>,
    /// Owner of the kernel, if it has one.
    pub owner: Option<String>,
    /// Data of the embedder that is kept in the kernel's record, so a restarted embedder finds it there. The provider
    /// does not interpret it. It must not contain secrets.
    pub annotations: BTreeMap<String, String>,
    /// Timeout of the launch.
    pub timeout: Duration,
}

impl LaunchRequest {
    /// A request with no environment, the provider's working directory, no owner, and a timeout of 60 s.
    #[must_use]
    pub fn new(id: KernelId, spec: impl Into<String>) -> Self {
        Self {
            id,
            spec: spec.into(),
            env: BTreeMap::new(),
            working_dir: None,
            owner: None,
            annotations: BTreeMap::new(),
            timeout: Duration::from_secs(60),
        }
    }
}

/// The progress of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LaunchStage {
    /// The machine or node for the kernel was chosen.
    Scheduled,
    /// Files are being fetched; the text names them.
    Pulling(String),
    /// No kernel that was started in advance could be used, so a new one starts; the text has the reason.
    Cold(String),
    /// The process was started.
    Starting,
    /// The sockets accept connections.
    Ready,
}

/// Receives the progress of a launch.
#[derive(Clone)]
pub struct Progress(Option<Arc<dyn Fn(LaunchStage) + Send + Sync>>);

impl Progress {
    /// Calls `report` at each stage. It must not block.
    pub fn new(report: impl Fn(LaunchStage) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(report)))
    }

    /// Discards all reports.
    #[must_use]
    pub fn ignored() -> Self {
        Self(None)
    }

    /// Reports a stage; called by providers.
    pub fn report(&self, stage: LaunchStage) {
        if let Some(report) = &self.0 {
            report(stage);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// The kernelspecs that a provider can launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Specs {
    /// Usable kernelspecs by name.
    pub by_name: BTreeMap<String, InstalledKernelspec>,
    /// Errors of unusable kernelspecs by name. Each text names the file.
    pub broken: BTreeMap<String, String>,
}

impl Specs {
    /// Searches for kernelspecs and logs folders that cannot be read. Blocks on the file system.
    #[must_use]
    pub fn find(search: &SearchPath) -> Self {
        let found = find_kernelspecs(search);
        for warning in &found.warnings {
            tracing::warn!(%warning, "skipping a kernelspec folder");
        }
        let broken = found.broken.into_iter();
        Self {
            by_name: found.kernelspecs,
            broken: broken.map(|(name, error)| (name, error.to_string())).collect(),
        }
    }

    /// The kernelspec that a name [refers to](canonical_name).
    #[must_use]
    pub fn canonical(&self, name: &str) -> Option<String> {
        canonical_name(name, |name| {
            self.by_name.contains_key(name) || self.broken.contains_key(name)
        })
    }

    /// Logs unusable kernelspecs that were not in `before`.
    pub fn warn_of_broken(&self, before: &Self) {
        for (name, reason) in &self.broken {
            if before.broken.get(name) != Some(reason) {
                tracing::warn!(kernelspec = name, reason, "a kernelspec cannot be used");
            }
        }
    }
}
