use std::collections::VecDeque;

use jupyter_protocol::{Channel, WireMessage};
use memchr::memmem;

use super::SendError;

/// Messages that the program has sent and the log does not confirm yet.
pub(super) struct Outbox {
    messages: VecDeque<Outgoing>,
    /// How many of them, counted from the front, were written to the current connection.
    sent: usize,
    limit: usize,
}

struct Outgoing {
    msg_id: String,
    channel: Channel,
    message: WireMessage,
}

impl Outbox {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            messages: VecDeque::new(),
            sent: 0,
            limit,
        }
    }

    pub(super) fn push(&mut self, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        if matches!(channel, Channel::Iopub | Channel::Heartbeat) {
            return Err(SendError::Channel(channel));
        }
        let msg_id = match message.header_ref() {
            Ok(header) if !header.msg_id.is_empty() => header.msg_id.into_owned(),
            _ => return Err(SendError::NoId),
        };
        if self.contains(&msg_id) {
            return Err(SendError::Duplicate(msg_id));
        }
        if self.messages.len() >= self.limit {
            return Err(SendError::Full { limit: self.limit });
        }
        self.messages.push_back(Outgoing {
            msg_id,
            channel,
            message,
        });
        Ok(())
    }

    /// Marks all messages as unsent, for a new connection.
    pub(super) fn reconnected(&mut self) {
        self.sent = 0;
    }

    /// Returns the next message to write to this connection and marks it as sent.
    pub(super) fn next(&mut self) -> Option<(Channel, &WireMessage)> {
        let outgoing = self.messages.get(self.sent)?;
        self.sent += 1;
        Some((outgoing.channel, &outgoing.message))
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.sent < self.messages.len()
    }

    /// Returns the ids of all messages in the order of sending.
    pub(super) fn ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.messages.iter().map(|outgoing| outgoing.msg_id.as_str())
    }

    pub(super) fn contains(&self, msg_id: &str) -> bool {
        self.ids().any(|id| id == msg_id)
    }

    /// Removes the message that this entry confirms: the entry is the message itself or the kernel's answer to it. The
    /// answer also confirms a message whose own entry is in a gap of the log.
    pub(super) fn confirm(&mut self, channel: Channel, message: &WireMessage) {
        if self.messages.is_empty() {
            return;
        }
        let confirmed = self.messages.iter().position(|outgoing| {
            let id = outgoing.msg_id.as_str();
            let is_message =
                channel == outgoing.channel && message.header_ref().is_ok_and(|header| header.msg_id == id);
            // Searching for the id is cheaper than parsing every message of a kernel that floods.
            let is_answer = || {
                memmem::find(message.parent_header(), id.as_bytes()).is_some()
                    && message.parent_ref().is_ok_and(|parent| parent.msg_id == id)
            };
            is_message || is_answer()
        });
        if let Some(index) = confirmed {
            self.remove(index);
        }
    }

    /// Removes the message with this id and returns whether there was one.
    pub(super) fn forget(&mut self, msg_id: &str) -> bool {
        let found = self.ids().position(|id| id == msg_id);
        if let Some(index) = found {
            self.remove(index);
        }
        found.is_some()
    }

    fn remove(&mut self, index: usize) {
        self.messages.remove(index);
        if index < self.sent {
            self.sent -= 1;
        }
    }
}
