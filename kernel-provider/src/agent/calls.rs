//! The requests that a handle makes to its kernel's agent.

use std::time::Duration;

use jupyter_protocol::ConnectionInfo;
use tokio::time::timeout;

use super::{Answer, Control, Link, LinkClosed};
use crate::{ExitCause, Interrupt, LaunchError, ProviderError, Usage};

/// How long an agent may take to answer a request that it can answer at once.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Why a request to an agent failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The agent is gone.
    #[error(transparent)]
    Closed(#[from] LinkClosed),
    /// The agent refused the request or did not answer in time.
    #[error(transparent)]
    Failed(#[from] ProviderError),
}

impl From<CallError> for ProviderError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Closed(closed) => closed.into(),
            CallError::Failed(error) => error,
        }
    }
}

impl From<LinkClosed> for ProviderError {
    fn from(closed: LinkClosed) -> Self {
        Self::Gone(ExitCause::Unknown(closed.to_string()))
    }
}

impl Link {
    /// Sends a request, and waits for the answer for at most [`ANSWER_DEADLINE`].
    async fn call(&self, action: &str, control: Control) -> Result<Answer, CallError> {
        match timeout(ANSWER_DEADLINE, self.control(control)).await {
            Ok(Ok(Answer::Failed(error))) => Err(error.into()),
            Ok(answer) => Ok(answer?),
            Err(_) => {
                let reason = format!("its agent did not answer within {ANSWER_DEADLINE:?}");
                Err(ProviderError::failed(action, reason).into())
            }
        }
    }

    /// Returns the end of the kernel's standard output and error.
    ///
    /// # Errors
    /// [`CallError`] if the agent is gone, refuses or does not answer.
    pub async fn output(&self) -> Result<String, CallError> {
        let action = "read the kernel's output";
        match self.call(action, Control::Output).await? {
            Answer::Output(output) => Ok(output),
            _ => Err(unexpected(action)),
        }
    }

    /// Returns the kernel's connection information, with the key.
    ///
    /// # Errors
    /// [`CallError`] if the agent is gone, refuses or does not answer.
    pub async fn connection(&self) -> Result<ConnectionInfo, CallError> {
        let action = "find the kernel's sockets";
        match self.call(action, Control::Connection).await? {
            Answer::Connection(connection) => Ok(connection),
            _ => Err(unexpected(action)),
        }
    }

    /// Returns the resources that the kernel uses.
    ///
    /// # Errors
    /// [`CallError`] if the agent is gone, refuses or does not answer.
    pub async fn usage(&self) -> Result<Option<Usage>, CallError> {
        let action = "measure the kernel's resources";
        match self.call(action, Control::Usage).await? {
            Answer::Usage(usage) => Ok(usage),
            _ => Err(unexpected(action)),
        }
    }

    /// Interrupts the kernel.
    ///
    /// # Errors
    /// [`CallError`] if the agent is gone, refuses or does not answer.
    pub async fn interrupt(&self) -> Result<Interrupt, CallError> {
        let action = "interrupt the kernel";
        match self.call(action, Control::Interrupt).await? {
            Answer::Done => Ok(Interrupt::Signalled),
            Answer::InterruptByMessage => Ok(Interrupt::ByMessage),
            _ => Err(unexpected(action)),
        }
    }

    /// Waits, without a time limit, until the agent has carried out a request that starts the kernel.
    ///
    /// # Errors
    /// [`LinkClosed`] if the agent is gone. The inner [`LaunchError`] if the kernel did not start.
    pub async fn launched(&self, control: Control) -> Result<Result<(), LaunchError>, LinkClosed> {
        Ok(match self.control(control).await? {
            Answer::NotStarted(error) => Err(error),
            Answer::Failed(error) => Err(error.into()),
            _ => Ok(()),
        })
    }
}

/// The error for an unexpected answer. It omits the answer, which may contain a key.
fn unexpected(action: &str) -> CallError {
    ProviderError::failed(action, "its agent sent an unexpected answer").into()
}
