use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::error::ClientError;
use crate::wire::WireMessage;

/// What arrived for one execution and was not read yet.
///
/// Outputs beyond the bounds are dropped and counted; what decides about the execution's course never is.
pub(super) struct Queue {
    state: Mutex<State>,
    messages: usize,
    bytes: usize,
}

#[derive(Default)]
struct State {
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

fn size(message: &WireMessage) -> usize {
    message.parts_and_buffers().iter().map(bytes::Bytes::len).sum()
}

impl Queue {
    pub(super) fn new(messages: usize, bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            messages: messages.max(1),
            bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, wakes the reader, and says whether the execution has ended.
    fn change(&self, change: impl FnOnce(&mut State)) -> bool {
        let mut state = self.lock();
        change(&mut state);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        state.replied && state.idle
    }

    pub(super) fn output(&self, message: WireMessage) -> bool {
        self.change(|state| {
            let size = size(&message);
            // One message is always taken, however large.
            let full = state.items.len() >= self.messages || state.bytes.saturating_add(size) > self.bytes;
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
        self.change(|state| {
            state.note_missed();
            state.items.push_back(Item::Input(message));
        })
    }

    pub(super) fn reply(&self, message: WireMessage) -> bool {
        self.change(|state| {
            state.note_missed();
            state.items.push_back(Item::Reply(message));
            state.replied = true;
        })
    }

    pub(super) fn idle(&self) -> bool {
        self.change(|state| {
            state.note_missed();
            state.idle = true;
        })
    }

    pub(super) fn lose(&self, error: ClientError) {
        self.change(|state| {
            state.note_missed();
            state.lost = Some(error);
        });
    }

    /// The next item; an error once where the connection was lost; `None` after the end.
    pub(super) fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Result<Item, ClientError>>> {
        let mut state = self.lock();
        if let Some(item) = state.items.pop_front() {
            if let Item::Output(message) = &item {
                state.bytes -= size(message);
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

impl State {
    /// Marks the place of what was dropped.
    fn note_missed(&mut self) {
        if self.missed > 0 {
            let missed = std::mem::take(&mut self.missed);
            self.items.push_back(Item::Missed(missed));
        }
    }
}
