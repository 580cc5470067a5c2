use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use jupyter_protocol::WireMessage;
use memchr::memmem;
use serde::{Deserialize, Serialize};

/// A kernel's state, as the kernel reports it or as the manager sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ExecutionState {
    /// The kernel was launched and has not answered yet.
    Starting,
    /// The kernel is ready for a request.
    Idle,
    /// The kernel runs a request, or its state is unknown.
    Busy,
    /// The kernel is being restarted.
    Restarting,
    /// The kernel has ended.
    Dead,
}

impl ExecutionState {
    /// The state as messages contain it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Restarting => "restarting",
            Self::Dead => "dead",
        }
    }
}

/// Derives the state from a kernel's `status` messages. The kernel is busy while any request runs, on any channel: an
/// idle status for a control request does not mean that the code on shell has ended.
#[derive(Default)]
pub(super) struct StatusFollower {
    running: HashSet<String>,
    was_idle: bool,
}

/// The most concurrent requests that are tracked.
const MAX_RUNNING: usize = 1_024;

impl StatusFollower {
    /// The state after this iopub message, if it is a `status`.
    pub(super) fn follow(&mut self, message: &WireMessage) -> Option<ExecutionState> {
        // In a flood of output, few headers contain `"status"`, and searching is cheaper than parsing.
        memmem::find(message.header(), b"\"status\"")?;
        if message.header_ref().ok()?.msg_type != "status" {
            return None;
        }
        let request = message.parent_ref().ok()?.msg_id;
        match reported_state(message.content())? {
            ExecutionState::Busy => {
                if self.running.len() < MAX_RUNNING {
                    self.running.insert(request.into_owned());
                }
                Some(ExecutionState::Busy)
            }
            ExecutionState::Idle => {
                self.running.remove(&*request);
                Some(if self.running.is_empty() {
                    ExecutionState::Idle
                } else {
                    ExecutionState::Busy
                })
            }
            other => Some(other),
        }
    }

    /// Records that the kernel is idle, and returns whether this is the first time.
    pub(super) fn idle_for_the_first_time(&mut self) -> bool {
        !std::mem::replace(&mut self.was_idle, true)
    }
}

/// The state in the content of a `status` message.
pub(crate) fn reported_state(content: &Bytes) -> Option<ExecutionState> {
    #[derive(Deserialize)]
    struct Status<'a> {
        #[serde(borrow)]
        execution_state: &'a str,
    }
    match serde_json::from_slice::<Status<'_>>(content).ok()?.execution_state {
        "idle" => Some(ExecutionState::Idle),
        "busy" => Some(ExecutionState::Busy),
        "starting" => Some(ExecutionState::Starting),
        _ => None,
    }
}

impl fmt::Display for ExecutionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
