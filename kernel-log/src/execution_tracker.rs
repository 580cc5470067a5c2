use jupyter_protocol::content::{Content, ExecutionState};
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use memchr::memmem;

use crate::Lifecycle;

/// Follows one execution through a kernel's log. It finds the messages that belong to the execution, interprets
/// life-cycle events, and detects the end.
///
/// It does not read the log itself. Pass it each entry after the request in order: the kernel's messages to
/// [`loss_before`](Self::loss_before) and then [`on_message`](Self::on_message), events to
/// [`on_lifecycle`](Self::on_lifecycle).
#[derive(Clone, Debug)]
pub struct ExecutionTracker {
    msg_id: String,
    replied: bool,
    idle: bool,
    /// Whether the connection was lost. If the kernel continues, messages may be missing; otherwise, the kernel has
    /// ended.
    disconnected: bool,
}

/// What an event means for an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecutionEvent {
    /// Messages may be missing here.
    Loss(Lifecycle),
    /// The kernel died or was restarted, with this cause.
    KernelEnded(String),
    /// The execution ended while its messages were not recorded.
    Lost,
}

impl ExecutionTracker {
    /// Follows the execution whose request has this `msg_id`.
    #[must_use]
    pub fn new(msg_id: impl Into<String>) -> Self {
        Self {
            msg_id: msg_id.into(),
            replied: false,
            idle: false,
            disconnected: false,
        }
    }

    /// As [`new`](Self::new), for an execution whose reply or `idle` status may have been read before.
    #[must_use]
    pub fn resumed(msg_id: impl Into<String>, replied: bool, idle: bool) -> Self {
        Self {
            replied,
            idle,
            ..Self::new(msg_id)
        }
    }

    /// The `msg_id` of the request.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.msg_id
    }

    /// Whether both the reply and the `idle` status were read, or the execution ended without them.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.replied && self.idle
    }

    /// Accounts for entries that are missing in the log. `reply` and `idle` tell whether the missing entries included
    /// the reply and the `idle` status.
    pub fn skip(&mut self, reply: bool, idle: bool) {
        self.replied |= reply;
        self.idle |= idle;
    }

    /// Marks the execution as ended.
    pub fn end(&mut self) {
        (self.replied, self.idle) = (true, true);
    }

    /// The loss before a kernel's message on this channel. An iopub message after a lost connection shows that the
    /// kernel has continued, so messages may be missing.
    pub fn loss_before(&mut self, channel: Channel) -> Option<Lifecycle> {
        let is_back = channel == Channel::Iopub && std::mem::take(&mut self.disconnected);
        is_back.then_some(Lifecycle::Disconnected)
    }

    /// The message, if it belongs to the execution.
    pub fn on_message(&mut self, message: &WireMessage) -> Option<Message> {
        // Few of a kernel's messages belong to this execution, and searching for its id is cheaper than parsing.
        memmem::find(message.parent_header(), self.msg_id.as_bytes())?;
        let message = Message::from_wire(message).ok()?;
        if message.parent_id() != self.msg_id {
            return None;
        }
        match &message.content {
            Content::Status(status) if status.execution_state == ExecutionState::Idle => self.idle = true,
            Content::ExecuteReply(_) => self.replied = true,
            _ => {}
        }
        Some(message)
    }

    /// What an event after the request means for the execution, if anything.
    ///
    /// The synthetic messages that follow the end of a kernel are for clients that do not receive these events.
    pub fn on_lifecycle(&mut self, event: Lifecycle) -> Option<ExecutionEvent> {
        let ended = match event {
            Lifecycle::Lost { executions } if executions.contains(&self.msg_id) => ExecutionEvent::Lost,
            Lifecycle::Died { executions, reason } if executions.contains(&self.msg_id) => {
                ExecutionEvent::KernelEnded(reason)
            }
            Lifecycle::Restarting => ExecutionEvent::KernelEnded("restarting".to_owned()),
            Lifecycle::RestartingByItself { reason, .. } | Lifecycle::Dead { reason, .. } => {
                ExecutionEvent::KernelEnded(reason)
            }
            Lifecycle::Disconnected => {
                self.disconnected = true;
                return None;
            }
            event @ (Lifecycle::Attached { .. } | Lifecycle::NotRecorded { .. }) => {
                self.disconnected = false;
                return Some(ExecutionEvent::Loss(event));
            }
            _ => return None,
        };
        self.end();
        Some(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_a_loss_only_if_the_kernel_continues() {
        let mut tracker = ExecutionTracker::new("1");
        assert_eq!(tracker.on_lifecycle(Lifecycle::Disconnected), None);
        assert_eq!(tracker.loss_before(Channel::Shell), None);
        assert_eq!(tracker.loss_before(Channel::Iopub), Some(Lifecycle::Disconnected));
        assert_eq!(tracker.loss_before(Channel::Iopub), None);

        assert_eq!(tracker.on_lifecycle(Lifecycle::Disconnected), None);
        let died = Lifecycle::Died {
            executions: vec!["1".to_owned()],
            reason: "killed".to_owned(),
        };
        let ended = tracker.on_lifecycle(died);
        assert_eq!(ended, Some(ExecutionEvent::KernelEnded("killed".to_owned())));
        assert!(tracker.has_ended());
    }

    #[test]
    fn events_of_other_executions_do_not_end_an_execution() {
        let mut tracker = ExecutionTracker::new("1");
        let others = || vec!["2".to_owned()];
        assert_eq!(tracker.on_lifecycle(Lifecycle::Lost { executions: others() }), None);
        let died = Lifecycle::Died {
            executions: others(),
            reason: String::new(),
        };
        assert_eq!(tracker.on_lifecycle(died), None);
        assert!(!tracker.has_ended());
    }
}
