//! The task that watches a kernel's process.

use std::fs::OpenOptions;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kernel_provider::Exit;
use rustix::fs::inotify::WatchFlags;
use tokio::sync::Notify;

use super::LocalKernel;
use crate::context::blocking;
use crate::events::Events;
use crate::output::{self, Trimmer};
use crate::process::Process;
use crate::state::KernelFiles;

/// Minimum time between checks of the output file, so that continuous output does not keep the task busy.
const TRIM_PAUSE: Duration = Duration::from_millis(200);

/// Watches a process until it is gone, and keeps its output bounded until then.
///
/// The task has only a weak reference to the kernel, so that dropping the provider and all handles unlocks the state
/// directory.
pub(super) async fn supervise(
    kernel: Weak<LocalKernel>,
    events: Option<Arc<Events>>,
    files: KernelFiles,
    process: Arc<Process>,
    output_from: u64,
) {
    let ended = tokio::select! {
        ended = process.ended() => ended,
        never = bound_output(events.as_deref(), &files) => match never {},
    };
    let Ok(ended) = ended else {
        // The runtime is shutting down.
        return;
    };
    let ended = blocking("end the processes that the kernel started", move || {
        process.reap();
        if let Some(kernel) = kernel.upgrade() {
            let output = output::tail(&files.output(), output_from, output::ERROR_TAIL).unwrap_or_default();
            let cause = kernel.context.cause(ended);
            kernel.process_ended(Exit::new(cause).with_output(output));
        }
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "cannot process the end of a kernel");
    }
}

async fn bound_output(events: Option<&Events>, files: &KernelFiles) -> std::convert::Infallible {
    let Some(events) = events else {
        // The output goes through a pipe.
        return std::future::pending().await;
    };
    let path = files.output();
    let wrote = Arc::new(Notify::new());
    let mut trimmer = Trimmer::default();
    loop {
        // One event, and then none until the pause is over, so that continuous output does not cause continuous events.
        let once = WatchFlags::MODIFY | WatchFlags::ONESHOT;
        let watch = events.watch(&path, once, &wrote);
        let file = OpenOptions::new().write(true).open(&path);
        let trimmed = file.and_then(|file| trimmer.trim(&file));
        if let Err(error) = watch.as_ref().map(drop).and(trimmed.as_ref().map(drop)) {
            tracing::warn!(%error, path = %path.display(), "cannot limit the size of the kernel's output");
            return std::future::pending().await;
        }
        wrote.notified().await;
        drop(watch);
        tokio::time::sleep(TRIM_PAUSE).await;
    }
}
