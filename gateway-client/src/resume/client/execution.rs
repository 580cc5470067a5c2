use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{Stream, StreamExt};
use jupyter_protocol::content::{ExecuteRequest, InputReply};
use jupyter_protocol::{Channel, Message};
use kernel_log::{ExecutionEvent, ExecutionTracker};

use super::{Entry, Event, ExecutionError, ResumeClient, SendError};

/// Follows code that runs in a kernel, across disconnects: a stream of its messages in log order, which are statuses,
/// outputs, input requests and the reply. Created by [`ResumeClient::execute`].
///
/// The stream ends once it has returned both the reply and the `idle` status, or an error that ends the execution.
///
/// Dropping it stops following. The code keeps running, and its output goes to the log.
pub struct Execution<'a> {
    client: &'a mut ResumeClient,
    tracker: ExecutionTracker,
    /// An entry before which messages were lost. The loss is returned first, and then this entry is handled.
    held: Option<Entry>,
}

impl fmt::Debug for Execution<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution")
            .field("msg_id", &self.msg_id())
            .finish_non_exhaustive()
    }
}

impl<'a> Execution<'a> {
    pub(super) fn start(client: &'a mut ResumeClient, request: ExecuteRequest) -> Result<Self, SendError> {
        let message = Message::new(request, client.session());
        client.send(Channel::Shell, message.to_wire())?;
        Ok(Self {
            client,
            tracker: ExecutionTracker::new(message.header.msg_id),
            held: None,
        })
    }

    /// Returns the `msg_id` of the request.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        self.tracker.msg_id()
    }

    /// Returns the client, for example to get its cursor. Entries that are read directly from the client are missing
    /// from the execution.
    pub fn client(&mut self) -> &mut ResumeClient {
        self.client
    }

    /// Returns the next message of the execution, or `None` after its end. Skips entries of other requests.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`ExecutionError`]. After [`KernelEnded`](ExecutionError::KernelEnded), [`Lost`](ExecutionError::Lost) and
    /// [`Client`](ExecutionError::Client), the stream ends. After any other error, messages may be missing, but the
    /// execution continues.
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

    fn on_entry(&mut self, entry: Entry) -> Option<Result<Message, ExecutionError>> {
        if let Some(event) = entry.lifecycle() {
            // The request is not in the log yet, so the event concerns earlier executions.
            if self.client.outbox.contains(self.msg_id()) {
                return None;
            }
            return self.tracker.on_lifecycle(event).map(|event| Err(event.into()));
        }
        if let Some(loss) = self.tracker.loss_before(entry.channel) {
            self.held = Some(entry);
            return Some(Err(ExecutionError::Loss(loss)));
        }
        self.tracker.on_message(&entry.message).map(Ok)
    }
}

impl From<ExecutionEvent> for ExecutionError {
    fn from(event: ExecutionEvent) -> Self {
        match event {
            ExecutionEvent::Loss(event) => Self::Loss(event),
            ExecutionEvent::KernelEnded(reason) => Self::KernelEnded { reason: Some(reason) },
            _ => Self::Lost,
        }
    }
}

/// Yields the results of [`next`](Execution::next).
impl Stream for Execution<'_> {
    type Item = Result<Message, ExecutionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.tracker.has_ended() {
            let event = match self.held.take() {
                Some(entry) => Ok(Some(Event::Entry(entry))),
                None => ready!(self.client.poll_event(context)),
            };
            let error = match event {
                Ok(Some(Event::Entry(entry))) => match self.on_entry(entry) {
                    Some(result) => return Poll::Ready(Some(result)),
                    None => continue,
                },
                Ok(Some(Event::Connected(_) | Event::Disconnected { .. })) => continue,
                Ok(Some(Event::Gap { first, last })) => ExecutionError::Gap { first, last },
                Ok(Some(Event::NotRecovered(hello))) => ExecutionError::NotRecovered(hello.reason),
                Ok(None) => {
                    self.tracker.end();
                    ExecutionError::KernelEnded { reason: None }
                }
                Err(error) => {
                    self.tracker.end();
                    error.into()
                }
            };
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Ready(None)
    }
}
