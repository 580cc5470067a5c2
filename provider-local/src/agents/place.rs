use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kernel_provider::agent::{Connect, Place, Stream};
use kernel_provider::{Exit, ExitCause, KernelRecord, ProviderError};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use super::files::{AgentFiles, SavedAgent};
use crate::context::{ProviderContext, blocking};
use crate::process::{ExitStatus, Process};

/// An agent that is a process of this machine.
pub(crate) struct LocalPlace {
    context: Arc<ProviderContext>,
    files: AgentFiles,
    saved: Mutex<SavedAgent>,
    token: String,
    process: Arc<Process>,
    exit: OnceCell<Exit>,
}

impl LocalPlace {
    pub(super) fn new(context: &Arc<ProviderContext>, files: AgentFiles, saved: SavedAgent, process: Process) -> Self {
        Self {
            context: context.clone(),
            files,
            token: saved.token.clone(),
            saved: Mutex::new(saved),
            process: Arc::new(process),
            exit: OnceCell::new(),
        }
    }

    /// Kills the agent and its kernel, and removes their files. Blocks the thread.
    pub(super) fn remove_now(&self) {
        self.process.kill();
        self.process.reap();
        self.files.end_kernel();
        self.files.remove_all();
    }

    /// Kills the remaining processes of an agent that has ended, and determines why it ended.
    async fn clean_up(&self, ended: ExitStatus) -> Exit {
        let (process, files) = (self.process.clone(), self.files.clone());
        let last_error_line = blocking("end the kernel of an agent", move || {
            process.reap();
            files.end_kernel();
            files.last_error_line()
        });
        let last_error_line = last_error_line.await.unwrap_or_default();
        let cause = match self.context.cause(ended) {
            ExitCause::Code(0) => ExitCause::Requested,
            ExitCause::OutOfMemory => ExitCause::OutOfMemory,
            cause => ExitCause::Unknown(format!("its agent ended ({cause})")),
        };
        Exit::new(cause).with_output(last_error_line)
    }
}

#[async_trait]
impl Connect for LocalPlace {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(UnixStream::connect(&self.files.socket).await?))
    }

    fn token(&self) -> &str {
        &self.token
    }
}

#[async_trait]
impl Place for LocalPlace {
    fn record(&self) -> KernelRecord {
        let saved = crate::lock(&self.saved);
        let mut record = saved.record.clone();
        record.data = serde_json::json!({
            "agent": saved.process.as_ref().map(|process| process.pid),
            "dir": self.files.dir,
        });
        record
    }

    async fn confirm(&self) -> Result<(), ProviderError> {
        let saved = {
            let mut saved = crate::lock(&self.saved);
            saved.is_confirmed = true;
            saved.clone()
        };
        let files = self.files.clone();
        blocking("record that a kernel has started", move || files.save(&saved)).await?
    }

    async fn gone(&self) -> Exit {
        let ended = self.process.ended().await;
        // Fails only when the runtime is shutting down.
        let ended = ended.unwrap_or(ExitStatus::Unknown);
        self.exit.get_or_init(|| self.clean_up(ended)).await.clone()
    }

    fn kill(&self) {
        self.process.kill();
    }

    async fn remove(&self) {
        self.process.kill();
        self.gone().await;
        let files = self.files.clone();
        if let Err(error) = blocking("remove the folder of an agent", move || files.remove_all()).await {
            tracing::warn!(%error, "cannot remove the folder of an agent");
        }
    }
}
