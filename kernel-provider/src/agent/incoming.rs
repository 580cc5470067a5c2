use bytes::Bytes;
use tokio::sync::mpsc;

use super::link::Command;
use super::session::WINDOW;

/// A part of the agent's log.
#[derive(Clone, Debug)]
pub enum Received {
    /// Consecutive entries, in the layout of the log.
    Entries(Bytes),
    /// Entries are missing, usually because the agent had no room for them.
    Gap {
        /// The first missing entry.
        first: u64,
        /// The last missing entry.
        last: u64,
    },
    /// The next entries are large. They follow after [`Incoming::take`]. A reconnect repeats the offer.
    Offer {
        /// The first entry.
        first: u64,
        /// The size of all of them, in bytes.
        bytes: u64,
    },
}

/// The entries of an agent's log.
#[derive(Debug)]
pub struct Incoming {
    received: mpsc::UnboundedReceiver<Received>,
    commands: mpsc::UnboundedSender<Command>,
    /// Bytes that were consumed and not yet reported to the link.
    consumed: u64,
}

impl Incoming {
    pub(super) fn new(received: mpsc::UnboundedReceiver<Received>, commands: mpsc::UnboundedSender<Command>) -> Self {
        Self {
            received,
            commands,
            consumed: 0,
        }
    }

    /// Waits for more entries, even while the agent cannot be reached. Returns `None` once the agent is gone, or
    /// [`Link::read`](super::Link::read) has been called again.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Received> {
        let received = self.received.recv().await?;
        if let Received::Entries(block) = &received {
            self.consumed += block.len() as u64;
            // Not reported for each block, because a report wakes the link's task and the agent.
            if self.consumed >= WINDOW / 4 {
                // The link may be closed.
                let _ = self
                    .commands
                    .send(Command::Consumed(std::mem::take(&mut self.consumed)));
            }
        }
        Some(received)
    }

    /// Requests the entries that were offered, from entry `first`.
    pub fn take(&self, first: u64) {
        // Fails only if the link is closed.
        let _ = self.commands.send(Command::Take(first));
    }

    /// Returns a handle that acknowledges entries.
    #[must_use]
    pub fn acknowledger(&self) -> Acknowledger {
        Acknowledger(self.commands.clone())
    }
}

/// Acknowledges entries, which the agent then drops.
#[derive(Clone, Debug)]
pub struct Acknowledger(mpsc::UnboundedSender<Command>);

impl Acknowledger {
    /// Acknowledges all entries up to this one.
    pub fn acknowledge(&self, seq: u64) {
        // Fails only if the link is closed.
        let _ = self.0.send(Command::Acknowledge(seq));
    }
}
