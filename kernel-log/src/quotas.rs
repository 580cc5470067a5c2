//! Limits on the total bytes of many logs, and their current usage.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;
use tokio::sync::{Notify, OnceCell};

use super::{LogInfo, LogOptions};

/// When a quota is exceeded, 1/32 of it is freed in addition, so that the next blocks do not exceed it again.
const FREED_PART: u64 = 32;

/// The quotas of a store's logs. When a log changes its size, only the difference is added to the totals.
pub(super) struct Quotas {
    total_bytes: Option<u64>,
    owner_bytes: Option<u64>,
    usage: Mutex<Usage>,
    /// Notified when a log grows while a quota is exceeded.
    exceeded: Notify,
    /// Set once the logs that the store had at the start are counted.
    pub(super) loaded: OnceCell<()>,
}

#[derive(Default)]
struct Usage {
    logs: HashMap<KernelId, LogUsage>,
    total: u64,
    by_owner: HashMap<Arc<str>, u64>,
}

struct LogUsage {
    owner: Option<Arc<str>>,
    bytes: u64,
    updated: DateTime<Utc>,
}

/// A limit on the bytes of some logs.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    /// The owner of the logs; `None` for all logs.
    pub(super) owner: Option<Arc<str>>,
    limit: u64,
}

/// A log that counts for a quota.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) id: KernelId,
    pub(super) bytes: u64,
    pub(super) updated: DateTime<Utc>,
}

impl Quotas {
    /// The quotas of these options; `None` if there are none.
    pub(super) fn new(options: &LogOptions) -> Option<Self> {
        let has_any = options.total_bytes.is_some() || options.owner_bytes.is_some();
        has_any.then(|| Self {
            total_bytes: options.total_bytes,
            owner_bytes: options.owner_bytes,
            usage: Mutex::default(),
            exceeded: Notify::new(),
            loaded: OnceCell::new(),
        })
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        // Only the allocator could fail while the lock is held, and that aborts the process.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the logs of the store's list. For logs that are already counted, only the owner is taken from the list,
    /// because the listed size may be outdated.
    pub(super) fn load(&self, infos: &[LogInfo]) {
        let mut usage = self.usage();
        for info in infos {
            let known = usage.logs.get(&info.id);
            let (bytes, updated) = known.map_or((info.bytes, info.updated), |log| (log.bytes, log.updated));
            usage.add(info.id, info.owner.as_deref(), bytes, updated);
        }
    }

    /// Adds a log that was opened.
    pub(super) fn add(&self, id: KernelId, owner: Option<&str>, bytes: u64) {
        self.usage().add(id, owner, bytes, Utc::now());
    }

    /// Records that a log has grown to this size.
    pub(super) fn has_grown(&self, id: KernelId, bytes: u64) {
        let mut usage = self.usage();
        let Some(owner) = usage.set_bytes(id, bytes, Some(Utc::now())) else {
            return;
        };
        let of_owner = owner.and_then(|owner| usage.by_owner.get(&owner).copied());
        let is_exceeded = is_over(usage.total, self.total_bytes) || is_over(of_owner.unwrap_or(0), self.owner_bytes);
        drop(usage);
        if is_exceeded {
            self.exceeded.notify_waiters();
        }
    }

    /// Records that a log was trimmed to this size.
    pub(super) fn was_trimmed(&self, id: KernelId, bytes: u64) {
        self.usage().set_bytes(id, bytes, None);
    }

    /// Records that a log was removed.
    pub(super) fn remove(&self, id: KernelId) {
        self.usage().remove(id);
    }

    /// Waits until a quota is exceeded.
    pub(super) async fn exceeded(&self) {
        loop {
            let exceeded = self.exceeded.notified();
            if !self.exceeded_now().is_empty() {
                return;
            }
            exceeded.await;
        }
    }

    /// The quotas that are exceeded, those of owners first.
    pub(super) fn exceeded_now(&self) -> Vec<Quota> {
        let usage = self.usage();
        let owners = self.owner_bytes.into_iter().flat_map(|limit| {
            let over = usage.by_owner.iter().filter(move |(_, bytes)| **bytes > limit);
            over.map(move |(owner, _)| Quota {
                owner: Some(owner.clone()),
                limit,
            })
        });
        let total = self.total_bytes.filter(|limit| usage.total > *limit);
        owners.chain(total.map(|limit| Quota { owner: None, limit })).collect()
    }

    fn used(&self, quota: &Quota) -> u64 {
        let usage = self.usage();
        match &quota.owner {
            Some(owner) => usage.by_owner.get(owner).copied().unwrap_or(0),
            None => usage.total,
        }
    }

    pub(super) fn is_exceeded(&self, quota: &Quota) -> bool {
        self.used(quota) > quota.limit
    }

    /// How many bytes are to be freed for a quota that was exceeded.
    pub(super) fn excess(&self, quota: &Quota) -> u64 {
        self.used(quota).saturating_sub(quota.limit - quota.limit / FREED_PART)
    }

    /// The logs that count for a quota, the least recently written first.
    pub(super) fn logs(&self, quota: &Quota) -> Vec<Counted> {
        let usage = self.usage();
        let mut logs: Vec<_> = usage
            .logs
            .iter()
            .filter(|(_, log)| quota.owner.is_none() || log.owner == quota.owner)
            .map(|(id, log)| Counted {
                id: *id,
                bytes: log.bytes,
                updated: log.updated,
            })
            .collect();
        logs.sort_unstable_by_key(|log| log.updated);
        logs
    }
}

fn is_over(bytes: u64, limit: Option<u64>) -> bool {
    limit.is_some_and(|limit| bytes > limit)
}

impl Usage {
    /// Adds a log, or updates its size and time. If it already has an owner, it keeps that owner.
    fn add(&mut self, id: KernelId, owner: Option<&str>, bytes: u64, updated: DateTime<Utc>) {
        let before = self.remove(id).and_then(|log| log.owner);
        let owner = before.or_else(|| owner.map(Arc::from));
        self.total += bytes;
        if let Some(owner) = &owner {
            *self.by_owner.entry(owner.clone()).or_default() += bytes;
        }
        self.logs.insert(id, LogUsage { owner, bytes, updated });
    }

    fn remove(&mut self, id: KernelId) -> Option<LogUsage> {
        let log = self.logs.remove(&id)?;
        self.total -= log.bytes;
        if let Some(owner) = &log.owner
            && let Some(bytes) = self.by_owner.get_mut(owner)
        {
            *bytes -= log.bytes;
            if *bytes == 0 {
                self.by_owner.remove(owner);
            }
        }
        Some(log)
    }

    /// Sets a log's size. Returns the log's owner, if it has one; `None` if the log is not counted.
    fn set_bytes(&mut self, id: KernelId, bytes: u64, updated: Option<DateTime<Utc>>) -> Option<Option<Arc<str>>> {
        let log = self.logs.get_mut(&id)?;
        let before = std::mem::replace(&mut log.bytes, bytes);
        log.updated = updated.unwrap_or(log.updated);
        self.total = self.total - before + bytes;
        if let Some(owner) = &log.owner {
            let of_owner = self.by_owner.entry(owner.clone()).or_default();
            *of_owner = *of_owner - before + bytes;
        }
        Some(log.owner.clone())
    }
}

/// The size to which logs of these sizes must be trimmed to free `excess` bytes in total. Logs below that size keep all
/// of their bytes.
pub(super) fn level(mut sizes: Vec<u64>, excess: u64) -> u64 {
    sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
    let mut largest = 0;
    for (index, size) in sizes.iter().enumerate() {
        largest += size;
        let Some(left) = largest.checked_sub(excess) else {
            continue;
        };
        let level = left / (index as u64 + 1);
        if level >= sizes.get(index + 1).copied().unwrap_or(0) {
            return level;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_largest_logs_are_trimmed() {
        assert_eq!(level(vec![10, 100, 30], 20), 80);
        assert_eq!(level(vec![10, 100, 90], 50), 70);
        assert_eq!(level(vec![10, 100, 90], 190), 3);
        assert_eq!(level(vec![50, 50], 10), 45);
        assert_eq!(level(vec![5], 5), 0);
        assert_eq!(level(vec![5, 3], 9), 0);
        assert_eq!(level(Vec::new(), 9), 0);
    }

    #[test]
    fn bytes_are_counted_for_their_owner_and_in_total() {
        let options = LogOptions::default().with_total_bytes(1_000).with_owner_bytes(500);
        let quotas = Quotas::new(&options).unwrap();
        let [ann, bob, unowned] = [(); 3].map(|()| KernelId::random());
        let over = || {
            let exceeded = quotas.exceeded_now();
            let owners = exceeded
                .iter()
                .map(|quota| quota.owner.as_deref().unwrap_or("all").to_owned());
            owners.collect::<Vec<_>>()
        };
        quotas.add(ann, Some("ann"), 0);
        quotas.has_grown(ann, 501);
        assert_eq!(over(), ["ann"]);
        assert_eq!(quotas.excess(&quotas.exceeded_now()[0]), 501 - (500 - 500 / 32));
        // The size in the store's list is older than the known size of an open log, so only its owner is used.
        quotas.add(bob, None, 400);
        let mut info = LogInfo::new(bob, crate::Epoch::random());
        (info.owner, info.bytes) = (Some("bob".to_owned()), 7);
        quotas.load(&[info]);
        quotas.has_grown(unowned, 1_000_000);
        assert_eq!(over(), ["ann"]);
        quotas.add(unowned, None, 300);
        assert_eq!(over(), ["ann", "all"]);
        quotas.was_trimmed(ann, 200);
        assert_eq!(over(), [""; 0]);
        quotas.has_grown(bob, 501);
        assert_eq!(over(), ["bob", "all"]);
        quotas.remove(bob);
        quotas.remove(bob);
        assert_eq!(over(), [""; 0]);
        let total = Quota { owner: None, limit: 1 };
        assert_eq!(quotas.excess(&total), 499);
    }
}
