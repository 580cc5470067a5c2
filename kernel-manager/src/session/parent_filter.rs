use bytes::Bytes;
use jupyter_protocol::WireMessage;
use memchr::memmem;

/// Selects the messages that belong to one request.
pub(super) struct ParentFilter<'a> {
    finder: memmem::Finder<'a>,
    msg_id: &'a str,
    /// The previous parent header and whether it matched. Consecutive messages of an execution have the same one.
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

    pub(super) fn matches(&mut self, message: &WireMessage) -> bool {
        let parent = message.parent_header();
        if self.last.0 != parent {
            // Searching for the id is cheaper than parsing.
            let matches = self.finder.find(parent).is_some()
                && message.parent_ref().is_ok_and(|parent| parent.msg_id == self.msg_id);
            self.last = (parent.clone(), matches);
        }
        self.last.1
    }
}
