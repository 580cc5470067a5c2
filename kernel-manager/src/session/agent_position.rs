use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How much of an agent's log is recorded in the kernel's log. Stored in the index with the entries themselves, so that
/// each is recorded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgentPosition {
    /// The agent's log.
    pub(super) spool: Uuid,
    /// Its last recorded entry.
    pub(super) seq: u64,
    /// The number of the newest process up to this entry.
    pub(super) process: u64,
    /// Whether that process is gone, and all its messages are before this position.
    #[serde(default)]
    pub(super) is_closed: bool,
}
