use kernel_log::Seq;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Orders the messages to an agent by their positions in the log. [`Numbering::of`] turns it into the number by which
/// the agent accepts each message only once.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendNumber(u64);

impl SendNumber {
    /// The number of a logged message.
    pub(super) fn of(entry: Seq) -> Self {
        Self(2 * entry.0)
    }

    /// The number of a message that is not logged and follows this entry.
    pub(super) fn after(entry: Seq) -> Self {
        Self(2 * entry.0 + 1)
    }
}

/// Numbers the messages to an agent. The numbers grow with those of the messages' entries.
///
/// A message that changes nothing in the kernel may be sent before its entry is stored. If a crash loses the entry, a
/// later entry gets its number. `offset` then gives the later entry's message a number that the agent has not accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Numbering {
    /// The amount that is added to each [`SendNumber`].
    offset: u64,
    /// The first entry whose message has this offset. All earlier messages count as accepted.
    since: u64,
}

impl Numbering {
    /// The message's number for the agent.
    pub(super) fn of(self, number: SendNumber) -> u64 {
        number.0.saturating_add(self.offset)
    }

    /// Continues after the last number that the agent has `accepted`, for messages after entry `last`.
    pub(super) fn continue_after(&mut self, accepted: u64, last: Seq) {
        let next = self.of(SendNumber::of(last.next()));
        if accepted >= next {
            // An agent may report any number.
            self.offset = self.offset.saturating_add(accepted - next).saturating_add(1);
            self.since = last.next().0;
        }
    }

    /// The last entry whose message the agent has accepted. `number` is the last number that it accepted.
    pub(super) fn last_accepted(self, number: u64) -> Seq {
        Seq((number.saturating_sub(self.offset) / 2).max(self.since.saturating_sub(1)))
    }
}

/// How much of an agent's log is recorded in the kernel's log. The position is stored atomically with the recorded
/// entries, so that each entry is recorded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgentPosition {
    /// The id of the agent's log.
    pub(super) spool: Uuid,
    /// The last recorded entry of the agent's log.
    pub(super) seq: u64,
    /// The number of the newest process as of this entry.
    pub(super) process: u64,
    /// Whether that process has ended and all its messages are recorded.
    #[serde(default)]
    pub(super) is_closed: bool,
    /// How messages to the agent are numbered.
    #[serde(default)]
    pub(super) numbering: Numbering,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_although_entries_are_lost_in_a_crash() {
        let mut numbering = Numbering::default();
        numbering.continue_after(0, Seq(0));
        assert_eq!(numbering, Numbering::default());
        // Entry 9 was sent and accepted, and only the entries up to 7 were stored.
        let accepted = numbering.of(SendNumber::of(Seq(9)));
        numbering.continue_after(accepted, Seq(7));
        assert!(numbering.of(SendNumber::of(Seq(8))) > accepted);
        assert_eq!(numbering.last_accepted(accepted), Seq(7));
        assert_eq!(numbering.last_accepted(numbering.of(SendNumber::of(Seq(8)))), Seq(8));
        assert_eq!(
            numbering.last_accepted(numbering.of(SendNumber::of(Seq(8))) + 1),
            Seq(8)
        );
        // If no entry was lost, the numbering does not change.
        let before = numbering;
        numbering.continue_after(numbering.of(SendNumber::of(Seq(12))), Seq(12));
        assert_eq!(numbering, before);
    }
}
