//! The open comms of a kernel, as far as this process knows them.

use jupyter_protocol::WireMessage;
use kernel_log::{IndexUpdate, Seq};

use super::comms::Comms;
use super::index_keys as keys;

/// The most bytes of messages that are kept while the comms are read from the log.
const MAX_MEANWHILE: usize = 16 << 20;

/// The open comms of one kernel.
pub(super) struct CommState {
    source: Source,
    /// Whether comms are missing that an earlier process forgot, or whose entries are no longer in the log.
    is_incomplete: bool,
}

enum Source {
    Known(Comms),
    /// The log has them. Nothing has asked for them since this process started.
    InLog,
    /// They are being read from the log. These messages came meanwhile.
    Reading {
        meanwhile: Vec<(Seq, WireMessage)>,
        bytes: usize,
    },
}

impl CommState {
    /// The comms of a kernel without any in its log's index.
    pub(super) fn none(is_incomplete: bool) -> Self {
        Self {
            source: Source::Known(Comms::default()),
            is_incomplete,
        }
    }

    /// The comms of a kernel with some in its log's index.
    pub(super) fn in_log(is_incomplete: bool) -> Self {
        Self {
            source: Source::InLog,
            is_incomplete,
        }
    }

    /// A comm message was appended as entry `seq`.
    pub(super) fn on_message(&mut self, seq: Seq, message: &WireMessage, updates: &mut Vec<IndexUpdate>) {
        let mut unknown = Comms::default();
        let comms = match &mut self.source {
            Source::Known(comms) => comms,
            // Only the index is kept up to date.
            Source::InLog => &mut unknown,
            Source::Reading { meanwhile, bytes } => {
                *bytes += message.parts().iter().map(|part| part.len()).sum::<usize>();
                *bytes += message.buffers().iter().map(|buffer| buffer.len()).sum::<usize>();
                meanwhile.push((seq, message.clone()));
                if *bytes > MAX_MEANWHILE {
                    // Without one of them, the state would be wrong.
                    self.source = Source::InLog;
                }
                &mut unknown
            }
        };
        comms.on_message(seq, message, updates);
    }

    /// The kernel's process ended, and with it all comms that were opened before this entry.
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

    /// Whether the kernel has comms that are not known.
    pub(super) fn is_incomplete(&self) -> bool {
        self.is_incomplete || self.known().is_some_and(Comms::is_incomplete)
    }

    /// Collects the messages of comms from now on.
    pub(super) fn begin_reading(&mut self) {
        self.source = Source::Reading {
            meanwhile: Vec::new(),
            bytes: 0,
        };
    }

    /// Ends what [`begin_reading`](Self::begin_reading) began, with the comms as they were then; `None` if they could not
    /// be read.
    pub(super) fn end_reading(&mut self, comms: Option<Comms>) {
        // If the process ended meanwhile, its comms have ended, too.
        if let Source::Reading { meanwhile, .. } = &self.source {
            self.source = match comms {
                Some(mut comms) => {
                    for (seq, message) in meanwhile {
                        // The index has these already.
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
    fn messages_that_come_while_the_log_is_read_are_applied_or_it_is_read_again() {
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
        assert_eq!(updates.len(), 18, "the index has all");
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
