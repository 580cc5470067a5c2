//! Cleans up after a launch that failed or was cancelled.

use std::sync::Arc;

use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::process::Process;
use crate::state::KernelFiles;

/// Guards a process until its launch succeeds. Dropping the guard kills all processes of the process's session.
pub(super) struct ProcessGuard {
    pub(super) process: Option<Arc<Process>>,
    pub(super) files: KernelFiles,
    /// Whether to remove the files too. False for a restart, because the files existed before it.
    pub(super) is_new: bool,
    pub(super) tracker_token: TaskTrackerToken,
}

impl ProcessGuard {
    /// Leaves the process and its files to the new owner.
    pub(super) fn disarm(mut self) {
        self.keep_files();
        self.process = None;
    }

    /// Keeps the files.
    pub(super) fn keep_files(&mut self) {
        self.is_new = false;
    }

    /// Kills the process and its session, and reaps it. Blocks the thread.
    pub(super) fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
            process.reap();
        }
    }

    /// Cleans up as on drop, but returns only once that is complete. Blocks the thread.
    pub(super) fn clean_up(mut self) {
        self.end();
        if self.is_new {
            self.files.remove_all();
            self.keep_files();
        }
    }
}

impl Drop for ProcessGuard {
    fn drop(&mut self) {
        let process = self.process.take();
        let files = self.is_new.then(|| self.files.clone());
        if let Some(process) = &process {
            // Kill the process before this returns, in case the program ends now. The rest of the cleanup takes a
            // moment.
            process.kill();
        }
        if process.is_none() && files.is_none() {
            return;
        }
        let tracker_token = self.tracker_token.clone();
        let clean_up = move || {
            let _until_done = tracker_token;
            if let Some(process) = process {
                process.reap();
            }
            if let Some(files) = files {
                files.remove_all();
            }
        };
        // A thread instead of a task, because the runtime may be shutting down. If no thread can be spawned, the next
        // provider that opens the directory removes the files.
        if let Err(error) = std::thread::Builder::new()
            .name("kernel-cleanup".to_owned())
            .spawn(clean_up)
        {
            tracing::warn!(%error, "killed the kernel of a cancelled launch, but cannot remove its files");
        }
    }
}
