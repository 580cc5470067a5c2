//! Memory budget for large messages, shared by many sockets.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Messages of up to this many bytes do not count against the budget.
const SMALL_MESSAGE_BYTES: u64 = 1 << 20;
/// Bytes per permit of the semaphore.
const PERMIT_BYTES: u64 = 1 << 10;
/// How long an incomplete message keeps its memory while others wait for memory.
const MAX_HOLD: Duration = Duration::from_secs(30);
/// How long a message waits for memory. Longer than [`MAX_HOLD`], so that a stalled message does not make another one
/// fail.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Memory budget that the large messages of many kernels share. Clones share the same budget.
///
/// A message of more than 1 MiB is received once memory for all of it is reserved. Until then its bytes stay in the
/// kernel's queue. The reservation ends when the socket's next message is requested.
///
/// A message is skipped ([`WireError::NoMemory`](crate::wire::WireError::NoMemory)) if it needs more than the whole
/// budget, or gets no memory within 60 s. It is also skipped if it is still incomplete 30 s after another message began
/// to wait, so that a kernel that stops in the middle of a message does not keep the memory.
///
/// ```
/// use jupyter_protocol::zmq::MessageMemory;
///
/// // Enough for two messages of the maximum size at a time.
/// let memory = MessageMemory::new(256 << 20);
/// ```
#[derive(Clone, Debug)]
pub struct MessageMemory {
    permits: Arc<Semaphore>,
    capacity: u64,
    /// Number of messages that wait for memory.
    waiting: Arc<watch::Sender<usize>>,
}

impl MessageMemory {
    /// Creates a budget of this many bytes, capped at 4 TiB.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let permits = u32::try_from(bytes / PERMIT_BYTES).unwrap_or(u32::MAX);
        Self {
            permits: Arc::new(Semaphore::new(permits as usize)),
            capacity: u64::from(permits) * PERMIT_BYTES,
            waiting: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Waits until a message waits for memory.
    #[cfg(test)]
    pub(super) async fn until_waited_for(&self) {
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }

    /// Waits until memory for a message of this size is free, and reserves it until the result is dropped. A message
    /// that is larger than the whole budget gets all of it. Cancel-safe.
    pub async fn reserve(&self, bytes: u64) -> ReservedMemory {
        ReservedMemory {
            _permits: self.wait_for(bytes.min(self.capacity)).await,
        }
    }

    /// Reserves this many bytes, or returns `None` if they exceed the capacity or are not free before the deadline.
    async fn acquire(&self, bytes: u64, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        if bytes > self.capacity {
            return None;
        }
        timeout_at(deadline, self.wait_for(bytes)).await.ok()?
    }

    /// Waits until this many bytes are free. `bytes` is at most the capacity.
    async fn wait_for(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).ok()?;
        if let Ok(permit) = self.permits.clone().try_acquire_many_owned(permits) {
            return Some(permit);
        }
        let _waiting = WaitingGuard::new(&self.waiting);
        // The semaphore is never closed.
        self.permits.clone().acquire_many_owned(permits).await.ok()
    }
}

/// Memory reserved with [`MessageMemory::reserve`]. Dropping the value frees the memory.
#[derive(Debug)]
pub struct ReservedMemory {
    _permits: Option<OwnedSemaphorePermit>,
}

/// Counts a message as waiting until dropped.
struct WaitingGuard<'a>(&'a watch::Sender<usize>);

impl<'a> WaitingGuard<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// Memory that one socket has reserved. Without a [`MessageMemory`], its messages need no reservation.
#[derive(Debug, Default)]
pub(super) struct MemoryReservation {
    memory: Option<MessageMemory>,
    held: Option<OwnedSemaphorePermit>,
    /// When the message stops waiting for memory or, if it holds memory that others wait for, has to yield it.
    deadline: Option<Instant>,
    /// Whether the message was delivered, so that requesting the next one frees its memory.
    delivered: bool,
}

impl MemoryReservation {
    pub(super) fn set_memory(&mut self, memory: &MessageMemory) {
        self.memory = Some(memory.clone());
    }

    /// Marks the message as complete and delivered to the caller.
    pub(super) fn mark_delivered(&mut self) {
        self.delivered = self.held.is_some();
    }

    /// Frees the memory of a delivered message, when the next one is requested.
    pub(super) fn release_delivered(&mut self) {
        if self.delivered {
            self.release();
        }
    }

    /// Frees the memory.
    pub(super) fn release(&mut self) {
        self.held = None;
        self.deadline = None;
        self.delivered = false;
    }

    /// Returns whether a message of this size needs no further memory.
    pub(super) fn covers(&self, bytes: u64) -> bool {
        bytes <= SMALL_MESSAGE_BYTES || self.memory.is_none() || bytes <= self.held()
    }

    fn held(&self) -> u64 {
        self.held
            .as_ref()
            .map_or(0, |permit| permit.num_permits() as u64 * PERMIT_BYTES)
    }

    /// Reserves memory for a message of this size. Returns `false` if there was none in time. Cancel-safe.
    pub(super) async fn grow(&mut self, bytes: u64) -> bool {
        if self.covers(bytes) {
            return true;
        }
        let Some(memory) = &self.memory else { return true };
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + MAX_WAIT);
        let acquired = memory.acquire(bytes - self.held(), deadline).await;
        self.deadline = None;
        let Some(more) = acquired else { return false };
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        true
    }

    /// Returns whether others have waited so long that the message has to yield its memory.
    pub(super) fn is_overdue(&mut self) -> bool {
        let Some((memory, _)) = self.memory.as_ref().zip(self.held.as_ref()) else {
            return false;
        };
        if *memory.waiting.borrow() == 0 {
            self.deadline = None;
            return false;
        }
        let now = Instant::now();
        now >= *self.deadline.get_or_insert_with(|| now + MAX_HOLD)
    }

    /// Waits until [`is_overdue`](Self::is_overdue) returns `true`. Cancel-safe.
    pub(super) async fn until_overdue(&mut self) {
        let Some(memory) = self.memory.clone().filter(|_| self.held.is_some()) else {
            return pending().await;
        };
        let mut waiting = memory.waiting.subscribe();
        while !self.is_overdue() {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                // The sender is in `memory`, so waiting cannot fail.
                None => drop(waiting.wait_for(|waiting| *waiting > 0).await),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn sharing(memory: &MessageMemory) -> MemoryReservation {
        let mut reservation = MemoryReservation::default();
        reservation.set_memory(memory);
        reservation
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_freed_when_the_message_after_a_delivered_one_is_requested() {
        let memory = MessageMemory::new(10 * MIB);
        let (mut one, mut other) = (sharing(&memory), sharing(&memory));
        assert!(
            one.grow(MIB).now_or_never() == Some(true),
            "small messages need no memory"
        );
        assert!(one.grow(4 * MIB).await && one.grow(7 * MIB).await);
        let mut waiting = pin!(other.grow(4 * MIB));
        assert!(waiting.as_mut().now_or_never().is_none());
        one.release_delivered();
        assert!(
            waiting.as_mut().now_or_never().is_none(),
            "the message is still incomplete"
        );
        one.mark_delivered();
        one.release_delivered();
        assert!(waiting.await);
        assert!(!one.grow(11 * MIB).await, "the message exceeds the whole budget");
    }

    #[tokio::test]
    async fn reserved_memory_is_free_once_it_is_dropped() {
        let memory = MessageMemory::new(10 * MIB);
        let mut other = sharing(&memory);
        // A message that is larger than the budget gets all of it.
        let reserved = memory.reserve(20 * MIB).await;
        {
            let mut waiting = pin!(other.grow(2 * MIB));
            assert!(waiting.as_mut().now_or_never().is_none());
            drop(reserved);
            assert!(waiting.await);
        }
        let mut next = pin!(memory.reserve(9 * MIB));
        assert!(next.as_mut().now_or_never().is_none());
        other.release();
        next.await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_message_yields_its_memory_to_a_waiting_one() {
        let memory = MessageMemory::new(10 * MIB);
        let (mut stalled, mut other) = (sharing(&memory), sharing(&memory));
        assert!(stalled.grow(8 * MIB).await);
        let begun = Instant::now();
        let yielded = async {
            stalled.until_overdue().await;
            stalled.release();
        };
        let (granted, ()) = tokio::join!(other.grow(8 * MIB), yielded);
        assert!(granted);
        assert!((MAX_HOLD..MAX_WAIT).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_memory_fails_after_the_deadline() {
        let memory = MessageMemory::new(10 * MIB);
        let (mut delivered, mut other) = (sharing(&memory), sharing(&memory));
        assert!(delivered.grow(8 * MIB).await);
        delivered.mark_delivered();
        assert!(!other.grow(8 * MIB).await);
        assert_eq!(*memory.waiting.borrow(), 0);
        assert!(!delivered.is_overdue());
    }
}
