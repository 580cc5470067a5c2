//! A provider for tests. Its kernels are tasks of this process, and the test decides how they fail and end.
//!
//! The kernels speak the real protocol over real sockets, so everything above a provider can be tested without an
//! installed kernel.
//!
//! ```
//! use jupyter_protocol::KernelId;
//! use kernel_provider::fake::{FakeProvider, FakeSpec};
//! use kernel_provider::{ExitCause, KernelProvider as _, LaunchError, LaunchRequest, Progress};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let provider = FakeProvider::new();
//! provider.install("full", FakeSpec::failing(LaunchError::NoRoom { reason: "no GPU is free".to_owned() }));
//! let full = provider.launch(LaunchRequest::new(KernelId::random(), "full"), Progress::ignored()).await;
//! assert!(matches!(full.err(), Some(LaunchError::NoRoom { .. })));
//!
//! let id = KernelId::random();
//! let kernel = provider.launch(LaunchRequest::new(id, "echo"), Progress::ignored()).await?;
//! provider.end(id, ExitCause::OutOfMemory);
//! assert_eq!(kernel.wait().await.cause, ExitCause::OutOfMemory);
//! # Ok(())
//! # }
//! ```

mod echo;
mod kernel;
mod spec;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jupyter_protocol::{InstalledKernelspec, KernelId};
use tokio::sync::watch;

pub use spec::FakeSpec;

use self::kernel::{FakeHandle, FakeKernel};
use crate::{
    AttachError, ExitCause, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, LaunchStage,
    Progress, ProviderError, Selector, Specs, lock,
};

/// A provider of fake kernels.
///
/// A clone acts as the provider of a restarted embedder: it lists and attaches to the same kernels. A kernel ends when
/// all clones and all handles of the kernel are dropped.
#[derive(Clone)]
pub struct FakeProvider {
    name: String,
    backend: Arc<Backend>,
}

impl fmt::Debug for FakeProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeProvider").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Backend {
    kernelspecs: Mutex<BTreeMap<String, FakeSpec>>,
    specs: watch::Sender<Arc<Specs>>,
    kernels: Mutex<HashMap<KernelId, Slot>>,
}

/// The kernel with one id. A launch holds the lock.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<FakeKernel>>>>;

impl Default for FakeProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeProvider {
    /// A provider named `fake` with the kernelspec `echo`; see [`FakeSpec::echo`].
    #[must_use]
    pub fn new() -> Self {
        let provider = Self {
            name: "fake".to_owned(),
            backend: Arc::default(),
        };
        provider.install("echo", FakeSpec::echo());
        provider
    }

    /// Sets the name, which must not contain a slash.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Adds or replaces a kernelspec and notifies watchers.
    pub fn install(&self, name: impl Into<String>, spec: FakeSpec) {
        let mut kernelspecs = lock(&self.backend.kernelspecs);
        kernelspecs.insert(name.into(), spec);
        self.publish_specs(&kernelspecs);
    }

    /// Removes a kernelspec and notifies watchers. Its kernels keep running.
    pub fn uninstall(&self, name: &str) {
        let mut kernelspecs = lock(&self.backend.kernelspecs);
        kernelspecs.remove(name);
        self.publish_specs(&kernelspecs);
    }

    fn publish_specs(&self, kernelspecs: &BTreeMap<String, FakeSpec>) {
        let by_name = kernelspecs.iter().map(|(name, spec)| {
            let installed = InstalledKernelspec {
                name: name.clone(),
                spec: spec.spec.clone(),
                resource_dir: PathBuf::new(),
            };
            (name.clone(), installed)
        });
        let specs = Specs {
            by_name: by_name.collect(),
            broken: BTreeMap::new(),
        };
        self.backend.specs.send_replace(Arc::new(specs));
    }

    /// Simulates that a kernel ends by itself with this cause. Does nothing if the kernel does not run.
    pub fn end(&self, id: KernelId, cause: ExitCause) {
        if let Some(kernel) = self.find(id) {
            kernel.ended(cause);
        }
    }

    /// Adds to a kernel's output outside the protocol. Does nothing for an unknown kernel.
    pub fn write_output(&self, id: KernelId, text: &str) {
        if let Some(kernel) = self.find(id) {
            kernel.write(text);
        }
    }

    /// How often a kernel was interrupted; 0 for an unknown one.
    #[must_use]
    pub fn interrupts(&self, id: KernelId) -> usize {
        self.find(id).map_or(0, |kernel| kernel.interrupts())
    }

    /// How many kernels run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.kernels().len()
    }

    fn slot(&self, id: KernelId) -> Slot {
        Arc::clone(lock(&self.backend.kernels).entry(id).or_default())
    }

    /// A launched kernel, even if it has ended.
    fn find(&self, id: KernelId) -> Option<Arc<FakeKernel>> {
        let slot = lock(&self.backend.kernels).get(&id).cloned()?;
        // A held lock means that the launch has not finished.
        slot.try_lock().ok()?.clone()
    }

    fn kernels(&self) -> Vec<Arc<FakeKernel>> {
        let ids: Vec<KernelId> = lock(&self.backend.kernels).keys().copied().collect();
        ids.into_iter()
            .filter_map(|id| self.find(id))
            .filter(|kernel| kernel.exit().is_none())
            .collect()
    }
}

#[async_trait]
impl KernelProvider for FakeProvider {
    fn name(&self) -> &str {
        &self.name
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.backend.specs.subscribe()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        let slot = self.slot(request.id);
        let mut slot = slot.lock().await;
        if let Some(kernel) = slot.as_ref().filter(|kernel| kernel.exit().is_none()) {
            progress.report(LaunchStage::Ready);
            return Ok(Arc::new(FakeHandle(Arc::clone(kernel))));
        }
        let spec = {
            let kernelspecs = lock(&self.backend.kernelspecs);
            let spec = kernelspecs.get(&request.spec).cloned();
            spec.ok_or_else(|| LaunchError::NoSuchSpec {
                known: kernelspecs.keys().cloned().collect::<Vec<_>>().join(", "),
                spec: request.spec.clone(),
            })?
        };
        let record = KernelRecord::new(
            &self.name,
            request.id,
            request.spec,
            request.owner,
            chrono::Utc::now(),
            serde_json::Value::Null,
        )
        .with_annotations(request.annotations);
        let kernel = FakeKernel::launch(record, spec, request.timeout, &progress).await?;
        *slot = Some(Arc::clone(&kernel));
        Ok(Arc::new(FakeHandle(kernel)))
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        Ok(self
            .kernels()
            .into_iter()
            .map(|kernel| kernel.record.clone())
            .filter(|record| selector.matches(record))
            .collect())
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        if record.provider != self.name {
            return Err(AttachError::Foreign {
                theirs: record.provider.clone(),
                ours: self.name.clone(),
            });
        }
        let cause = match self.find(record.id) {
            Some(kernel) => match kernel.exit() {
                None => return Ok(Arc::new(FakeHandle(kernel))),
                Some(exit) => exit.cause,
            },
            None => ExitCause::Unknown("it was never launched here".to_owned()),
        };
        Err(AttachError::Gone { id: record.id, cause })
    }
}
