use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::error::ClientError;
use crate::wire::WireMessage;

/// Unread messages of one execution.
///
/// Outputs beyond the limits are dropped and counted. Input requests, the reply and the idle status are never dropped.
pub(super) struct ExecutionQueue {
    state: Mutex<QueueState>,
    max_messages: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct QueueState {
    items: VecDeque<Item>,
    bytes: usize,
    missed: u64,
    replied: bool,
    idle: bool,
    lost: Option<ClientError>,
    reader: Option<Waker>,
}

pub(super) enum Item {
    Output(WireMessage),
    Input(WireMessage),
    Reply(WireMessage),
    Missed(u64),
}

impl ExecutionQueue {
    pub(super) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            max_messages: max_messages.max(1),
            max_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the state and wakes the reader. Returns whether the execution has ended.
    fn update(&self, update: impl FnOnce(&mut QueueState)) -> bool {
        let mut state = self.lock();
        update(&mut state);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        state.replied && state.idle
    }

    pub(super) fn output(&self, message: WireMessage) -> bool {
        self.update(|state| {
            let size = message.size();
            // An empty queue accepts any message, however large.
            let full = state.items.len() >= self.max_messages || state.bytes.saturating_add(size) > self.max_bytes;
            if full && !state.items.is_empty() {
                state.missed += 1;
                return;
            }
            state.note_missed();
            state.bytes += size;
            state.items.push_back(Item::Output(message));
        })
    }

    pub(super) fn input(&self, message: WireMessage) -> bool {
        self.update(|state| {
            state.note_missed();
            state.items.push_back(Item::Input(message));
        })
    }

    pub(super) fn reply(&self, message: WireMessage) -> bool {
        self.update(|state| {
            state.note_missed();
            state.items.push_back(Item::Reply(message));
            state.replied = true;
        })
    }

    pub(super) fn idle(&self) -> bool {
        self.update(|state| {
            state.note_missed();
            state.idle = true;
        })
    }

    pub(super) fn lose(&self, error: ClientError) {
        self.update(|state| {
            state.note_missed();
            state.lost = Some(error);
        });
    }

    /// Polls the next item. Yields an error once if the connection was lost, and `None` after the end.
    pub(super) fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Result<Item, ClientError>>> {
        let mut state = self.lock();
        if let Some(item) = state.items.pop_front() {
            if let Item::Output(message) = &item {
                state.bytes -= message.size();
            }
            return Poll::Ready(Some(Ok(item)));
        }
        if state.replied && state.idle {
            return Poll::Ready(None);
        }
        if let Some(error) = state.lost.take() {
            (state.replied, state.idle) = (true, true);
            return Poll::Ready(Some(Err(error)));
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl QueueState {
    /// If outputs were dropped, queues an item in their place.
    fn note_missed(&mut self) {
        if self.missed > 0 {
            let missed = std::mem::take(&mut self.missed);
            self.items.push_back(Item::Missed(missed));
        }
    }
}
