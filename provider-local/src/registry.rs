//! The kernels of one provider, by id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kernel_provider::KernelId;

use crate::kernel::LocalKernel;

/// The kernels that run, and those that ended by themselves and are remembered.
#[derive(Default)]
pub(crate) struct Registry {
    kernels: Mutex<Kernels>,
    launches: Mutex<HashMap<KernelId, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct Kernels {
    by_id: HashMap<KernelId, Arc<LocalKernel>>,
    /// Those that have ended, the eldest end first. Some of them may run again.
    ended: Vec<KernelId>,
}

/// A place in the queue of those who launch the same id; the lock in it is to be taken.
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

    /// Adds a kernel; the one that had its id before is given back.
    pub(crate) fn insert(&self, kernel: &Arc<LocalKernel>) -> Option<Arc<LocalKernel>> {
        crate::lock(&self.kernels).by_id.insert(kernel.id(), Arc::clone(kernel))
    }

    /// Removes this kernel; one that has its id by now stays.
    pub(crate) fn remove(&self, kernel: &LocalKernel) {
        let mut kernels = crate::lock(&self.kernels);
        if kernels.has(kernel) {
            kernels.by_id.remove(&kernel.id());
            kernels.ended.retain(|id| *id != kernel.id());
        }
    }

    /// This kernel has ended. Only `keep` of those that have are remembered. Blocks shortly, on files.
    pub(crate) fn ended(&self, kernel: &LocalKernel, keep: usize) {
        let mut forgotten = Vec::new();
        {
            let mut kernels = crate::lock(&self.kernels);
            if !kernels.has(kernel) {
                return;
            }
            let Kernels { by_id, ended } = &mut *kernels;
            ended.retain(|id| *id != kernel.id() && by_id.get(id).is_some_and(|known| known.exit().is_some()));
            ended.push(kernel.id());
            for id in ended.drain(..ended.len().saturating_sub(keep)) {
                forgotten.extend(by_id.remove(&id));
            }
        }
        for kernel in forgotten {
            kernel.discard();
        }
    }

    /// Launches of one id come one after the other: the second finds the kernel of the first.
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
        // The map's and this one: nobody else waits.
        if Arc::strong_count(&self.lock) == 2 {
            launches.remove(&self.id);
        }
    }
}
