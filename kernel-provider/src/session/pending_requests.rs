use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jupyter_protocol::{Channel, WireMessage};
use tokio::sync::oneshot;

/// How many requests may wait for their reply. Of more the oldest is forgotten: its reply then goes to all sessions.
const MAX_WAITING: usize = 16_384;

/// Who asked a request, and so gets its reply.
pub(super) enum Requester {
    /// A client's session.
    Session(Arc<str>),
    /// This library itself.
    Internal(oneshot::Sender<WireMessage>),
    /// The recorder, for a request that is in no log.
    Setup,
}

/// The requests that wait for their reply, by `msg_id`.
#[derive(Default)]
pub(super) struct PendingRequests(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    by_id: HashMap<Arc<str>, Requester>,
    /// Some of these may have been answered.
    in_order: VecDeque<Arc<str>>,
}

/// Whom a message from the kernel is for.
pub(super) enum Addressee {
    /// The session that asked.
    Session(Arc<str>),
    /// Whoever waits in this library.
    Internal(oneshot::Sender<WireMessage>),
    /// The recorder: it answers a request that is in no log.
    Setup,
    /// Nobody known asked: all of them.
    All,
}

impl PendingRequests {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn expect_reply(&self, msg_id: &str, requester: Requester) {
        let mut waiting = self.lock();
        let msg_id: Arc<str> = msg_id.into();
        if waiting.by_id.insert(msg_id.clone(), requester).is_none() {
            waiting.in_order.push_back(msg_id);
        }
        while waiting.in_order.len() > MAX_WAITING {
            if let Some(oldest) = waiting.in_order.pop_front() {
                waiting.by_id.remove(&oldest);
            }
        }
    }

    /// Whom a message on shell, control or stdin answers. A reply ends the wait; a question on stdin does not.
    pub(super) fn addressee(&self, channel: Channel, message: &WireMessage) -> Addressee {
        let Ok(parent) = message.parent_ref() else {
            return Addressee::All;
        };
        let mut waiting = self.lock();
        if channel == Channel::Stdin {
            return match waiting.by_id.get(&*parent.msg_id) {
                Some(Requester::Session(session)) => Addressee::Session(session.clone()),
                _ => Addressee::All,
            };
        }
        let requester = waiting.by_id.remove(&*parent.msg_id);
        // Answered ones are dropped from the front, so that the queue is about as long as the map.
        while waiting
            .in_order
            .front()
            .is_some_and(|id| !waiting.by_id.contains_key(id))
        {
            waiting.in_order.pop_front();
        }
        match requester {
            Some(Requester::Session(session)) => Addressee::Session(session),
            Some(Requester::Internal(reply)) => Addressee::Internal(reply),
            Some(Requester::Setup) => Addressee::Setup,
            None => Addressee::All,
        }
    }

    /// Forgets all, as when the kernel is started anew and will answer none of them.
    pub(super) fn clear(&self) {
        *self.lock() = Waiting::default();
    }
}
