use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::log::Seq;

/// How many sessions that are not attached a kernel remembers. Of more the one that left first is forgotten: should it
/// come back, it starts at the end of the log.
const MAX_DETACHED: usize = 256;

/// Where each client's session stands in a kernel's log, attached or not.
pub(crate) struct Sessions {
    known: Mutex<Known>,
    attached: watch::Sender<usize>,
}

#[derive(Default)]
struct Known {
    by_key: HashMap<Arc<str>, Session>,
    /// Counts attachments and detachments: tells one attachment of a session from the next, and who left first.
    clock: u64,
}

struct Session {
    acknowledged: Seq,
    /// Which attachment holds it; `None` where the client is away.
    attachment: Option<u64>,
    /// The clock when it was attached or detached.
    changed: u64,
    /// Tells the attachment's number, so that an older one sees that it is not meant any more.
    current: watch::Sender<u64>,
}

/// What an attachment gets to know.
pub(super) struct Joined {
    pub(super) attachment: u64,
    /// The last entry that the session is known to have; `None` where the session is new.
    pub(super) acknowledged: Option<Seq>,
    pub(super) current: watch::Receiver<u64>,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self {
            known: Mutex::default(),
            attached: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sessions are attached: the number now, then each change.
    pub(crate) fn attached(&self) -> watch::Receiver<usize> {
        self.attached.subscribe()
    }

    /// Attaches a session; an older attachment of the same one is told.
    pub(super) fn join(&self, key: &Arc<str>, head: Seq) -> Joined {
        let mut known = self.lock();
        known.clock += 1;
        let attachment = known.clock;
        let mut acknowledged = None;
        let session = known
            .by_key
            .entry(key.clone())
            .and_modify(|session| acknowledged = Some(session.acknowledged))
            .or_insert_with(|| Session {
                acknowledged: head,
                attachment: None,
                changed: attachment,
                current: watch::Sender::new(attachment),
            });
        session.attachment = Some(attachment);
        session.changed = attachment;
        session.current.send_replace(attachment);
        let current = session.current.subscribe();
        self.count(&known);
        Joined {
            attachment,
            acknowledged,
            current,
        }
    }

    pub(super) fn acknowledge(&self, key: &str, attachment: u64, seq: Seq) {
        if let Some(session) = self.lock().by_key.get_mut(key)
            && session.attachment == Some(attachment)
        {
            session.acknowledged = session.acknowledged.max(seq);
        }
    }

    pub(super) fn leave(&self, key: &str, attachment: u64) {
        let mut known = self.lock();
        known.clock += 1;
        let now = known.clock;
        if let Some(session) = known.by_key.get_mut(key)
            && session.attachment == Some(attachment)
        {
            session.attachment = None;
            session.changed = now;
        }
        let detached = known.by_key.values().filter(|session| session.attachment.is_none());
        if detached.count() > MAX_DETACHED {
            let oldest = known
                .by_key
                .iter()
                .filter(|(_, session)| session.attachment.is_none())
                .min_by_key(|(_, session)| session.changed)
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                known.by_key.remove(&oldest);
            }
        }
        self.count(&known);
    }

    fn count(&self, known: &Known) {
        let attached = known.by_key.values().filter(|session| session.attachment.is_some());
        self.attached.send_replace(attached.count());
    }
}
