use jupyter_protocol::content::{Content, Reply, ReplyError};
use kernel_log::Lifecycle;

use super::{Execution, ExecutionError};
use crate::fold::{Fold, FoldLimits, Output};
use crate::session::ExecutionStatus;

/// What became of code that was [run](super::Kernel::run) to its end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunResult {
    /// How it ended: `Ok`, `Error`, `Aborted`, `Died` or `Lost`.
    pub status: ExecutionStatus,
    /// The exception, for [`ExecutionStatus::Error`].
    pub error: Option<ReplyError>,
    /// What ended the kernel, for [`ExecutionStatus::Died`].
    pub reason: Option<String>,
    /// The outputs as a notebook shows them; up to the kernel's end if it died.
    pub outputs: Vec<Output>,
    /// The kernel's execution counter, if it has one.
    pub execution_count: Option<u64>,
    /// Events after which messages may be missing; empty if the outputs are complete.
    pub losses: Vec<Lifecycle>,
}

impl RunResult {
    /// Whether the code ran without an exception.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status == ExecutionStatus::Ok
    }

    /// The text on standard output, and the values and displays in plain text, each on separate lines.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for output in &self.outputs {
            if !text.is_empty() && !text.ends_with('\n') && !matches!(output, Output::Stream { .. }) {
                text.push('\n');
            }
            match output {
                Output::Stream { name, text: written } if name == "stdout" => text.push_str(written),
                Output::DisplayData { .. } | Output::ExecuteResult { .. } => {
                    text.push_str(&output.plain_text().unwrap_or_default());
                }
                _ => {}
            }
        }
        text
    }

    /// Reads the execution to its end.
    pub(super) async fn of(mut execution: Execution) -> Result<Self, ExecutionError> {
        let mut fold = Fold::new(FoldLimits::default());
        let mut result = Self {
            status: ExecutionStatus::Lost,
            error: None,
            reason: None,
            outputs: Vec::new(),
            execution_count: None,
            losses: Vec::new(),
        };
        while let Some(next) = execution.next_entry().await {
            let (entry, message) = match next {
                Ok(next) => next,
                Err(ExecutionError::Loss(event)) => {
                    result.losses.push(event);
                    continue;
                }
                Err(ExecutionError::KernelEnded { reason }) => {
                    (result.status, result.reason) = (ExecutionStatus::Died, reason);
                    break;
                }
                Err(ExecutionError::Lost) => {
                    result.status = ExecutionStatus::Lost;
                    break;
                }
                Err(error) => return Err(error),
            };
            fold.apply(entry.channel(), &entry.message());
            if let Content::ExecuteReply(reply) = message.content {
                result.status = match reply {
                    Reply::Ok(_) => ExecutionStatus::Ok,
                    Reply::Aborted(_) => ExecutionStatus::Aborted,
                    Reply::Error(error) => {
                        result.error = Some(error);
                        ExecutionStatus::Error
                    }
                    _ => ExecutionStatus::Error,
                };
            }
        }
        result.execution_count = fold.execution_count();
        result.outputs = fold.outputs();
        Ok(result)
    }
}
