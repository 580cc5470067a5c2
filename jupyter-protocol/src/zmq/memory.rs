//! The memory for large messages, which many sockets share.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Messages of at most this many bytes do not count.
const SMALL: u64 = 1 << 20;
/// What a permit of the semaphore stands for, in bytes.
const UNIT: u64 = 1 << 10;
/// How long a message that is being received keeps its memory while others wait for memory.
const KEPT: Duration = Duration::from_secs(30);
/// How long a message waits for memory. Longer than [`KEPT`], so that one that stands still does not cost another.
const WAITED: Duration = Duration::from_secs(60);

/// Bounds the memory that the large messages of many kernels take together. Cloning gives another handle to the same.
///
/// A message of more than 1 MiB is received once there is memory for all of it, and holds that until the next one is
/// asked for; so its bytes wait in the kernel's own queue meanwhile. One that gets none within 60 s, or that needs more
/// than there is, is passed over ([`WireError::NoMemory`](crate::wire::WireError::NoMemory)). So is one that has not
/// arrived 30 s after another began to wait: a kernel that stops in the middle of a message does not keep the memory.
///
/// ```
/// use jupyter_protocol::zmq::MessageMemory;
///
/// // Enough for two of the largest messages at a time.
/// let memory = MessageMemory::new(256 << 20);
/// ```
#[derive(Clone, Debug)]
pub struct MessageMemory {
    permits: Arc<Semaphore>,
    most: u64,
    /// How many messages wait.
    waiting: Arc<watch::Sender<usize>>,
}

impl MessageMemory {
    /// So many bytes, at most 4 TiB.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let permits = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        Self {
            permits: Arc::new(Semaphore::new(permits as usize)),
            most: u64::from(permits) * UNIT,
            waiting: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Waits until a message waits.
    #[cfg(test)]
    pub(super) async fn is_waited_for(&self) {
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }

    async fn acquire(&self, bytes: u64, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        if bytes > self.most {
            return None;
        }
        let permits = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        if let Ok(permit) = self.permits.clone().try_acquire_many_owned(permits) {
            return Some(permit);
        }
        let _waiting = Waiting::new(&self.waiting);
        let acquired = timeout_at(deadline, self.permits.clone().acquire_many_owned(permits)).await;
        // It is never closed.
        acquired.ok()?.ok()
    }
}

/// Counts a message among those that wait.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// The memory that one socket has of it. Without a [`MessageMemory`] each message has as much as it needs.
#[derive(Debug, Default)]
pub(super) struct Reservation {
    memory: Option<MessageMemory>,
    held: Option<OwnedSemaphorePermit>,
    /// Until when the message waits for memory, or, once others wait for that, keeps it.
    deadline: Option<Instant>,
    /// Whether the message was handed out, so that its memory is free when the next one is asked for.
    was_received: bool,
}

impl Reservation {
    pub(super) fn share(&mut self, memory: &MessageMemory) {
        self.memory = Some(memory.clone());
    }

    /// The whole message has arrived.
    pub(super) fn received(&mut self) {
        self.was_received = self.held.is_some();
    }

    /// The next message is asked for.
    pub(super) fn next(&mut self) {
        if self.was_received {
            self.release();
        }
    }

    /// The message is passed over.
    pub(super) fn release(&mut self) {
        self.held = None;
        self.deadline = None;
        self.was_received = false;
    }

    /// Whether a message may have so many bytes.
    pub(super) fn covers(&self, bytes: u64) -> bool {
        bytes <= SMALL || self.memory.is_none() || bytes <= self.held()
    }

    fn held(&self) -> u64 {
        self.held
            .as_ref()
            .map_or(0, |permit| permit.num_permits() as u64 * UNIT)
    }

    /// Waits for memory for a message of so many bytes; `false` where it gets none. Cancel-safe.
    pub(super) async fn grow(&mut self, bytes: u64) -> bool {
        if self.covers(bytes) {
            return true;
        }
        let Some(memory) = &self.memory else { return true };
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + WAITED);
        let acquired = memory.acquire(bytes - self.held(), deadline).await;
        self.deadline = None;
        let Some(more) = acquired else { return false };
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        true
    }

    /// Whether others have waited long enough for the memory of the message that is being received.
    pub(super) fn is_overdue(&mut self) -> bool {
        let Some((memory, _)) = self.memory.as_ref().zip(self.held.as_ref()) else {
            return false;
        };
        if *memory.waiting.borrow() == 0 {
            self.deadline = None;
            return false;
        }
        let now = Instant::now();
        now >= *self.deadline.get_or_insert_with(|| now + KEPT)
    }

    /// Waits until [`is_overdue`](Self::is_overdue). Cancel-safe.
    pub(super) async fn overdue(&mut self) {
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

    fn sharing(memory: &MessageMemory) -> Reservation {
        let mut reservation = Reservation::default();
        reservation.share(memory);
        reservation
    }

    #[tokio::test(start_paused = true)]
    async fn one_waits_until_another_was_received_and_the_next_is_asked_for() {
        let memory = MessageMemory::new(10 * MIB);
        let (mut one, mut other) = (sharing(&memory), sharing(&memory));
        assert!(one.grow(MIB).now_or_never() == Some(true), "small ones need none");
        assert!(one.grow(4 * MIB).await && one.grow(7 * MIB).await);
        let mut waiting = pin!(other.grow(4 * MIB));
        assert!(waiting.as_mut().now_or_never().is_none());
        one.next();
        assert!(waiting.as_mut().now_or_never().is_none(), "it is not whole yet");
        one.received();
        one.next();
        assert!(waiting.await);
        assert!(!one.grow(11 * MIB).await, "that is more than there is");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_stands_still_loses_its_memory_to_one_that_waits() {
        let memory = MessageMemory::new(10 * MIB);
        let (mut still, mut other) = (sharing(&memory), sharing(&memory));
        assert!(still.grow(8 * MIB).await);
        let begun = Instant::now();
        let waited = async {
            still.overdue().await;
            still.release();
        };
        let (granted, ()) = tokio::join!(other.grow(8 * MIB), waited);
        assert!(granted);
        assert!((KEPT..WAITED).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_gets_no_memory_is_passed_over_in_the_end() {
        let memory = MessageMemory::new(10 * MIB);
        let (mut stored, mut other) = (sharing(&memory), sharing(&memory));
        assert!(stored.grow(8 * MIB).await);
        stored.received();
        assert!(!other.grow(8 * MIB).await);
        assert_eq!(*memory.waiting.borrow(), 0);
        assert!(!stored.is_overdue());
    }
}
