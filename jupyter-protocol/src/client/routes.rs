//! Who waits for which message.
//!
//! A message from the kernel goes to whoever sent its parent, by the parent's id; iopub goes to all its readers
//! besides. Whoever waits takes its entry out again when it is dropped, so nothing is left behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, oneshot};

use super::error::ClientError;
use super::queue::Queue;
use crate::channel::Channel;
use crate::content::{ExecutionState, Status};
use crate::wire::WireMessage;

pub(super) struct Routes(Mutex<State>);

struct State {
    waiting: HashMap<String, Waiting>,
    /// `None` once the connection is lost.
    iopub: Option<broadcast::Sender<Arc<WireMessage>>>,
    lost: Option<ClientError>,
}

enum Waiting {
    Reply(oneshot::Sender<WireMessage>),
    Execution(Arc<Queue>),
}

impl Routes {
    pub(super) fn new(queue: usize) -> Self {
        Self(Mutex::new(State {
            waiting: HashMap::new(),
            iopub: Some(broadcast::Sender::new(queue.max(1))),
            lost: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was locked left nothing half done: each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers for the reply to a message that is about to be sent.
    pub(super) fn reply_to(
        self: &Arc<Self>,
        msg_id: &str,
    ) -> Result<(Registered, oneshot::Receiver<WireMessage>), ClientError> {
        let (sender, receiver) = oneshot::channel();
        Ok((self.register(msg_id, Waiting::Reply(sender))?, receiver))
    }

    /// Registers for all messages of an execution that is about to be sent.
    pub(super) fn execution(self: &Arc<Self>, msg_id: &str, queue: Arc<Queue>) -> Result<Registered, ClientError> {
        self.register(msg_id, Waiting::Execution(queue))
    }

    fn register(self: &Arc<Self>, msg_id: &str, waiting: Waiting) -> Result<Registered, ClientError> {
        let mut state = self.lock();
        if let Some(error) = &state.lost {
            return Err(error.clone());
        }
        state.waiting.insert(msg_id.to_owned(), waiting);
        Ok(Registered {
            routes: self.clone(),
            msg_id: msg_id.to_owned(),
        })
    }

    pub(super) fn iopub(&self) -> Option<broadcast::Receiver<Arc<WireMessage>>> {
        self.lock().iopub.as_ref().map(broadcast::Sender::subscribe)
    }

    /// Why the connection is lost, if it is.
    pub(super) fn lost(&self) -> Option<ClientError> {
        self.lock().lost.clone()
    }

    /// Tells everybody who waits that the connection is lost.
    pub(super) fn lose(&self, error: &ClientError) {
        let mut state = self.lock();
        state.lost = Some(error.clone());
        state.iopub = None;
        for (_, waiting) in state.waiting.drain() {
            if let Waiting::Execution(queue) = waiting {
                queue.lose(error.clone());
            }
        }
    }

    /// Hands a verified message to whoever waits for it.
    pub(super) fn deliver(&self, channel: Channel, message: WireMessage) {
        let Ok(parent) = message.parent_ref() else { return };
        let parent_id = parent.msg_id.as_ref();
        let mut state = self.lock();
        match channel {
            Channel::Iopub => {
                if let Some(Waiting::Execution(queue)) = state.waiting.get(parent_id) {
                    let ended = match execution_state(&message) {
                        Some(ExecutionState::Idle) => queue.idle(),
                        Some(_) => false,
                        None => queue.output(message.clone()),
                    };
                    if ended {
                        state.waiting.remove(parent_id);
                    }
                }
                if let Some(iopub) = &state.iopub
                    && iopub.receiver_count() > 0
                {
                    // It fails where nobody reads any more.
                    let _ = iopub.send(Arc::new(message));
                }
            }
            Channel::Stdin => {
                if let Some(Waiting::Execution(queue)) = state.waiting.get(parent_id) {
                    queue.input(message);
                }
            }
            _ => match state.waiting.get(parent_id) {
                Some(Waiting::Execution(queue)) => {
                    let queue = queue.clone();
                    let parent_id = parent_id.to_owned();
                    if queue.reply(message) {
                        state.waiting.remove(&parent_id);
                    }
                }
                Some(Waiting::Reply(_)) => {
                    if let Some(Waiting::Reply(sender)) = state.waiting.remove(parent_id) {
                        // It fails where the request was dropped at this moment.
                        let _ = sender.send(message);
                    }
                }
                // The reply to a request that was given up.
                None => {}
            },
        }
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }
}

/// What a `status` message says; `None` for any other message.
fn execution_state(message: &WireMessage) -> Option<ExecutionState> {
    if message.header_ref().ok()?.msg_type != "status" {
        return None;
    }
    let status = serde_json::from_slice::<Status>(message.content());
    Some(status.map_or(ExecutionState::Other(String::new()), |status| status.execution_state))
}

/// An entry that is taken out when this is dropped.
pub(super) struct Registered {
    routes: Arc<Routes>,
    pub(super) msg_id: String,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.routes.lock().waiting.remove(&self.msg_id);
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

    fn queue() -> Arc<Queue> {
        Arc::new(Queue::new(2, 1_000))
    }

    #[test]
    fn whoever_is_dropped_leaves_nothing_behind() {
        let routes = Arc::new(Routes::new(1));
        let (reply, _receiver) = routes.reply_to("a").unwrap();
        let execution = routes.execution("b", queue()).unwrap();
        assert_eq!(routes.waiting(), 2);
        drop(reply);
        drop(execution);
        assert_eq!(routes.waiting(), 0);
        // What still arrives for them goes nowhere.
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
                assert_eq!(routes.waiting(), 1);
                routes.deliver(Channel::Shell, reply());
            } else {
                routes.deliver(Channel::Shell, reply());
                assert_eq!(routes.waiting(), 1);
                routes.deliver(Channel::Iopub, idle());
            }
            assert_eq!(routes.waiting(), 0);
        }
    }

    #[tokio::test]
    async fn outputs_beyond_the_bound_are_counted_and_the_reply_is_never_dropped() {
        use std::future::poll_fn;

        use super::super::queue::Item;

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
                _ => "else",
            });
        }
        assert_eq!(seen, ["output", "output", "missed 3", "reply"]);
    }
}
