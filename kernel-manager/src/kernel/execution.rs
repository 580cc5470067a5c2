use std::collections::VecDeque;
use std::sync::Arc;

use jupyter_protocol::content::{Content, ExecuteRequest, ExecutionState, InputReply};
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Entry, Lifecycle, Origin, ReadError, Seq};
use memchr::memmem;

use super::{Attachment, Kernel};
use crate::session::SendError;

/// Why an execution ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutionError {
    /// The kernel died or was restarted. Output up to then is in its log.
    #[error("the kernel ended before the execution was done{}", because(reason.as_deref()))]
    KernelEnded {
        /// The known cause.
        reason: Option<String>,
    },
    /// It ended unrecorded, for example while the recording process restarted.
    #[error("the execution ended while its kernel was not recorded")]
    Lost,
    /// A part of the log is missing or unreadable.
    #[error(transparent)]
    Read(#[from] ReadError),
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}

/// Code that runs in a kernel, followed through the kernel's log: its outputs, reply and status.
///
/// Dropping it stops following. The code keeps running, and its output goes to the log.
pub struct Execution {
    attachment: Attachment,
    msg_id: String,
    session: String,
    ready: VecDeque<Entry>,
    position: Seq,
    /// Whether the request has been read. Life-cycle entries before it concern earlier executions.
    asked: bool,
    replied: bool,
    idle: bool,
}

impl Execution {
    pub(crate) async fn start(kernel: &Arc<Kernel>, request: ExecuteRequest) -> Result<Self, SendError> {
        let session = uuid::Uuid::new_v4().to_string();
        let position = kernel.log().head();
        let attachment = kernel.attach_at(&session, position);
        let message = Message::new(request, &session);
        let execution = Self {
            position,
            attachment,
            msg_id: message.header.msg_id.clone(),
            session,
            ready: VecDeque::new(),
            asked: false,
            replied: false,
            idle: false,
        };
        execution.send(Channel::Shell, message.to_wire()).await?;
        Ok(execution)
    }

    /// The `msg_id` of the request.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.msg_id
    }

    /// The last log entry that was read.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.position
    }

    /// The next message of the execution, in log order: status, outputs, input requests, the reply. `None` once both
    /// the reply and `idle` have been returned. Cancel-safe.
    ///
    /// # Errors
    /// [`ExecutionError::KernelEnded`] if the kernel ends first; [`ExecutionError::Read`] if entries are missing.
    pub async fn next(&mut self) -> Option<Result<Message, ExecutionError>> {
        loop {
            if self.replied && self.idle {
                return None;
            }
            while let Some(entry) = self.ready.pop_front() {
                self.position = entry.seq();
                match self.take(&entry) {
                    Ok(None) => {}
                    Ok(Some(message)) => return Some(Ok(message)),
                    Err(error) => {
                        (self.replied, self.idle) = (true, true);
                        return Some(Err(error));
                    }
                }
            }
            match self.attachment.next().await {
                Ok(Some(block)) => self.ready.extend(block.entries()),
                Ok(None) => {
                    (self.replied, self.idle) = (true, true);
                    return Some(Err(ExecutionError::KernelEnded { reason: None }));
                }
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    /// Answers the kernel's `input_request`.
    ///
    /// # Errors
    /// [`SendError`] if the kernel is dead.
    pub async fn answer(&self, value: impl Into<String>) -> Result<(), SendError> {
        let reply = Message::new(InputReply::new(value), &self.session);
        self.send(Channel::Stdin, reply.to_wire()).await
    }

    async fn send(&self, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        self.attachment.client().send(channel, message).await
    }

    fn take(&mut self, entry: &Entry) -> Result<Option<Message>, ExecutionError> {
        match entry.origin() {
            Origin::Client => {
                self.asked |= entry.session() == self.session;
                return Ok(None);
            }
            Origin::Lifecycle if !self.asked => return Ok(None),
            Origin::Lifecycle => return self.ended(&entry.message()).map_or(Ok(None), Err),
            Origin::Kernel => {}
        }
        let wire = entry.message();
        // Few of a kernel's messages belong to this execution, and searching for its id is cheaper than parsing.
        if memmem::find(wire.parent_header(), self.msg_id.as_bytes()).is_none() {
            return Ok(None);
        }
        let Ok(message) = Message::from_wire(&wire) else {
            return Ok(None);
        };
        if message
            .parent_header
            .as_ref()
            .is_none_or(|parent| parent.msg_id != self.msg_id)
        {
            return Ok(None);
        }
        match &message.content {
            Content::Status(status) if status.execution_state == ExecutionState::Idle => self.idle = true,
            Content::ExecuteReply(_) => self.replied = true,
            _ => {}
        }
        Ok(Some(message))
    }

    /// Whether this event ends the kernel, or the process that ran the code.
    fn ended(&self, message: &WireMessage) -> Option<ExecutionError> {
        match Lifecycle::from_message(message)? {
            Lifecycle::Lost { executions } => executions.contains(&self.msg_id).then_some(ExecutionError::Lost),
            Lifecycle::Restarting => Some(ExecutionError::KernelEnded {
                reason: Some("restarting".to_owned()),
            }),
            Lifecycle::RestartingByItself { reason, .. } | Lifecycle::Dead { reason, .. } => {
                Some(ExecutionError::KernelEnded { reason: Some(reason) })
            }
            _ => None,
        }
    }
}
