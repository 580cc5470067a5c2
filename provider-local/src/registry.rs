//! The kernels of one provider, by id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jupyter_protocol::KernelId;

use crate::kernel::LocalKernel;

/// Running kernels, and remembered ones that ended by themselves.
#[derive(Default)]
pub(crate) struct Registry {
    kernels: Mutex<Kernels>,
    launches: Mutex<HashMap<KernelId, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct Kernels {
    by_id: HashMap<KernelId, Arc<LocalKernel>>,
    /// Ids of ended kernels, oldest end first. Some of them may have been restarted.
    ended: Vec<KernelId>,
}

/// A launch's handle to the lock of its kernel id. The caller takes the lock.
pub(crate) struct LaunchLock<'a> {
    registry: &'a Registry,
    id: KernelId,
    pub(crate) lock: Arc<tokio::sync::Mutex<()>>,
}

impl Registry {
    pub(crate) fn get(&self, id: KernelId) -> Option<Arc<LocalKernel>> {
        crate::lock(&self.kernels).by_id.get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<LocalKernel>> {
        crate::lock(&self.kernels).by_id.values().cloned().collect()
    }

    /// Adds a kernel. Returns the previous kernel with its id.
    pub(crate) fn insert(&self, kernel: &Arc<LocalKernel>) -> Option<Arc<LocalKernel>> {
        crate::lock(&self.kernels).by_id.insert(kernel.id(), Arc::clone(kernel))
    }

    /// Removes this kernel. A newer kernel with the same id stays.
    pub(crate) fn remove(&self, kernel: &LocalKernel) {
        let mut kernels = crate::lock(&self.kernels);
        if kernels.has(kernel) {
            kernels.by_id.remove(&kernel.id());
            kernels.ended.retain(|id| *id != kernel.id());
        }
    }

    /// Records that a kernel has ended, and discards all but the newest `keep` ended kernels. Blocks briefly on files.
    pub(crate) fn ended(&self, kernel: &LocalKernel, keep: usize) {
        let mut discarded = Vec::new();
        {
            let mut kernels = crate::lock(&self.kernels);
            if !kernels.has(kernel) {
                return;
            }
            let Kernels { by_id, ended } = &mut *kernels;
            ended.retain(|id| *id != kernel.id() && by_id.get(id).is_some_and(|known| known.exit().is_some()));
            ended.push(kernel.id());
            for id in ended.drain(..ended.len().saturating_sub(keep)) {
                discarded.extend(by_id.remove(&id));
            }
        }
        for kernel in discarded {
            kernel.discard();
        }
    }

    /// Returns the lock for launches of this id. Launches run one after the other, so the second one finds the kernel
    /// of the first.
    pub(crate) fn launch_lock(&self, id: KernelId) -> LaunchLock<'_> {
        let lock = Arc::clone(crate::lock(&self.launches).entry(id).or_default());
        LaunchLock {
            registry: self,
            id,
            lock,
        }
    }
}

impl Kernels {
    fn has(&self, kernel: &LocalKernel) -> bool {
        self.by_id
            .get(&kernel.id())
            .is_some_and(|known| std::ptr::eq(&raw const **known, kernel))
    }
}

impl Drop for LaunchLock<'_> {
    fn drop(&mut self) {
        let mut launches = crate::lock(&self.registry.launches);
        // Only the map and this handle refer to the lock, so no other launch is waiting.
        if Arc::strong_count(&self.lock) == 2 {
            launches.remove(&self.id);
        }
    }
}
