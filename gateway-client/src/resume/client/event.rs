use std::time::Duration;

use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{LIFECYCLE, Lifecycle, Seq};

use super::error::ConnectionLost;
use crate::resume::Hello;

/// An event from a [`ResumeClient`](super::ResumeClient).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The next entry of the log.
    Entry(Entry),
    /// Entries `first` to `last` are missing, because they were dropped or could not be stored.
    Gap {
        /// The first missing entry.
        first: Seq,
        /// The last missing entry.
        last: Seq,
    },
    /// Connected at the client's position or, for the first connection, at its start position. Entries up to
    /// [`Hello::head`] are the backlog.
    Connected(Hello),
    /// Connected, but the client cannot resume at its position, for the reason in [`Hello::reason`]. The program should
    /// discard state built from earlier entries and rebuild it from the ones that follow.
    NotRecovered(Hello),
    /// The connection was lost or could not be made. The client reconnects by itself after a pause.
    Disconnected {
        /// Why the connection failed.
        reason: ConnectionLost,
        /// The pause before the next attempt.
        retry_in: Duration,
    },
}

/// A message of the kernel's log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The entry's number. Numbers are contiguous, apart from reported gaps.
    pub seq: Seq,
    /// The message's channel.
    pub channel: Channel,
    /// The message, unsigned and without identities.
    pub message: WireMessage,
}

impl Entry {
    /// Returns the event in the kernel's life that this entry reports; `None` for messages of the kernel and of
    /// clients, and for events unknown to this version.
    ///
    /// The protocol does not identify the writer of an entry, so a kernel can imitate these events. Rely on them only
    /// if the kernel's code is trusted.
    #[must_use]
    pub fn lifecycle(&self) -> Option<Lifecycle> {
        // Life-cycle entries of the server have no parent, or a parent of the type `LIFECYCLE`. A kernel's status for a
        // request has the request as its parent.
        let is_of_server = self.channel == Channel::Iopub
            && (self.message.parent_header() == "{}"
                || self
                    .message
                    .parent_ref()
                    .is_ok_and(|parent| parent.msg_type == LIFECYCLE));
        is_of_server.then(|| Lifecycle::from_message(&self.message)).flatten()
    }
}
