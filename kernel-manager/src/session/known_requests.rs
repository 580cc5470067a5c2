//! The newest requests that were sent to a kernel.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// How many requests are kept in memory. Older ones are looked up in the log's index.
pub(super) const MAX_REQUESTS: usize = 4_096;

/// Whether a request was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Yes,
    No,
    /// It may be older than the requests in memory, so the log's index must be read.
    MaybeInIndex,
}

/// The `msg_id`s of the newest requests.
pub(super) struct KnownRequests {
    pub(super) known: HashSet<Arc<str>>,
    pub(super) in_order: VecDeque<Arc<str>>,
    /// Whether `known` has every request of the log.
    pub(super) all: bool,
}

impl KnownRequests {
    pub(super) fn insert(&mut self, msg_id: Arc<str>) {
        if self.known.insert(msg_id.clone()) {
            self.in_order.push_back(msg_id);
        }
        if self.in_order.len() > MAX_REQUESTS
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.known.remove(&oldest);
            self.all = false;
        }
    }
}
