use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};

use super::error::ClientError;
use super::execution_queue::{ExecutionQueue, Item};
use super::routes::RouteGuard;
use super::{Inner, parse_reply};
use crate::channel::Channel;
use crate::content::{Content, ExecuteReply, InputReply, InputRequest, Reply};
use crate::header::Header;
use crate::message::Message;
use crate::wire::WireMessage;

/// Event of an [`Execution`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ExecutionEvent {
    /// A message that the execution published, such as `stream`, `display_data`, `execute_result`, `error`,
    /// `execute_input` or a comm message. `status` messages are not included.
    Output(Box<Message>),
    /// The kernel requests input. Answer with [`Execution::answer`].
    Input(InputRequest),
    /// The reply, which reports how the execution ended. Outputs may still follow.
    Reply(Reply<ExecuteReply>),
}

/// A running execution: a stream of its events in order of arrival.
///
/// The stream ends when both the reply and the `idle` status have arrived, in either order, because only then have all
/// outputs arrived. If the connection is lost, the stream yields one [`ClientError::Gone`] and ends.
///
/// The stream buffers unread messages up to [`ClientOptions::queue`](super::ClientOptions::queue) and
/// [`ClientOptions::queue_bytes`](super::ClientOptions::queue_bytes). Further outputs are dropped, with
/// [`ClientError::Lagged`] in their place.
///
/// Dropping the stream does not stop the code; [`Client::interrupt`](super::Client::interrupt) does. If the code
/// requests input after the stream is dropped, it waits until it is interrupted.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#execute>
pub struct Execution {
    client: Arc<Inner>,
    queue: Arc<ExecutionQueue>,
    route: RouteGuard,
    /// Header of the unanswered input request.
    pending_input: Option<Header>,
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution")
            .field("msg_id", &self.route.msg_id)
            .finish_non_exhaustive()
    }
}

impl Execution {
    pub(super) fn new(client: Arc<Inner>, queue: Arc<ExecutionQueue>, route: RouteGuard) -> Self {
        Self {
            client,
            queue,
            route,
            pending_input: None,
        }
    }

    /// Returns the `msg_id` of the request, which is the parent of all messages of the execution.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.route.msg_id
    }

    /// Waits for the next event. Returns `None` after the end. Cancel-safe.
    ///
    /// # Errors
    /// - [`ClientError::Gone`] if the connection is lost.
    /// - [`ClientError::Lagged`] in place of outputs that were not read in time.
    /// - [`ClientError::BadReply`] if the reply is not a valid `execute_reply`.
    pub async fn next(&mut self) -> Option<Result<ExecutionEvent, ClientError>> {
        StreamExt::next(self).await
    }

    /// Waits for the end and returns the reply, discarding unread outputs.
    ///
    /// # Errors
    /// As [`next`](Self::next), except [`ClientError::Lagged`]. Also returns [`ClientError::Gone`] if
    /// [`next`](Self::next) has already returned the reply.
    pub async fn reply(mut self) -> Result<Reply<ExecuteReply>, ClientError> {
        let mut reply = None;
        while let Some(event) = self.next().await {
            match event {
                Ok(ExecutionEvent::Reply(found)) => reply = Some(found),
                Ok(_) | Err(ClientError::Lagged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        reply.ok_or_else(|| ClientError::Gone {
            reason: "the reply of the execution was already read".to_owned(),
        })
    }

    /// Answers the pending input request.
    ///
    /// # Errors
    /// - [`ClientError::NoInputRequested`] if no input request is pending.
    /// - [`ClientError::Gone`] if the connection is lost.
    /// - [`ClientError::NoPort`] if the connection has no stdin socket.
    pub async fn answer(&mut self, value: impl Into<String>) -> Result<(), ClientError> {
        let pending_input = self.pending_input.clone().ok_or(ClientError::NoInputRequested)?;
        let reply = self.client.message(InputReply::new(value)).with_parent(pending_input);
        self.client.send(Channel::Stdin, &reply).await?;
        self.pending_input = None;
        Ok(())
    }

    fn event(&mut self, item: Item) -> Option<Result<ExecutionEvent, ClientError>> {
        match item {
            Item::Output(message) => Some(Ok(ExecutionEvent::Output(Box::new(parse(&message)?)))),
            Item::Input(message) => {
                let message = parse(&message)?;
                let Content::InputRequest(request) = message.content else {
                    return None;
                };
                self.pending_input = Some(message.header);
                Some(Ok(ExecutionEvent::Input(request)))
            }
            Item::Reply(message) => Some(parse_reply(&message, "execute_request").map(ExecutionEvent::Reply)),
            Item::Missed(missed) => Some(Err(ClientError::Lagged { missed })),
        }
    }
}

/// Parses a message. Returns `None` if its header is invalid.
fn parse(message: &WireMessage) -> Option<Message> {
    Message::from_wire(message).ok()
}

impl Stream for Execution {
    type Item = Result<ExecutionEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let item = match self.queue.poll_next(context) {
                Poll::Ready(Some(Ok(item))) => item,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            if let Some(event) = self.event(item) {
                return Poll::Ready(Some(event));
            }
        }
    }
}
