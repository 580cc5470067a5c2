//! The open comms of a kernel, as far as this process knows them.

use jupyter_protocol::WireMessage;
use kernel_log::{IndexUpdate, Seq};

use super::comms::Comms;
use super::index_keys as keys;

/// The most bytes of new messages that are buffered while the comms are read from the log.
const MAX_BUFFERED: usize = 16 << 20;

/// The open comms of one kernel.
pub(super) struct CommState {
    source: Source,
    /// Whether open comms are missing, because they were forgotten at a limit in an earlier process, or because their
    /// entries are no longer in the log.
    is_incomplete: bool,
}

enum Source {
    Known(Comms),
    /// The comms must be read from the log first.
    InLog,
    /// The comms are being read from the log. Newer messages are buffered.
    Reading {
        buffered: Vec<(Seq, WireMessage)>,
        bytes: usize,
    },
}

impl CommState {
    /// No comms, because the log's index has none.
    pub(super) fn none(is_incomplete: bool) -> Self {
        Self {
            source: Source::Known(Comms::default()),
            is_incomplete,
        }
    }

    /// Comms that are in the log's index, still to be read from the log.
    pub(super) fn in_log(is_incomplete: bool) -> Self {
        Self {
            source: Source::InLog,
            is_incomplete,
        }
    }

    /// Applies a comm message that was appended as entry `seq`.
    pub(super) fn on_message(&mut self, seq: Seq, message: &WireMessage, updates: &mut Vec<IndexUpdate>) {
        let mut unknown = Comms::default();
        let comms = match &mut self.source {
            Source::Known(comms) => comms,
            // Only the index is kept up to date.
            Source::InLog => &mut unknown,
            Source::Reading { buffered, bytes } => {
                *bytes += message.parts().iter().map(|part| part.len()).sum::<usize>();
                *bytes += message.buffers().iter().map(|buffer| buffer.len()).sum::<usize>();
                buffered.push((seq, message.clone()));
                if *bytes > MAX_BUFFERED {
                    // Applying only some of the messages would give a wrong state.
                    self.source = Source::InLog;
                }
                &mut unknown
            }
        };
        comms.on_message(seq, message, updates);
    }

    /// Ends all comms that were opened before this entry, because the kernel's process ended.
    pub(super) fn end(&mut self, opened_before: Seq, updates: &mut Vec<IndexUpdate>) {
        match &mut self.source {
            Source::Known(comms) => comms.end(opened_before, updates),
            Source::InLog | Source::Reading { .. } => self.source = Source::Known(Comms::default()),
        }
        self.is_incomplete = false;
        updates.push(IndexUpdate::remove(keys::COMMS_INCOMPLETE));
    }

    /// The open comms, unless they must be read from the log first.
    pub(super) fn known(&self) -> Option<&Comms> {
        match &self.source {
            Source::Known(comms) => Some(comms),
            Source::InLog | Source::Reading { .. } => None,
        }
    }

    /// Whether open comms may be missing.
    pub(super) fn is_incomplete(&self) -> bool {
        self.is_incomplete || self.known().is_some_and(Comms::is_incomplete)
    }

    /// Buffers comm messages until [`end_reading`](Self::end_reading).
    pub(super) fn begin_reading(&mut self) {
        self.source = Source::Reading {
            buffered: Vec::new(),
            bytes: 0,
        };
    }

    /// Takes the comms as they were at [`begin_reading`](Self::begin_reading) and applies the buffered messages.
    /// `comms` is `None` if the log could not be read.
    pub(super) fn end_reading(&mut self, comms: Option<Comms>) {
        // The source is no longer `Reading` if these comms have ended with the kernel's process, or if too many
        // messages arrived during the read.
        if let Source::Reading { buffered, .. } = &self.source {
            self.source = match comms {
                Some(mut comms) => {
                    for (seq, message) in buffered {
                        // The index already has these.
                        comms.on_message(*seq, message, &mut Vec::new());
                    }
                    Source::Known(comms)
                }
                None => Source::InLog,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    fn open(id: &str, text: &str) -> WireMessage {
        let header = json!({"msg_id": "1", "msg_type": "comm_open"}).to_string();
        let data = json!({"state": {"text": text}, "buffer_paths": []});
        let content = json!({"comm_id": id, "target_name": "jupyter.widget", "data": data}).to_string();
        let parts = [header, "{}".to_owned(), "{}".to_owned(), content];
        WireMessage::from_parts(parts.map(Bytes::from), [])
    }

    #[test]
    fn messages_during_a_read_of_the_log_are_applied_or_the_log_is_read_again() {
        let mut comms = CommState::in_log(false);
        comms.begin_reading();
        comms.on_message(Seq(2), &open("b", ""), &mut Vec::new());
        let mut read = Comms::default();
        read.on_message(Seq(1), &open("a", ""), &mut Vec::new());
        comms.end_reading(Some(read.clone()));
        assert_eq!(comms.known().unwrap().list(Seq(9)).len(), 2);

        comms.begin_reading();
        let mut updates = Vec::new();
        for seq in 2..20 {
            comms.on_message(Seq(seq), &open("b", &"x".repeat(1 << 20)), &mut updates);
        }
        assert_eq!(updates.len(), 18, "not every comm_open updates the index");
        comms.end_reading(Some(read.clone()));
        assert!(comms.known().is_none());
        comms.begin_reading();
        comms.end_reading(None);
        assert!(comms.known().is_none());
        comms.begin_reading();
        comms.end(Seq(20), &mut updates);
        comms.end_reading(Some(read));
        assert_eq!(comms.known().unwrap().list(Seq(99)).len(), 0);
    }
}
