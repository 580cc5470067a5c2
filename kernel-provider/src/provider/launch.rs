use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::InstalledKernelspec;
use jupyter_protocol::kernelspec::{SearchPath, canonical_name, find_kernelspecs};

use crate::KernelId;

/// A kernel to be started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LaunchRequest {
    /// The kernel's id, chosen by the caller.
    pub id: KernelId,
    /// The kernelspec's name within the provider, such as `python3`.
    pub spec: String,
    /// Environment variables for the kernel, over those of its kernelspec.
    pub env: BTreeMap<String, String>,
    /// Where the kernel starts; the provider's default where `None`.
    pub working_dir: Option<PathBuf>,
    /// Whose kernel it is.
    pub owner: Option<String>,
    /// The longest that the launch may take.
    pub timeout: Duration,
}

impl LaunchRequest {
    /// A request with no environment, the provider's working directory, no owner, and 60 s.
    #[must_use]
    pub fn new(id: KernelId, spec: impl Into<String>) -> Self {
        Self {
            id,
            spec: spec.into(),
            env: BTreeMap::new(),
            working_dir: None,
            owner: None,
            timeout: Duration::from_secs(60),
        }
    }
}

/// How far a launch has come.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LaunchStage {
    /// A place for the kernel is known.
    Scheduled,
    /// What it runs from is being fetched; the text says what.
    Pulling(String),
    /// None of the kernels that the provider keeps ready is taken, and one is started; the text says why.
    Cold(String),
    /// The kernel's process has been started.
    Starting,
    /// Its sockets can be connected to.
    Ready,
}

/// Where a provider reports how far a launch has come.
#[derive(Clone)]
pub struct Progress(Option<Arc<dyn Fn(LaunchStage) + Send + Sync>>);

impl Progress {
    /// Calls `report` at each stage. It must not block.
    pub fn new(report: impl Fn(LaunchStage) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(report)))
    }

    /// Reports to nobody.
    #[must_use]
    pub fn ignored() -> Self {
        Self(None)
    }

    /// For providers: the launch has come to this stage.
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

/// What a provider can launch, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Specs {
    /// The kernelspecs by name.
    pub by_name: BTreeMap<String, InstalledKernelspec>,
    /// What is wrong with those that cannot be used, by name. The text names the file.
    pub broken: BTreeMap<String, String>,
}

impl Specs {
    /// Searches for kernelspecs and logs the folders that cannot be read. Blocks on the file system.
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

    /// The name that `name` [means](canonical_name) here.
    #[must_use]
    pub fn canonical(&self, name: &str) -> Option<String> {
        canonical_name(name, |name| {
            self.by_name.contains_key(name) || self.broken.contains_key(name)
        })
    }

    /// Logs the kernelspecs that cannot be used and were not known to be so `before`.
    pub fn warn_of_broken(&self, before: &Self) {
        for (name, reason) in &self.broken {
            if before.broken.get(name) != Some(reason) {
                tracing::warn!(kernelspec = name, reason, "a kernelspec cannot be used");
            }
        }
    }
}
