use jupyter_protocol::WireMessage;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use serde::{Deserialize, Serialize};

/// The `msg_type` of an agent's own entries.
const EVENT: &str = "kernelmux_agent";

/// An agent's own entry in its log, between the kernel's messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The agent has connected to the sockets of a process. The messages that follow are from this process.
    Opened {
        /// The number of the process, higher than those of the kernel's earlier processes.
        process: u64,
    },
    /// The process has ended. All messages from it precede this entry.
    Closed {
        /// The number of the process.
        process: u64,
        /// Whether output may be missing, because another process kept the socket open.
        incomplete: bool,
    },
    /// The iopub connection was lost while the process was running. Output is missing until [`Event::Reconnected`].
    Disconnected,
    /// The iopub connection was opened again.
    Reconnected,
    /// A message on iopub was skipped.
    Skipped {
        /// Its size.
        bytes: u64,
        /// Whether it exceeded the maximum size of a message; otherwise there was no memory for it.
        too_large: bool,
    },
    /// Replies may be missing.
    RepliesLost,
}

impl Event {
    /// The event as a message on iopub.
    #[must_use]
    pub fn to_message(&self) -> WireMessage {
        // Serializing numbers and strings cannot fail.
        let content = serde_json::to_vec(self).unwrap_or_default();
        Message::new(Content::parse(EVENT, &content), "").to_wire()
    }

    /// The event in an agent's own entry; `None` for an event that only newer versions know.
    #[must_use]
    pub fn from_message(message: &WireMessage) -> Option<Self> {
        let header = message.header_ref().ok()?;
        if header.msg_type != EVENT {
            return None;
        }
        serde_json::from_slice(message.content()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_read_back_from_its_message() {
        for event in [
            Event::Opened { process: 1 },
            Event::Closed {
                process: 2,
                incomplete: true,
            },
            Event::Disconnected,
            Event::Reconnected,
            Event::Skipped {
                bytes: 3,
                too_large: true,
            },
            Event::RepliesLost,
        ] {
            assert_eq!(Event::from_message(&event.to_message()), Some(event));
        }
    }
}
