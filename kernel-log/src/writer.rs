//! The thread that stores appended entries, shared by all logs of a store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::Builder;
use std::time::{Duration, Instant};

use jupyter_protocol::Backoff;

use super::counters::Counters;
use super::open_log::{OpenLog, Retry};
use super::sync::{self, Syncer, Wanted};
use super::{Block, Durability, LogOptions, LogStore, Seq};

/// A log is trimmed whenever 1/16 of its size limit was stored since the last trim.
const TRIM_AFTER_PART: u64 = 16;
/// Maximum number of logs that share a sync before their readers are woken, with [`Durability::Always`].
const ROUND: usize = 64;
/// The pauses between attempts to store a block, with [`WhenFull::Wait`](super::WhenFull::Wait).
const RETRIES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// Keeps the thread running. After this is dropped, the thread stores pending entries, and ends once the last log is
/// dropped.
pub(super) struct Writer {
    queue: Queue,
    close_timeout: Duration,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close_within(self.close_timeout);
    }
}

impl Writer {
    pub(super) fn start(store: Arc<dyn LogStore>, options: &LogOptions) -> std::io::Result<Self> {
        let syncer = match options.durability {
            Durability::Batched => Some(Syncer::start(store.clone())?),
            Durability::Process | Durability::Always => None,
        };
        let wanted = syncer.as_ref().map(Syncer::wanted);
        let always = (options.durability == Durability::Always).then_some(store);
        let (queue, mut rounds) = Rounds::new(always, wanted);
        Builder::new().name("kernelmux-log".to_owned()).spawn({
            move || {
                while let Some(log) = rounds.next() {
                    rounds.store(log);
                    rounds.publish();
                }
                if let Some(syncer) = syncer {
                    syncer.finish();
                }
            }
        })?;
        Ok(Self {
            queue,
            close_timeout: options.close_timeout,
        })
    }

    /// A writer without a thread, whose rounds the caller runs. Syncs only with [`Durability::Always`].
    #[cfg(feature = "testing")]
    pub(super) fn without_thread(store: Arc<dyn LogStore>, options: &LogOptions) -> (Self, Rounds) {
        let always = (options.durability == Durability::Always).then_some(store);
        let (queue, rounds) = Rounds::new(always, None);
        let writer = Self {
            queue,
            close_timeout: options.close_timeout,
        };
        (writer, rounds)
    }

    /// Starts the timeout for closing, after which refused writes are not retried.
    pub(super) fn close_within(&self, timeout: Duration) {
        // If this is called again, the first deadline counts.
        self.queue.deadline.get_or_init(|| Instant::now() + timeout);
    }

    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }
}

/// The queue of logs with something to store.
#[derive(Clone)]
pub(super) struct Queue {
    queue: Sender<Arc<OpenLog>>,
    wanted: Option<Arc<Wanted>>,
    /// Bytes of all logs that wait to be stored.
    waiting_bytes: Arc<AtomicUsize>,
    pub(super) counters: Arc<Counters>,
    /// When to stop trying to store blocks that the store refuses, once the logs are being closed.
    deadline: Arc<OnceLock<Instant>>,
}

impl Queue {
    pub(super) fn push(&self, log: Arc<OpenLog>) {
        // The thread lives as long as any sender, and this is one.
        let _ = self.queue.send(log);
    }

    /// Bytes of all logs that wait to be stored.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Replaces a log's contribution `before` by `now`.
    pub(super) fn count(&self, before: usize, now: usize) {
        if now >= before {
            self.waiting_bytes.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.waiting_bytes.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Whether the time for closing is over.
    pub(super) fn is_over(&self) -> bool {
        self.deadline.get().is_some_and(|deadline| *deadline <= Instant::now())
    }

    /// Requests the sync of a block that was written, with [`Durability::Batched`].
    fn written(&self, written: &Written) {
        if let Some(wanted) = &self.wanted
            && written.stored
        {
            wanted.stored();
            if written.sync_soon {
                wanted.soon();
            }
        }
    }

    /// Requests a sync, with [`Durability::Batched`].
    pub(super) fn sync_soon(&self) {
        if let Some(wanted) = &self.wanted {
            wanted.soon();
        }
    }
}

/// The writer thread's loop: store, then publish.
pub(super) struct Rounds {
    waiting: Receiver<Arc<OpenLog>>,
    /// The store to sync before publishing, with [`Durability::Always`].
    always: Option<Arc<dyn LogStore>>,
    sync_fails: bool,
    /// Logs with a write that was passed to the store and is not published yet.
    round: Vec<(Arc<OpenLog>, Written)>,
    /// Logs with a refused write, by the time of its retry and then by the order of refusals.
    refused: BTreeMap<(Instant, u64), Arc<OpenLog>>,
    refusals: u64,
    /// Whether the last turn between queued logs and due retries went to a retry.
    is_retrying: bool,
    deadline: Arc<OnceLock<Instant>>,
}

impl Rounds {
    fn new(always: Option<Arc<dyn LogStore>>, wanted: Option<Arc<Wanted>>) -> (Queue, Self) {
        // Bounded by the number of logs, because each is queued at most once.
        let (queue, waiting) = mpsc::channel();
        let deadline = Arc::<OnceLock<Instant>>::default();
        let rounds = Self {
            waiting,
            always,
            sync_fails: false,
            round: Vec::new(),
            refused: BTreeMap::new(),
            refusals: 0,
            is_retrying: false,
            deadline: deadline.clone(),
        };
        let queue = Queue {
            queue,
            wanted,
            waiting_bytes: Arc::default(),
            counters: Arc::default(),
            deadline,
        };
        (queue, rounds)
    }

    /// Waits for a log with something to store; `None` if there will be none.
    fn next(&mut self) -> Option<Arc<OpenLog>> {
        while let Some((due, _)) = self.refused.keys().next() {
            let pause = due.saturating_duration_since(Instant::now());
            if pause.is_zero() {
                // Queued and refused logs take turns, so that neither kind waits long if the store refuses slowly.
                let other = self.is_retrying.then(|| self.waiting.try_recv().ok()).flatten();
                self.is_retrying = other.is_none();
                return other.or_else(|| self.next_refused());
            }
            // This fails only when the pause is over: refused logs have senders, so the queue stays connected.
            if let Ok(log) = self.waiting.recv_timeout(pause) {
                return Some(log);
            }
        }
        self.waiting.recv().ok()
    }

    fn next_refused(&mut self) -> Option<Arc<OpenLog>> {
        self.refused.pop_first().map(|(_, log)| log)
    }

    /// Stores pending entries of the first queued log, or retries a refused block without waiting for its pause.
    /// Returns `false` if there is neither.
    #[cfg(feature = "testing")]
    pub(super) fn store_first(&mut self) -> bool {
        let Some(log) = self.waiting.try_recv().ok().or_else(|| self.next_refused()) else {
            return false;
        };
        self.store(log);
        true
    }

    /// Schedules a retry of a log after a pause.
    fn retry_after(&mut self, pause: Duration, log: Arc<OpenLog>) {
        let due = Instant::now() + pause;
        let due = self.deadline.get().map_or(due, |deadline| due.min(*deadline));
        self.refusals += 1;
        self.refused.insert((due, self.refusals), log);
    }

    /// Stores pending entries of this log, and of the logs queued behind it if they can share a sync.
    fn store(&mut self, log: Arc<OpenLog>) {
        // With `Durability::Always`, queued logs share a sync. Otherwise, the first log does not wait for the others.
        let others = if self.always.is_some() { ROUND - 1 } else { 0 };
        self.store_one(log);
        for _ in 0..others {
            let Ok(log) = self.waiting.try_recv() else { break };
            self.store_one(log);
        }
        if let Some(store) = &self.always
            && self.round.iter().any(|(_, written)| written.stored)
        {
            self.sync_fails = sync::sync(&**store, self.sync_fails);
        }
    }

    fn store_one(&mut self, log: Arc<OpenLog>) {
        match store(&log) {
            Stored::Nothing => {}
            Stored::Written(written) => self.round.push((log, written)),
            Stored::Refused(pause) => self.retry_after(pause, log),
        }
    }

    /// Publishes the stored entries to readers.
    pub(super) fn publish(&mut self) {
        for (log, written) in self.round.drain(..) {
            log.writer.written(&written);
            if publish(&log, written) {
                // The log goes to the end of the queue, so that a flood does not starve the others.
                log.writer.push(log.clone());
            }
        }
    }
}

/// Stores and publishes pending entries in the calling thread, after [`OpenLog::begin_inline`]. The writer's thread
/// continues if there is more to store.
pub(super) fn store_inline(log: &Arc<OpenLog>) {
    let more = match store(log) {
        Stored::Nothing => false,
        Stored::Written(written) => {
            log.writer.written(&written);
            publish(log, written)
        }
        Stored::Refused(_) => true,
    };
    if more {
        log.writer.push(log.clone());
    }
}

/// A block and index updates that were taken from a log and passed to the store.
struct Written {
    block: Option<Block>,
    index_updates: u64,
    stored: bool,
    sync_soon: bool,
}

impl Written {
    /// The result for a log that is only to be trimmed.
    fn nothing() -> Self {
        Self {
            block: None,
            index_updates: 0,
            stored: false,
            sync_soon: false,
        }
    }
}

/// The result of storing a log's oldest pending block.
enum Stored {
    /// Nothing was pending.
    Nothing,
    /// The store accepted the write or refused it for good, or there are only acknowledged entries to drop.
    Written(Written),
    /// The store refused the write, which is retried after this pause.
    Refused(Duration),
}

/// Stores the oldest pending block and its index updates.
fn store(log: &OpenLog) -> Stored {
    let (block, updates, mut backoff) = {
        let mut state = log.state();
        if state.retry.is_some() && std::mem::take(&mut state.drop_acknowledged) {
            drop(state);
            // Dropping acknowledged entries may make room.
            trim(log);
            state = log.state();
        }
        if let Some(Retry { block, backoff }) = state.retry.take() {
            (block, state.writing_index.clone(), backoff)
        } else if let Some((block, mut updates)) = state.pending.take() {
            state.writing_bytes = block.as_ref().map_or(0, |block| block.size()) + updates.bytes();
            if !state.refused_index.is_empty() {
                let newer = updates;
                updates = std::mem::take(&mut state.refused_index);
                updates.extend_to(newer.newest(), newer.to_vec());
            }
            state.writing_index = Arc::new(updates);
            (block, state.writing_index.clone(), RETRIES)
        } else if state.drop_acknowledged {
            return Stored::Written(Written::nothing());
        } else {
            state.with_writer = false;
            return Stored::Nothing;
        }
    };
    let index = updates.to_vec();
    let stored = match &block {
        Some(block) => log.stored.append(block, &index),
        None => log.stored.index_put(&index),
    };
    log.writer.counters.count(block.as_ref(), stored.is_ok());
    let mut state = log.state();
    match &stored {
        Err(error) if log.is_retried(&state, error) => {
            let pause = backoff.next_pause();
            state.refused(log.id, Retry { block, backoff }, error);
            return Stored::Refused(pause);
        }
        Err(error) => state.not_recorded(log.id, block.as_ref(), error),
        Ok(()) => state.recorded(log.id),
    }
    let index_updates = updates.newest();
    state.writing_index = Arc::default();
    if stored.is_err() {
        state.refused_index = Arc::unwrap_or_clone(updates);
    }
    let written = Written {
        stored: stored.is_ok(),
        index_updates,
        // A sync request covers everything appended before it.
        sync_soon: state.pending.is_empty() && std::mem::take(&mut state.sync_soon),
        block,
    };
    drop(state);
    if let Some(block) = &written.block
        && !written.stored
    {
        log.stored.skip(block.last());
    }
    Stored::Written(written)
}

fn trim(log: &OpenLog) {
    if let Err(error) = log.trim() {
        tracing::error!(kernel_id = %log.id, %error, "the log cannot be trimmed");
    }
}

/// Wakes the readers, and trims the log if that is due. Returns whether there is more to store.
fn publish(log: &OpenLog, written: Written) -> bool {
    if let Some(quotas) = &log.quotas
        && written.stored
    {
        quotas.has_grown(log.id, log.stored.bytes());
    }
    let last: Option<Seq> = written.block.as_ref().map(Block::last);
    let (more, is_trimmed) = {
        let mut state = log.state();
        state.writing_bytes = 0;
        let length = written.block.as_ref().map_or(0, |block| block.size());
        state.recent_bytes += length;
        if let Some(block) = &written.block {
            log.large_blocks.stored(block);
            if written.stored {
                state.acknowledged.appended(block.last(), length as u64);
            }
        }
        let newest_is_stored = written.stored && written.block.is_some();
        state.recent.extend(written.block);
        // The newest block stays if it fits, or if the store does not have it.
        while state.recent_bytes > log.options.memory_bytes && (state.recent.len() > 1 || newest_is_stored) {
            if let Some(oldest) = state.recent.pop_front() {
                state.recent_bytes -= oldest.size();
            }
        }
        state.stored_since_trim += length as u64;
        let is_due = state.stored_since_trim >= (log.options.stored_bytes / TRIM_AFTER_PART).max(1);
        let is_trimmed = std::mem::take(&mut state.drop_acknowledged) || is_due;
        if is_due {
            state.stored_since_trim = 0;
        }
        state.with_writer = !state.pending.is_empty();
        log.count(&mut state);
        (state.with_writer, is_trimmed)
    };
    log.head.send_modify(|head| {
        head.seq = last.unwrap_or(head.seq);
        head.index_updates = head.index_updates.max(written.index_updates);
    });
    log.room.notify_waiters();
    if is_trimmed {
        trim(log);
    }
    more
}
