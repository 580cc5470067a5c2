//! The thread that stores appended entries, shared by all logs of a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Builder;

use super::open_log::OpenLog;
use super::sync::{self, Syncer, Wanted};
use super::{Block, Durability, LogStore, Seq};

/// A log is trimmed whenever this fraction of its size limit was stored.
const TRIM_AFTER_PART: u64 = 16;
/// The most logs that are written before readers are woken.
const ROUND: usize = 64;

/// Keeps the thread running. When this is dropped, the thread stores pending entries and ends with the last log.
pub(super) struct Writer {
    queue: Queue,
}

impl Writer {
    pub(super) fn start(store: Arc<dyn LogStore>, durability: Durability) -> std::io::Result<Self> {
        let syncer = match durability {
            Durability::Batched => Some(Syncer::start(store.clone())?),
            Durability::Process | Durability::Always => None,
        };
        let wanted = syncer.as_ref().map(Syncer::wanted);
        let always = (durability == Durability::Always).then_some(store);
        let (queue, mut rounds) = Rounds::new(always, wanted);
        Builder::new().name("kernelmux-log".to_owned()).spawn({
            move || {
                while let Ok(log) = rounds.waiting.recv() {
                    rounds.store(log);
                    rounds.publish();
                }
                if let Some(syncer) = syncer {
                    syncer.finish();
                }
            }
        })?;
        Ok(Self { queue })
    }

    /// A writer without a thread, whose rounds the caller runs. Syncs only with [`Durability::Always`].
    #[cfg(feature = "testing")]
    pub(super) fn by_hand(store: Arc<dyn LogStore>, durability: Durability) -> (Self, Rounds) {
        let always = (durability == Durability::Always).then_some(store);
        let (queue, rounds) = Rounds::new(always, None);
        (Self { queue }, rounds)
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

    /// Requests a sync, if the options ask for syncs.
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
    wanted: Option<Arc<Wanted>>,
    sync_fails: bool,
    /// Stored and not yet published.
    round: Vec<(Arc<OpenLog>, Written)>,
}

impl Rounds {
    fn new(always: Option<Arc<dyn LogStore>>, wanted: Option<Arc<Wanted>>) -> (Queue, Self) {
        // Bounded by the number of logs, because each is queued at most once.
        let (queue, waiting) = mpsc::channel();
        let rounds = Self {
            waiting,
            always,
            wanted: wanted.clone(),
            sync_fails: false,
            round: Vec::new(),
        };
        let queue = Queue {
            queue,
            wanted,
            waiting_bytes: Arc::default(),
        };
        (queue, rounds)
    }

    /// Stores pending entries of the first queued log; `false` if none is queued.
    #[cfg(feature = "testing")]
    pub(super) fn store_first(&mut self) -> bool {
        let Ok(log) = self.waiting.try_recv() else {
            return false;
        };
        self.store(log);
        true
    }

    /// Stores pending entries of this log, and of the logs queued behind it if they can share a sync.
    fn store(&mut self, log: Arc<OpenLog>) {
        // Queued logs share the sync. Without one, the first log does not wait for the others.
        let others = if self.always.is_some() { ROUND - 1 } else { 0 };
        for log in std::iter::once(log).chain(self.waiting.try_iter().take(others)) {
            if let Some(written) = store(&log) {
                self.round.push((log, written));
            }
        }
        if let Some(store) = &self.always
            && self.round.iter().any(|(_, written)| written.stored)
        {
            self.sync_fails = sync::sync(&**store, self.sync_fails);
        }
    }

    /// Publishes the stored entries to readers.
    pub(super) fn publish(&mut self) {
        for (log, written) in self.round.drain(..) {
            if let Some(wanted) = &self.wanted
                && written.stored
            {
                wanted.stored();
                if written.sync_soon {
                    wanted.soon();
                }
            }
            if publish(&log, written) {
                // The log goes to the end of the queue, so that a flood does not starve the others.
                log.writer.push(log.clone());
            }
        }
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
    /// For a log that is only to be trimmed.
    fn nothing() -> Self {
        Self {
            block: None,
            index_updates: 0,
            stored: false,
            sync_soon: false,
        }
    }
}

/// Stores the oldest pending block and its index updates; `None` if nothing is pending and nothing is to be dropped.
fn store(log: &OpenLog) -> Option<Written> {
    let (block, updates) = {
        let mut state = log.state();
        let Some((block, mut updates)) = state.pending.take() else {
            state.with_writer = state.drop_acknowledged;
            return state.drop_acknowledged.then(Written::nothing);
        };
        state.writing_bytes = block.as_ref().map_or(0, |block| block.size()) + updates.bytes();
        if !state.refused_index.is_empty() {
            let newer = updates;
            updates = std::mem::take(&mut state.refused_index);
            updates.extend_to(newer.newest(), newer.to_vec());
        }
        state.writing_index = Arc::new(updates);
        (block, state.writing_index.clone())
    };
    let index = updates.to_vec();
    let stored = match &block {
        Some(block) => log.stored.append(block, &index),
        None => log.stored.index_put(&index),
    };
    let mut state = log.state();
    state.writing_index = Arc::default();
    let index_updates = updates.newest();
    match &stored {
        Ok(()) => state.recorded(log.id),
        Err(error) => {
            state.not_recorded(log.id, block.as_ref(), error);
            state.refused_index = Arc::unwrap_or_clone(updates);
        }
    }
    // A sync request covers everything appended before it.
    let sync_soon = state.pending.is_empty() && std::mem::take(&mut state.sync_soon);
    Some(Written {
        block,
        index_updates,
        stored: stored.is_ok(),
        sync_soon,
    })
}

/// Wakes the readers, and trims the log if that is due. Returns whether there is more to store.
fn publish(log: &OpenLog, written: Written) -> bool {
    let last: Option<Seq> = written.block.as_ref().map(Block::last);
    let (more, trim) = {
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
        state.recent.extend(written.block);
        // Keep the newest block only if the store does not have it, or if it fits.
        while state.recent_bytes > log.options.memory_bytes && (state.recent.len() > 1 || written.stored) {
            if let Some(oldest) = state.recent.pop_front() {
                state.recent_bytes -= oldest.size();
            }
        }
        state.stored_since_trim += length as u64;
        let is_due = state.stored_since_trim >= (log.options.stored_bytes / TRIM_AFTER_PART).max(1);
        let trim = std::mem::take(&mut state.drop_acknowledged) || is_due;
        if is_due {
            state.stored_since_trim = 0;
        }
        state.with_writer = !state.pending.is_empty();
        log.count(&mut state);
        (state.with_writer, trim)
    };
    log.head.send_modify(|head| {
        head.seq = last.unwrap_or(head.seq);
        head.index_updates = head.index_updates.max(written.index_updates);
    });
    log.room.notify_waiters();
    if trim && let Err(error) = log.trim() {
        tracing::error!(kernel_id = %log.id, %error, "the log cannot be trimmed");
    }
    more
}
