use bytes::Bytes;
use jupyter_protocol::WireMessage;
use memchr::memmem;

/// Finds the messages that belong to one request.
pub(super) struct ParentFilter<'a> {
    finder: memmem::Finder<'a>,
    msg_id: &'a str,
    /// The parent that was looked at last: the messages of an execution have the same one.
    last: (Bytes, bool),
}

impl<'a> ParentFilter<'a> {
    pub(super) fn new(msg_id: &'a str) -> Self {
        Self {
            finder: memmem::Finder::new(msg_id),
            msg_id,
            last: (Bytes::new(), false),
        }
    }

    pub(super) fn takes(&mut self, message: &WireMessage) -> bool {
        let parent = message.parent_header();
        if self.last.0 != parent {
            // To look for the id is cheaper than to parse.
            let takes = self.finder.find(parent).is_some()
                && message.parent_ref().is_ok_and(|parent| parent.msg_id == self.msg_id);
            self.last = (parent.clone(), takes);
        }
        self.last.1
    }
}
