use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{Stream, StreamExt};
use jupyter_protocol::content::{Content, ExecuteRequest, ExecutionState, InputReply};
use jupyter_protocol::{Channel, Message};
use kernel_log::Lifecycle;
use memchr::memmem;

use super::{Entry, Event, ExecutionError, ResumeClient, SendError};

/// Code that runs in a kernel, followed over any disconnect. Made by [`ResumeClient::execute`].
///
/// Dropping it stops following; the code runs on, and what it puts out is in the log.
pub struct Execution<'a> {
    client: &'a mut ResumeClient,
    msg_id: String,
    replied: bool,
    idle: bool,
}

impl<'a> Execution<'a> {
    pub(super) fn start(client: &'a mut ResumeClient, request: ExecuteRequest) -> Result<Self, SendError> {
        let message = Message::new(request, client.session());
        client.send(Channel::Shell, message.to_wire())?;
        Ok(Self {
            client,
            msg_id: message.header.msg_id,
            replied: false,
            idle: false,
        })
    }

    /// The `msg_id` of the request.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.msg_id
    }

    /// The client: for its cursor, say. Entries that are read from it are not looked at here.
    pub fn client(&mut self) -> &mut ResumeClient {
        self.client
    }

    /// The next message of the execution. `None` after its end. Entries of other requests are skipped. Cancel-safe.
    ///
    /// # Errors
    /// [`ExecutionError`]. After [`KernelEnded`](ExecutionError::KernelEnded) nothing follows. After
    /// [`Gap`](ExecutionError::Gap), [`NotRecovered`](ExecutionError::NotRecovered) and
    /// [`Loss`](ExecutionError::Loss) messages may be missing, and reading goes on.
    pub async fn next(&mut self) -> Option<Result<Message, ExecutionError>> {
        StreamExt::next(self).await
    }

    /// Answers the kernel's `input_request`.
    ///
    /// # Errors
    /// As [`ResumeClient::send`].
    pub async fn answer(&mut self, value: impl Into<String>) -> Result<(), SendError> {
        let reply = Message::new(InputReply::new(value), self.client.session());
        self.client.send(Channel::Stdin, reply.to_wire())
    }

    fn on_entry(&mut self, entry: &Entry) -> Result<Option<Message>, ExecutionError> {
        let wire = &entry.message;
        let has_id = |json: &[u8]| memmem::find(json, self.msg_id.as_bytes()).is_some();
        if !has_id(wire.parent_header()) {
            // Events before the kernel had the request concern earlier executions.
            let begun = !self.client.outbox.contains(&self.msg_id);
            let event = entry.lifecycle().filter(|_| begun);
            return event.and_then(|event| self.on_lifecycle(event)).map_or(Ok(None), Err);
        }
        let Ok(message) = Message::from_wire(wire) else {
            return Ok(None);
        };
        if message.parent_id() != self.msg_id {
            return Ok(None);
        }
        match &message.content {
            Content::Status(status) if status.execution_state == ExecutionState::Idle => self.idle = true,
            Content::ExecuteReply(_) => self.replied = true,
            _ => {}
        }
        Ok(Some(message))
    }

    /// What an event means for the execution, if anything.
    ///
    /// The synthetic reply that follows the end of a kernel is for clients that do not know these events.
    fn on_lifecycle(&mut self, event: Lifecycle) -> Option<ExecutionError> {
        let reason = match event {
            Lifecycle::Died { executions, reason } if executions.contains(&self.msg_id) => reason,
            Lifecycle::Lost { executions } if executions.contains(&self.msg_id) => {
                (self.replied, self.idle) = (true, true);
                return Some(ExecutionError::Lost);
            }
            Lifecycle::Restarting => "restarting".to_owned(),
            Lifecycle::RestartingByItself { reason, .. } | Lifecycle::Dead { reason, .. } => reason,
            event => return event.is_loss().then_some(ExecutionError::Loss(event)),
        };
        (self.replied, self.idle) = (true, true);
        Some(ExecutionError::KernelEnded { reason: Some(reason) })
    }
}

/// As [`next`](Execution::next).
impl Stream for Execution<'_> {
    type Item = Result<Message, ExecutionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !(self.replied && self.idle) {
            let error = match ready!(self.client.poll_event(context)) {
                Ok(Some(Event::Entry(entry))) => match self.on_entry(&entry).transpose() {
                    Some(result) => return Poll::Ready(Some(result)),
                    None => continue,
                },
                Ok(Some(Event::Gap { first, last })) => ExecutionError::Gap { first, last },
                Ok(Some(Event::NotRecovered(hello))) => ExecutionError::NotRecovered(hello.reason),
                Ok(Some(Event::Connected(_) | Event::Disconnected { .. })) => continue,
                Ok(None) => {
                    (self.replied, self.idle) = (true, true);
                    ExecutionError::KernelEnded { reason: None }
                }
                Err(error) => {
                    (self.replied, self.idle) = (true, true);
                    error.into()
                }
            };
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Ready(None)
    }
}
