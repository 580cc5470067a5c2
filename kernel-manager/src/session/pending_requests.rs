use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jupyter_protocol::{Channel, WireMessage};
use tokio::sync::oneshot;

/// The most pending requests. Beyond that, the oldest is forgotten and its reply goes to all sessions.
const MAX_WAITING: usize = 16_384;

/// The origin of a request, which receives its reply.
pub(super) enum Requester {
    /// A client session.
    Session(Arc<str>),
    /// A waiter in this library.
    Internal(oneshot::Sender<WireMessage>),
    /// The recorder's setup request, which is not logged.
    Setup,
}

/// Requests that wait for their reply, by `msg_id`.
#[derive(Default)]
pub(super) struct PendingRequests(Mutex<Requests>);

#[derive(Default)]
struct Requests {
    by_id: HashMap<Arc<str>, Requester>,
    /// May contain requests that were answered already.
    in_order: VecDeque<Arc<str>>,
}

/// The destination of a message from the kernel.
pub(super) enum Addressee {
    /// The session that sent the request.
    Session(Arc<str>),
    /// A waiter in this library.
    Internal(oneshot::Sender<WireMessage>),
    /// The recorder: the reply to its setup request, which is not logged.
    Setup,
    /// All sessions, because the requester is unknown.
    All,
}

impl PendingRequests {
    fn lock(&self) -> MutexGuard<'_, Requests> {
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

    /// The destination of a message on shell, control or stdin. A reply completes its request; an `input_request` does
    /// not.
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
        // Remove answered requests from the front, which keeps the queue about as long as the map.
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

    /// Forgets all requests, because a restarted kernel answers none of them.
    pub(super) fn clear(&self) {
        *self.lock() = Requests::default();
    }
}
