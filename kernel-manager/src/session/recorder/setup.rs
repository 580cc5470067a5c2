//! Makes ipykernel wait for its subscriber instead of dropping output.
//!
//! ipykernel's iopub socket drops messages while more than 1,000 are queued, before the recorder can read them. One
//! request sets `XPUB_NODROP` on that socket, and a full queue then slows the kernel down. The recorder sends it once a
//! kernel that was just started has answered for the first time, before any client request. The log contains neither
//! the request nor its reply nor its `status` messages.

use std::sync::atomic::{AtomicBool, Ordering};

use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use memchr::memmem;
use serde::Deserialize;
use tokio::sync::watch;
use tracing::debug;

use super::Recording;
use crate::session::agent_position::SendNumber;
use crate::session::execution_state::{ExecutionState, reported_state};
use crate::session::pending_requests::Requester;

/// Session of the setup request.
const SETUP_SESSION: &str = "kernelmux-setup";

/// Sets the option on the thread that owns the socket, so that it applies to all later output. Evaluates to `None`.
const WAIT_FOR_SUBSCRIBER: &str = "(lambda thread: thread.schedule(lambda: \
     thread.socket.setsockopt(__import__('zmq').XPUB_NODROP, 1)))\
     (__import__('IPython').get_ipython().kernel.iopub_thread)";

/// Setup state of a started kernel.
pub(super) struct Setup {
    /// Whether clients' requests are held back.
    pending: watch::Sender<bool>,
    /// Whether `status` messages of the setup request may still arrive and must be hidden.
    hiding: AtomicBool,
    /// Whether the kernel waits for its subscriber from now on.
    succeeded: AtomicBool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            pending: watch::Sender::new(false),
            hiding: AtomicBool::new(false),
            succeeded: AtomicBool::new(false),
        }
    }
}

impl Setup {
    /// Holds clients' requests back until [`end`](Self::end).
    pub(super) fn begin(&self) {
        self.pending.send_replace(true);
    }

    pub(super) fn end(&self) {
        self.pending.send_replace(false);
    }

    /// A guard that ends the setup when dropped.
    pub(super) fn ends(&self) -> SetupGuard<'_> {
        SetupGuard(self)
    }

    pub(super) fn is_pending(&self) -> bool {
        *self.pending.borrow()
    }

    /// Waits until clients' requests may be sent. A start has a deadline, so the wait is bounded.
    pub(super) async fn done(&self) {
        // `self` holds the sender, so this cannot fail.
        let _ = self.pending.subscribe().wait_for(|pending| !pending).await;
    }

    /// Whether the kernel has begun to wait for its subscriber since the last call.
    pub(super) fn take_succeeded(&self) -> bool {
        self.succeeded.swap(false, Ordering::Relaxed)
    }

    /// Handles the reply to the setup request.
    pub(super) fn on_reply(&self, reply: &WireMessage) {
        if has_succeeded(reply) {
            self.succeeded.store(true, Ordering::Relaxed);
        } else {
            debug!("ipykernel does not wait for its subscriber; it may drop output in a flood");
        }
    }

    /// Whether this iopub message is a `status` of the setup request. Other messages are recorded whatever their
    /// parent, because a kernel's threads may print at any time.
    pub(super) fn hides(&self, message: &WireMessage) -> bool {
        if !self.hiding.load(Ordering::Relaxed) {
            return false;
        }
        // Every iopub message passes here, and searching for the session is cheaper than parsing.
        let is_ours = memmem::find(message.parent_header(), SETUP_SESSION.as_bytes()).is_some()
            && message.parent_ref().is_ok_and(|parent| parent.session == SETUP_SESSION);
        let state = if is_ours {
            reported_state(message.content())
        } else {
            None
        };
        if state == Some(ExecutionState::Idle) {
            self.hiding.store(false, Ordering::Relaxed);
        }
        state.is_some()
    }
}

pub(super) struct SetupGuard<'a>(&'a Setup);

impl Drop for SetupGuard<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Recording {
    /// Releases clients' requests after a started kernel's first `kernel_info_reply`. With `lossless`, ipykernel is
    /// first sent the setup request. Its reply is not awaited, because a kernel handles requests in order.
    pub(super) async fn set_up(&self, kernel_info: &WireMessage, lossless: bool) {
        if lossless && is_ipykernel(kernel_info) {
            self.wait_for_subscriber().await;
        }
        self.setup.end();
    }

    async fn wait_for_subscriber(&self) {
        // With empty code, IPython runs no cell hooks and changes neither history nor counter.
        let mut request = ExecuteRequest::new("");
        request.silent = true;
        request.store_history = false;
        request.allow_stdin = false;
        request
            .user_expressions
            .insert("setup".to_owned(), WAIT_FOR_SUBSCRIBER.into());
        let request = Message::new(request, SETUP_SESSION);
        self.pending_requests
            .expect_reply(&request.header.msg_id, Requester::Setup);
        self.setup.hiding.store(true, Ordering::Relaxed);
        let number = SendNumber::after(self.log.append([]));
        let mut shell = self.senders.of(Channel::Shell).lock().await;
        if let Err(error) = self
            .send_on(&mut shell, Channel::Shell, request.to_wire(), number)
            .await
        {
            debug!(%error, "the setup request cannot be sent to ipykernel; it may drop output in a flood");
        }
    }
}

fn is_ipykernel(kernel_info: &WireMessage) -> bool {
    #[derive(Deserialize)]
    struct KernelInfo {
        implementation: String,
    }
    serde_json::from_slice::<KernelInfo>(kernel_info.content()).is_ok_and(|info| info.implementation == "ipython")
}

/// Whether the reply to the setup request reports success.
fn has_succeeded(reply: &WireMessage) -> bool {
    #[derive(Deserialize)]
    struct Reply {
        status: String,
        #[serde(default)]
        user_expressions: serde_json::Map<String, serde_json::Value>,
    }
    let reply = serde_json::from_slice::<Reply>(reply.content());
    reply.is_ok_and(|reply| {
        let setup = reply.user_expressions.get("setup");
        reply.status == "ok" && setup.is_some_and(|setup| setup["status"] == "ok")
    })
}
