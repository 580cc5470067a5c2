use std::time::Duration;

use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{LIFECYCLE, Lifecycle, Seq};

use super::error::Lost;
use crate::resume::Hello;

/// What a [`ResumeClient`](super::ResumeClient) reads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The next entry of the log.
    Entry(Entry),
    /// Entries `first` to `last` were dropped, or could never be stored.
    Gap {
        /// The first one missing.
        first: Seq,
        /// The last one missing.
        last: Seq,
    },
    /// Connected, and going on where the client was, or begins. Entries up to [`Hello::head`] are the backlog.
    Connected(Hello),
    /// Connected, but the client cannot go on where it was, for [`Hello::reason`]: forget what was built from earlier
    /// entries, and build it anew from those that follow.
    NotRecovered(Hello),
    /// The connection is lost, or could not be made; the client connects again after a pause. Nothing has to be done.
    Disconnected {
        /// What happened.
        reason: Lost,
        /// The pause.
        retry_in: Duration,
    },
}

/// A message of the kernel's log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// Its number: one more than the last one's.
    pub seq: Seq,
    /// The channel it went over.
    pub channel: Channel,
    /// The message, unsigned and without identities.
    pub message: WireMessage,
}

impl Entry {
    /// The event in the kernel's life that this entry reports; `None` for messages of the kernel and of clients.
    ///
    /// The protocol does not say who wrote an entry, so a kernel can imitate these: rely on them only where its code is
    /// trusted.
    #[must_use]
    pub fn lifecycle(&self) -> Option<Lifecycle> {
        // Statuses that only a server sends have no parent; a kernel's own have.
        let is_of_server = self.channel == Channel::Iopub
            && (self.message.parent_header() == "{}"
                || self
                    .message
                    .parent_ref()
                    .is_ok_and(|parent| parent.msg_type == LIFECYCLE));
        is_of_server.then(|| Lifecycle::from_message(&self.message)).flatten()
    }
}
