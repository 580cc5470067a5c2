use jupyter_protocol::content::{Content, Reply, ReplyError};
use kernel_log::{ExecutionStatus, Lifecycle, ReadError, Seq};

use super::{Execution, ExecutionError};
use crate::fold::{Fold, FoldLimits, Output};

/// The result of code that was [run](super::Kernel::run) to its end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunResult {
    /// How the execution ended: `Ok`, `Error`, `Aborted`, `Died` or `Lost`.
    pub status: ExecutionStatus,
    /// The exception, for [`ExecutionStatus::Error`], if the log has the reply.
    pub error: Option<ReplyError>,
    /// What ended the kernel, for [`ExecutionStatus::Died`].
    pub reason: Option<String>,
    /// The outputs as a notebook shows them; up to the kernel's end if it died.
    pub outputs: Vec<Output>,
    /// The kernel's execution counter, if it has one.
    pub execution_count: Option<u64>,
    /// Where messages may be missing; empty if the outputs are complete.
    pub losses: Vec<Loss>,
}

/// Why messages of an execution may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// The kernel was not recorded for a while, or its connection was lost.
    Unrecorded(Lifecycle),
    /// The log does not have these entries, because retention dropped them or they could not be stored.
    Gap {
        /// The first missing entry.
        first: Seq,
        /// The last missing entry.
        last: Seq,
    },
}

impl RunResult {
    /// Whether the code ran without an exception.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status == ExecutionStatus::Ok
    }

    /// The text on standard output, and the values and displays in plain text. Each value or display begins a new line.
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
        let mut has_ended = false;
        while let Some(next) = execution.next_entry().await {
            let (entry, message) = match next {
                Ok(next) => next,
                Err(ExecutionError::Loss(event)) => {
                    result.losses.push(Loss::Unrecorded(event));
                    continue;
                }
                Err(ExecutionError::Read(ReadError::Gap { first, last })) => {
                    result.losses.push(Loss::Gap { first, last });
                    continue;
                }
                Err(ExecutionError::KernelEnded { reason }) => {
                    (result.status, result.reason) = (ExecutionStatus::Died, reason);
                    has_ended = true;
                    break;
                }
                Err(ExecutionError::Lost) => {
                    has_ended = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            fold.apply(entry.channel(), &entry.message());
            if let Content::ExecuteReply(reply) = message.content {
                has_ended = true;
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
        // If no end was read, the reply is among the missing entries.
        if !has_ended {
            let record = execution.record();
            if let Some(record) = record.await.map_err(ReadError::from)? {
                result.status = record.status;
                result.execution_count = record.execution_count;
            }
        }
        Ok(result)
    }
}
