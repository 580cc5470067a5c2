use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jupyter_protocol::KernelId;
use tokio::sync::watch;

use super::{Counted, ManagerOptions, StartError};
use crate::kernel::Kernel;

/// The kernels by id, including those that are starting.
#[derive(Default)]
pub(super) struct Registry {
    kernels: Arc<Mutex<Kernels>>,
    starting: watch::Sender<usize>,
}

#[derive(Default)]
struct Kernels {
    by_id: HashMap<KernelId, Slot>,
    closed: bool,
}

struct Slot {
    owner: Option<String>,
    /// The groups that the kernel counts for.
    groups: Vec<String>,
    /// `None` while the kernel is starting.
    kernel: Option<Arc<Kernel>>,
}

/// The reservation of an id for a kernel that is starting. Dropping it without [`fill`](Self::fill) releases the id.
pub(super) struct Reserved<'a> {
    registry: &'a Registry,
    id: KernelId,
    filled: bool,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Kernels> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves an id within the limits.
    pub(super) fn reserve(
        &self,
        id: KernelId,
        owner: Option<&str>,
        groups: &[String],
        options: &ManagerOptions,
    ) -> Result<Reserved<'_>, StartError> {
        let mut kernels = self.lock();
        if kernels.by_id.contains_key(&id) {
            return Err(StartError::Duplicate(id));
        }
        let check = |limit: Option<usize>, counted: Counted, counts: &dyn Fn(&Slot) -> bool| match limit {
            Some(limit) if kernels.by_id.values().filter(|slot| counts(slot)).count() >= limit => {
                Err(StartError::LimitReached { limit, counted })
            }
            _ => Ok(()),
        };
        check(options.max_kernels, Counted::All, &|_| true)?;
        for group in groups {
            let limit = options.groups.get(group).and_then(|group| group.max_kernels);
            check(limit, Counted::Group(group.clone()), &|slot| {
                slot.groups.contains(group)
            })?;
        }
        if let Some(owner) = owner {
            let of_group = |group: &String| options.groups.get(group)?.max_kernels_per_owner;
            let limit = groups.iter().find_map(of_group).or(options.max_kernels_per_owner);
            check(limit, Counted::Owner(owner.to_owned()), &|slot| {
                slot.owner.as_deref() == Some(owner)
            })?;
        }
        self.insert(&mut kernels, id, owner, groups)
    }

    /// Reserves an id for a running kernel, regardless of limits.
    pub(super) fn reserve_running(
        &self,
        id: KernelId,
        owner: Option<&str>,
        groups: &[String],
    ) -> Result<Reserved<'_>, StartError> {
        let mut kernels = self.lock();
        if kernels.by_id.contains_key(&id) {
            return Err(StartError::Duplicate(id));
        }
        self.insert(&mut kernels, id, owner, groups)
    }

    fn insert(
        &self,
        kernels: &mut Kernels,
        id: KernelId,
        owner: Option<&str>,
        groups: &[String],
    ) -> Result<Reserved<'_>, StartError> {
        if kernels.closed {
            return Err(StartError::ShuttingDown);
        }
        let owner = owner.map(str::to_owned);
        let slot = Slot {
            owner,
            groups: groups.to_vec(),
            kernel: None,
        };
        kernels.by_id.insert(id, slot);
        self.starting.send_modify(|starting| *starting += 1);
        Ok(Reserved {
            registry: self,
            id,
            filled: false,
        })
    }

    pub(super) fn get(&self, id: KernelId) -> Option<Arc<Kernel>> {
        self.lock().by_id.get(&id)?.kernel.clone()
    }

    /// Whether a kernel with this id exists or is starting.
    pub(super) fn contains(&self, id: KernelId) -> bool {
        self.lock().by_id.contains_key(&id)
    }

    pub(super) fn list(&self) -> Vec<Arc<Kernel>> {
        let mut kernels: Vec<_> = self
            .lock()
            .by_id
            .values()
            .filter_map(|slot| slot.kernel.clone())
            .collect();
        kernels.sort_by_key(|kernel| (kernel.launched(), kernel.id()));
        kernels
    }

    pub(super) fn remove(&self, id: KernelId) {
        self.lock().by_id.remove(&id);
    }

    /// Refuses further reservations.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    /// Waits until no kernel is starting.
    pub(super) async fn started(&self) {
        // `self` holds the sender, so this cannot fail.
        let _ = self.starting.subscribe().wait_for(|starting| *starting == 0).await;
    }
}

impl Reserved<'_> {
    pub(super) fn fill(mut self, kernel: Arc<Kernel>) {
        if let Some(slot) = self.registry.lock().by_id.get_mut(&self.id) {
            slot.kernel = Some(kernel);
        }
        self.filled = true;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.registry.remove(self.id);
        }
        self.registry.starting.send_modify(|starting| *starting -= 1);
    }
}
