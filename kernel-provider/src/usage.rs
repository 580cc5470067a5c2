use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The resources that a kernel uses, together with the processes that it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// CPU time of all cores so far.
    pub cpu: Duration,
    /// Resident memory in bytes. Memory that several processes share counts for each of them.
    pub memory: u64,
}

impl Usage {
    /// Creates a measurement.
    #[must_use]
    pub fn new(cpu: Duration, memory: u64) -> Self {
        Self { cpu, memory }
    }
}
