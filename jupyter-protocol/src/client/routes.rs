//! Routes messages of the kernel to the requests that they belong to.
//!
//! A message is delivered to the pending request with the `msg_id` of its parent. Messages on iopub are also broadcast
//! to all readers of iopub. A pending request removes its route when it is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, oneshot};

use super::error::ClientError;
use super::execution_queue::ExecutionQueue;
use crate::channel::Channel;
use crate::content::{ExecutionState, Status};
use crate::wire::WireMessage;

pub(super) struct Routes(Mutex<RouteTable>);

struct RouteTable {
    /// Routes by `msg_id` of the request.
    pending: HashMap<String, Route>,
    /// `None` once the connection is lost.
    iopub: Option<broadcast::Sender<Arc<WireMessage>>>,
    lost: Option<ClientError>,
}

enum Route {
    Reply(oneshot::Sender<WireMessage>),
    Execution(Arc<ExecutionQueue>),
}

impl Routes {
    pub(super) fn new(queue: usize) -> Self {
        Self(Mutex::new(RouteTable {
            pending: HashMap::new(),
            iopub: Some(broadcast::Sender::new(queue.max(1))),
            lost: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, RouteTable> {
        // Ignoring poisoning is sound: a panic cannot leave the table half updated.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request that is about to be sent and returns the receiver of its reply.
    pub(super) fn reply_to(
        self: &Arc<Self>,
        msg_id: &str,
    ) -> Result<(RouteGuard, oneshot::Receiver<WireMessage>), ClientError> {
        let (sender, receiver) = oneshot::channel();
        Ok((self.register(msg_id, Route::Reply(sender))?, receiver))
    }

    /// Registers an execution that is about to be requested. Its messages go to `queue`.
    pub(super) fn execution(
        self: &Arc<Self>,
        msg_id: &str,
        queue: Arc<ExecutionQueue>,
    ) -> Result<RouteGuard, ClientError> {
        self.register(msg_id, Route::Execution(queue))
    }

    fn register(self: &Arc<Self>, msg_id: &str, route: Route) -> Result<RouteGuard, ClientError> {
        let mut state = self.lock();
        if let Some(error) = &state.lost {
            return Err(error.clone());
        }
        state.pending.insert(msg_id.to_owned(), route);
        Ok(RouteGuard {
            routes: self.clone(),
            msg_id: msg_id.to_owned(),
        })
    }

    pub(super) fn iopub(&self) -> Option<broadcast::Receiver<Arc<WireMessage>>> {
        self.lock().iopub.as_ref().map(broadcast::Sender::subscribe)
    }

    /// Returns why the connection is lost, or `None` while it is not.
    pub(super) fn lost(&self) -> Option<ClientError> {
        self.lock().lost.clone()
    }

    /// Marks the connection as lost, unless it is already, and fails all pending requests.
    pub(super) fn lose(&self, error: &ClientError) {
        let mut state = self.lock();
        state.lost.get_or_insert_with(|| error.clone());
        state.iopub = None;
        for (_, route) in state.pending.drain() {
            if let Route::Execution(queue) = route {
                queue.lose(error.clone());
            }
        }
    }

    /// Delivers a verified message to the pending request that it belongs to.
    pub(super) fn deliver(&self, channel: Channel, message: WireMessage) {
        let Ok(parent) = message.parent_ref() else { return };
        let parent_id = parent.msg_id.as_ref();
        let mut state = self.lock();
        match channel {
            Channel::Iopub => {
                if let Some(Route::Execution(queue)) = state.pending.get(parent_id) {
                    let ended = match execution_state(&message) {
                        Some(ExecutionState::Idle) => queue.idle(),
                        Some(_) => false,
                        None => queue.output(message.clone()),
                    };
                    if ended {
                        state.pending.remove(parent_id);
                    }
                }
                if let Some(iopub) = &state.iopub
                    && iopub.receiver_count() > 0
                {
                    // Fails if the last reader has just been dropped.
                    let _ = iopub.send(Arc::new(message));
                }
            }
            Channel::Stdin => {
                if let Some(Route::Execution(queue)) = state.pending.get(parent_id) {
                    queue.input(message);
                }
            }
            _ => match state.pending.get(parent_id) {
                Some(Route::Execution(queue)) => {
                    let queue = queue.clone();
                    let parent_id = parent_id.to_owned();
                    if queue.reply(message) {
                        state.pending.remove(&parent_id);
                    }
                }
                Some(Route::Reply(_)) => {
                    if let Some(Route::Reply(sender)) = state.pending.remove(parent_id) {
                        // Fails if the request has just been dropped.
                        let _ = sender.send(message);
                    }
                }
                // The request was cancelled.
                None => {}
            },
        }
    }

    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.lock().pending.len()
    }
}

/// Returns the state in a `status` message, or `None` for any other message.
fn execution_state(message: &WireMessage) -> Option<ExecutionState> {
    if message.header_ref().ok()?.msg_type != "status" {
        return None;
    }
    let status = serde_json::from_slice::<Status>(message.content());
    Some(status.map_or(ExecutionState::Other(String::new()), |status| status.execution_state))
}

/// Removes its route when dropped.
pub(super) struct RouteGuard {
    routes: Arc<Routes>,
    pub(super) msg_id: String,
}

impl Drop for RouteGuard {
    fn drop(&mut self) {
        self.routes.lock().pending.remove(&self.msg_id);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(msg_type: &str, parent: &str, content: &str) -> WireMessage {
        let header = format!(r#"{{"msg_id":"x","msg_type":"{msg_type}"}}"#);
        let parent = format!(r#"{{"msg_id":"{parent}"}}"#);
        let parts = [header, parent, "{}".to_owned(), content.to_owned()].map(Bytes::from);
        WireMessage::from_parts(parts, [])
    }

    fn queue() -> Arc<ExecutionQueue> {
        Arc::new(ExecutionQueue::new(2, 1_000))
    }

    #[test]
    fn dropped_requests_remove_their_routes() {
        let routes = Arc::new(Routes::new(1));
        let (reply, _receiver) = routes.reply_to("a").unwrap();
        let execution = routes.execution("b", queue()).unwrap();
        assert_eq!(routes.pending(), 2);
        drop(reply);
        drop(execution);
        assert_eq!(routes.pending(), 0);
        // Messages that still arrive for them are ignored.
        routes.deliver(Channel::Shell, message("execute_reply", "b", "{}"));
    }

    #[test]
    fn an_execution_ends_with_reply_and_idle_in_either_order() {
        let idle = || message("status", "a", r#"{"execution_state":"idle"}"#);
        let busy = || message("status", "a", r#"{"execution_state":"busy"}"#);
        let reply = || message("execute_reply", "a", r#"{"status":"ok"}"#);
        for idle_first in [false, true] {
            let routes = Arc::new(Routes::new(1));
            let _execution = routes.execution("a", queue()).unwrap();
            routes.deliver(Channel::Iopub, busy());
            if idle_first {
                routes.deliver(Channel::Iopub, idle());
                assert_eq!(routes.pending(), 1);
                routes.deliver(Channel::Shell, reply());
            } else {
                routes.deliver(Channel::Shell, reply());
                assert_eq!(routes.pending(), 1);
                routes.deliver(Channel::Iopub, idle());
            }
            assert_eq!(routes.pending(), 0);
        }
    }

    #[tokio::test]
    async fn outputs_beyond_the_limit_are_counted_and_the_reply_is_never_dropped() {
        use std::future::poll_fn;

        use super::super::execution_queue::Item;

        let routes = Arc::new(Routes::new(1));
        let queue = queue();
        let _execution = routes.execution("a", queue.clone()).unwrap();
        for _ in 0..5 {
            routes.deliver(Channel::Iopub, message("stream", "a", r#"{"text":"x"}"#));
        }
        routes.deliver(Channel::Shell, message("execute_reply", "a", "{}"));
        routes.deliver(Channel::Iopub, message("status", "a", r#"{"execution_state":"idle"}"#));
        let mut seen = Vec::new();
        while let Some(item) = poll_fn(|context| queue.poll_next(context)).await {
            seen.push(match item.unwrap() {
                Item::Output(_) => "output",
                Item::Missed(3) => "missed 3",
                Item::Reply(_) => "reply",
                _ => "other",
            });
        }
        assert_eq!(seen, ["output", "output", "missed 3", "reply"]);
    }
}
