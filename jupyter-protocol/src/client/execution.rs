use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};

use super::error::ClientError;
use super::queue::{Item, Queue};
use super::routes::Registered;
use super::{Inner, reply_of};
use crate::channel::Channel;
use crate::content::{Content, ExecuteReply, InputReply, InputRequest, Reply};
use crate::header::Header;
use crate::message::Message;
use crate::wire::WireMessage;

/// What happens while code runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ExecutionEvent {
    /// A message that the kernel published because of the execution: `stream`, `display_data`, `execute_result`,
    /// `error`, `execute_input`, comm messages, ... The states busy and idle are not among them.
    Output(Box<Message>),
    /// The kernel waits for input: answer with [`Execution::send_input`].
    Input(InputRequest),
    /// How it ended. Outputs may still follow.
    Reply(Reply<ExecuteReply>),
}

/// Code that runs in a kernel: a stream of what happens, in the order of arrival.
///
/// It ends when the reply *and* the state `idle` have arrived, in whichever order they come: only then all outputs are
/// there. A lost connection is one [`ClientError::Gone`] and then the end.
///
/// Up to [`ClientOptions::queue`](super::ClientOptions::queue) outputs wait to be read; where more come, they are
/// dropped and [`ClientError::Lagged`] stands in their place. Dropping it before the end does not stop the code, which
/// [`Client::interrupt`](super::Client::interrupt) does; code that waits for input then waits until it is interrupted.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#execute>
pub struct Execution {
    client: Arc<Inner>,
    queue: Arc<Queue>,
    registered: Registered,
    /// The input request that is not answered yet.
    asked: Option<Header>,
}

impl Execution {
    pub(super) fn new(client: Arc<Inner>, queue: Arc<Queue>, registered: Registered) -> Self {
        Self {
            client,
            queue,
            registered,
            asked: None,
        }
    }

    /// The id of the request, which is the parent of all its messages.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.registered.msg_id
    }

    /// What happens next; `None` after the end. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Gone`] where the connection was lost, [`ClientError::Lagged`] in the place of outputs that were
    /// not read in time, [`ClientError::BadReply`] where the kernel's reply is none.
    pub async fn next(&mut self) -> Option<Result<ExecutionEvent, ClientError>> {
        StreamExt::next(self).await
    }

    /// Waits for the end and gives the reply; outputs that were not read are passed over.
    ///
    /// # Errors
    /// As [`next`](Self::next), but for [`ClientError::Lagged`].
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
            reason: "the execution's reply was read before".to_owned(),
        })
    }

    /// Answers the kernel's request for input.
    ///
    /// # Errors
    /// [`ClientError::NoInputRequested`] where it has not asked or was answered already, [`ClientError::Gone`] where the
    /// connection is lost.
    pub async fn send_input(&mut self, value: impl Into<String>) -> Result<(), ClientError> {
        let asked = self.asked.clone().ok_or(ClientError::NoInputRequested)?;
        let reply = self.client.message(InputReply::new(value)).with_parent(asked);
        self.client.send(Channel::Stdin, &reply).await?;
        self.asked = None;
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
                self.asked = Some(message.header);
                Some(Ok(ExecutionEvent::Input(request)))
            }
            Item::Reply(message) => Some(reply_of(&message, "execute_request").map(ExecutionEvent::Reply)),
            Item::Missed(missed) => Some(Err(ClientError::Lagged { missed })),
        }
    }
}

/// A message whose header can be used; one whose header cannot would not have been delivered here.
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
