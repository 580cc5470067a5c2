//! Restarts of a kernel, which can be cancelled.

use std::sync::Arc;
use std::time::Duration;

use kernel_provider::{Exit, ExitCause, LaunchError, Phase, Progress, ProviderError};

use super::LocalKernel;
use crate::launch::{self, Ready};

/// How long a restarted kernel may take to accept connections.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

impl LocalKernel {
    pub(super) async fn restart_now(self: &Arc<Self>, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let restarting = RestartGuard::begin(self)?;
        self.phase.send_replace(Phase::Restarting);
        self.end_process(grace).await?;
        let (saved, connection) = {
            let state = crate::lock(&self.state);
            (state.saved.clone(), state.connection.clone())
        };
        let connection = connection.unwrap_or_else(|| launch::new_connection(&saved.start));
        let ready = launch::start(
            &self.context,
            &self.files,
            saved,
            connection,
            false,
            RESTART_TIMEOUT,
            &progress,
        )
        .await;
        match ready {
            Ok(ready) => {
                restarting.done(ready);
                Ok(())
            }
            Err(error) => {
                restarting.failed(&error);
                Err(error)
            }
        }
    }
}

/// A restart in progress. Dropping it before [`done`](Self::done) ends the restart as failed or cancelled.
struct RestartGuard<'a> {
    kernel: &'a Arc<LocalKernel>,
    exit: Exit,
    is_over: bool,
}

impl<'a> RestartGuard<'a> {
    fn begin(kernel: &'a Arc<LocalKernel>) -> Result<Self, ProviderError> {
        let mut state = crate::lock(&kernel.state);
        if state.is_closed {
            return Err(ProviderError::Closed);
        }
        if state.is_ending {
            return Err(ProviderError::Gone(ExitCause::Requested));
        }
        state.is_restarting = true;
        let exit = Exit::new(ExitCause::Unknown(
            "it was ended for a restart that was cancelled".to_owned(),
        ));
        Ok(Self {
            kernel,
            exit,
            is_over: false,
        })
    }

    fn done(mut self, ready: Ready) {
        self.is_over = true;
        let mut state = crate::lock(&self.kernel.state);
        state.is_restarting = false;
        // If the provider was closed meanwhile, the next provider finds the started kernel.
        if state.is_closed {
            return;
        }
        let from = ready.saved.output_from;
        state.saved = ready.saved;
        state.connection = Some(ready.connection);
        state.running = Some(self.kernel.supervise(ready.process, from));
        self.kernel.phase.send_replace(Phase::Running);
    }

    fn failed(mut self, error: &LaunchError) {
        self.exit = error.exit_after_restart();
    }
}

impl Drop for RestartGuard<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = crate::lock(&self.kernel.state);
        state.is_restarting = false;
        if state.is_closed {
            return;
        }
        if state.running.is_some() {
            // The old process still exists. If it has received SIGTERM, its supervisor reports the exit.
            self.kernel.phase.send_replace(Phase::Running);
        } else {
            self.kernel.exited(state, self.exit.clone());
        }
    }
}
