//! The kernels that one provider has launched or attached to, and a launch lock per kernel id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use jupyter_protocol::KernelId;
use tokio::sync::OwnedMutexGuard;

use crate::kernel::K8sKernel;

#[derive(Default)]
pub(crate) struct Registry {
    kernels: Mutex<HashMap<KernelId, Arc<K8sKernel>>>,
    launch_locks: Mutex<HashMap<KernelId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Registry {
    pub(crate) fn get(&self, id: KernelId) -> Option<Arc<K8sKernel>> {
        crate::lock(&self.kernels).get(&id).cloned()
    }

    pub(crate) fn insert(&self, kernel: &Arc<K8sKernel>) {
        crate::lock(&self.kernels).insert(kernel.id(), Arc::clone(kernel));
    }

    /// Adds a kernel unless a running one with its id is registered. Returns the registered kernel.
    pub(crate) fn insert_or_get(&self, kernel: Arc<K8sKernel>) -> Arc<K8sKernel> {
        let mut kernels = crate::lock(&self.kernels);
        match kernels.get(&kernel.id()).filter(|known| known.exit().is_none()) {
            Some(known) => Arc::clone(known),
            None => {
                kernels.insert(kernel.id(), Arc::clone(&kernel));
                kernel
            }
        }
    }

    /// Removes this kernel. A newer kernel with the same id stays.
    pub(crate) fn remove(&self, kernel: &K8sKernel) {
        let mut kernels = crate::lock(&self.kernels);
        let is_it = |known: &Arc<K8sKernel>| std::ptr::eq(Arc::as_ptr(known), kernel);
        if kernels.get(&kernel.id()).is_some_and(is_it) {
            kernels.remove(&kernel.id());
        }
    }

    /// Locks launches of this id.
    ///
    /// Launches of one id run one after the other. Cleanup of a cancelled launch keeps the lock until its pod is gone.
    pub(crate) async fn launch_lock(&self, id: KernelId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut launch_locks = crate::lock(&self.launch_locks);
            launch_locks.retain(|_, lock| lock.strong_count() > 0);
            let lock = launch_locks.get(&id).and_then(Weak::upgrade).unwrap_or_default();
            launch_locks.insert(id, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }

    /// Whether this provider is launching the id, or cleaning up after a cancelled launch of it.
    pub(crate) fn is_launching(&self, id: KernelId) -> bool {
        let launch_locks = crate::lock(&self.launch_locks);
        launch_locks.get(&id).is_some_and(|lock| lock.strong_count() > 0)
    }
}
