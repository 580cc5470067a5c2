//! The thread that stores what is appended. One for all logs of a store: they share its disk.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Builder, JoinHandle};

use super::{Seq, Shared};

/// A log is trimmed each time this part of what it may keep was stored.
const TRIM_AFTER_PART: u64 = 16;

/// Owns the thread. Dropping it lets the thread store what waits, and end with the last log.
pub(super) struct Writer {
    queue: Queue,
    thread: JoinHandle<()>,
}

impl Writer {
    pub(super) fn start() -> std::io::Result<Self> {
        // Bounded by the number of logs: a log is in it once at most.
        let (queue, waiting) = mpsc::channel();
        let thread = Builder::new()
            .name("kernelmux-log".to_owned())
            .spawn(move || run(&waiting))?;
        Ok(Self {
            queue: Queue(queue),
            thread,
        })
    }

    /// Waits for the thread, which ends once all is stored and no log is open.
    pub(super) fn finish(self) {
        drop(self.queue);
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }

    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }
}

/// Logs with entries to be stored.
#[derive(Clone)]
pub(super) struct Queue(Sender<Arc<Shared>>);

impl Queue {
    pub(super) fn push(&self, log: Arc<Shared>) {
        // The thread ends only after the last sender is gone, and this is one.
        let _ = self.0.send(log);
    }
}

fn run(waiting: &Receiver<Arc<Shared>>) {
    while let Ok(log) = waiting.recv() {
        if write_once(&log) {
            // More was appended meanwhile: behind the other logs, so that a flood does not starve them.
            log.writer.push(log.clone());
        }
    }
}

/// Stores what waits and wakes the readers. Returns whether there is more.
fn write_once(log: &Shared) -> bool {
    let block = {
        let mut state = log.state();
        let Some(block) = state.waiting.take() else {
            state.with_writer = false;
            return false;
        };
        state.writing_bytes = block.bytes().len();
        block
    };
    let last = block.last();
    let length = block.bytes().len();
    let stored = log.stored.append(&block);
    let (more, trim) = {
        let mut state = log.state();
        match &stored {
            Ok(()) => {
                if state.store_failed {
                    tracing::warn!(kernel_id = %log.id, first = %block.first(), "the log is being recorded again");
                }
                state.store_failed = false;
            }
            Err(error) => {
                if !state.store_failed {
                    tracing::error!(kernel_id = %log.id, first = %block.first(), %error, "the log is not being recorded");
                }
                state.store_failed = true;
            }
        }
        state.writing_bytes = 0;
        state.recent_bytes += length;
        state.recent.push_back(block);
        while state.recent_bytes > log.options.memory_bytes && state.recent.len() > 1 {
            if let Some(oldest) = state.recent.pop_front() {
                state.recent_bytes -= oldest.bytes().len();
            }
        }
        state.stored_since_trim += length as u64;
        let trim = state.stored_since_trim >= (log.options.stored_bytes / TRIM_AFTER_PART).max(1);
        if trim {
            state.stored_since_trim = 0;
        }
        state.with_writer = state.waiting.bytes() > 0;
        (state.with_writer, trim)
    };
    publish(log, last);
    if trim && let Err(error) = log.stored.trim(log.options.stored_bytes) {
        tracing::error!(kernel_id = %log.id, %error, "the log cannot be trimmed");
    }
    more
}

fn publish(log: &Shared, last: Seq) {
    log.head.send_modify(|head| head.seq = last);
    log.room.notify_waiters();
}
