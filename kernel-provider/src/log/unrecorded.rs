use jupyter_protocol::WireMessage;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use serde_json::json;

use super::Seq;
use crate::session::LIFECYCLE;

/// The newest entries, which the store refused.
#[derive(Clone, Debug)]
pub(super) struct Unrecorded {
    pub(super) first: Seq,
    pub(super) last: Seq,
    pub(super) reason: String,
}

impl Unrecorded {
    /// The entry that reports them once the store accepts entries again.
    pub(super) fn message(&self) -> WireMessage {
        let Self { first, last, reason } = self;
        let content = json!({"event": "not_recorded", "first": first, "last": last, "reason": reason}).to_string();
        Message::new(Content::parse(LIFECYCLE, content.as_bytes()), "kernelmux").to_wire()
    }
}
