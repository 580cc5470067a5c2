use std::fmt;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::broadcast;

use super::error::ClientError;
use super::routes::Routes;
use crate::message::Message;
use crate::wire::WireMessage;

/// Receiver of all messages that a kernel publishes after the call of [`Client::iopub`](super::Client::iopub),
/// including those for requests of other clients.
///
/// It buffers up to [`ClientOptions::queue`](super::ClientOptions::queue) unread messages, rounded up to a power of
/// two. If more arrive, the oldest are dropped, and [`ClientError::Lagged`] reports the number of dropped messages.
pub struct Iopub {
    receiver: Option<broadcast::Receiver<Arc<WireMessage>>>,
    routes: Arc<Routes>,
}

impl fmt::Debug for Iopub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iopub").finish_non_exhaustive()
    }
}

impl Iopub {
    pub(super) fn new(routes: Arc<Routes>) -> Self {
        Self {
            receiver: routes.iopub(),
            routes,
        }
    }

    /// Receives the next message. Cancel-safe.
    ///
    /// # Errors
    /// - [`ClientError::Lagged`] if messages were dropped. The next call returns the oldest message that is left.
    /// - [`ClientError::Gone`] if the connection is lost, or the last clone of the client is dropped.
    pub async fn recv(&mut self) -> Result<Message, ClientError> {
        loop {
            let received = match &mut self.receiver {
                Some(receiver) => receiver.recv().await,
                None => Err(broadcast::error::RecvError::Closed),
            };
            match received {
                Ok(message) => {
                    if let Ok(message) = Message::from_wire(&message) {
                        return Ok(message);
                    }
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => return Err(ClientError::Lagged { missed }),
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(self.routes.lost().unwrap_or_else(|| ClientError::Gone {
                        reason: "the client was dropped".to_owned(),
                    }));
                }
            }
        }
    }

    /// Converts the receiver into a stream, which ends when the connection is lost.
    pub fn into_stream(self) -> impl Stream<Item = Result<Message, ClientError>> + Send {
        futures::stream::unfold(self, |mut iopub| async move {
            match iopub.recv().await {
                Err(ClientError::Gone { .. }) => None,
                other => Some((other, iopub)),
            }
        })
    }
}
