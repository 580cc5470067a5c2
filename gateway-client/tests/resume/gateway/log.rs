//! The scripted gateway's log.

use std::collections::{BTreeMap, HashSet};

use bytes::{BufMut as _, Bytes, BytesMut};
use jupyter_protocol::codec::websocket_v1;
use jupyter_protocol::{Channel, Message, WireMessage};
use kernel_log::Epoch;
use serde_json::json;

/// The log's content at one `seq`.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    Entry(Bytes),
    NotStored,
}

pub(super) struct Log {
    pub(super) epoch: Epoch,
    pub(super) head: u64,
    pub(super) slots: BTreeMap<u64, Slot>,
    pub(super) requests: HashSet<String>,
    pub(super) ended: bool,
    /// Incremented when the log loses entries; connections to an older generation break.
    pub(super) generation: u64,
    /// Every entry ever appended, by epoch and `seq`.
    pub(super) history: BTreeMap<(String, u64), (Channel, WireMessage)>,
    /// Whether the kernel answers execute requests.
    pub(super) answers: bool,
}

impl Log {
    pub(super) fn earliest(&self) -> u64 {
        self.slots.first_key_value().map_or(self.head + 1, |(seq, _)| *seq)
    }

    pub(super) fn append(&mut self, channel: Channel, message: WireMessage) -> u64 {
        self.head += 1;
        let mut frame = BytesMut::new();
        frame.put_u64_le(self.head);
        websocket_v1::encode_into(&mut frame, channel, &message);
        self.slots.insert(self.head, Slot::Entry(frame.freeze()));
        self.history
            .insert((self.epoch.to_string(), self.head), (channel, message));
        self.head
    }

    pub(super) fn request(&mut self, channel: Channel, message: WireMessage) {
        let header = message.header_ref().unwrap();
        if !self.requests.insert(header.msg_id.to_string()) {
            return;
        }
        let parent = Message::from_wire(&message).unwrap();
        self.append(channel, message);
        if self.answers && parent.msg_type() == "execute_request" {
            for (channel, msg_type, content) in [
                (Channel::Iopub, "status", json!({"execution_state": "busy"})),
                (
                    Channel::Iopub,
                    "stream",
                    json!({"name": "stdout", "text": format!("{} ran", parent.header.msg_id)}),
                ),
                (
                    Channel::Shell,
                    "execute_reply",
                    json!({"status": "ok", "execution_count": 1}),
                ),
                (Channel::Iopub, "status", json!({"execution_state": "idle"})),
            ] {
                let header = serde_json::to_value(&parent.header).unwrap();
                self.append(channel, kernel_message(msg_type, &header, &content));
            }
        }
    }
}

/// Creates a message of the kernel.
pub(crate) fn kernel_message(msg_type: &str, parent: &serde_json::Value, content: &serde_json::Value) -> WireMessage {
    let id = uuid::Uuid::new_v4();
    let header = json!({"msg_id": id, "msg_type": msg_type, "session": "kernel"});
    let parts = [&header, parent, &json!({}), content].map(|part| Bytes::from(part.to_string()));
    WireMessage::from_parts(parts, [])
}
