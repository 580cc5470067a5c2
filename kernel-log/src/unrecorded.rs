use jupyter_protocol::WireMessage;

use crate::{Lifecycle, Seq};

/// Consecutive entries that the store refused.
#[derive(Clone, Debug)]
pub(super) struct Unrecorded {
    pub(super) first: Seq,
    pub(super) last: Seq,
    pub(super) reason: String,
}

impl Unrecorded {
    /// The message that reports these entries once the store accepts entries again.
    pub(super) fn message(&self) -> WireMessage {
        let event = Lifecycle::NotRecorded {
            first: self.first,
            last: self.last,
            reason: self.reason.clone(),
        };
        event.to_message("kernelmux")
    }
}
