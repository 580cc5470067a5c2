//! Log entries about the kernel's life, written by this library.

use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Header, WireMessage};
use serde_json::{Value, json};

use crate::provider::Exit;

/// The `msg_type` of life-cycle entries that plain Jupyter clients do not receive.
pub const LIFECYCLE: &str = "kernelmux_lifecycle";

/// An event in a kernel's life. Each is an entry of its log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Lifecycle {
    /// It answered for the first time.
    Started,
    /// It was attached to while running. Its output since the previous entry went unrecorded.
    Attached {
        /// For how many milliseconds, if the start of the gap is known.
        unrecorded_ms: Option<i64>,
    },
    /// After a connection was lost, these executions were found to have ended unrecorded. For each of them follow a
    /// notice on stderr and, unless the kernel's own were recorded, a reply and an idle status.
    Lost {
        /// The `msg_id`s of their requests.
        executions: Vec<String>,
    },
    /// These executions ended with the kernel's process. For each of them follow, unless the kernel's own were
    /// recorded, an error, a reply and an idle status.
    Died {
        /// The `msg_id`s of their requests.
        executions: Vec<String>,
        /// The cause.
        reason: String,
    },
    /// The iopub connection was lost, and output goes unrecorded until it is back. If the kernel has ended, the next
    /// entry says so.
    Disconnected,
    /// It runs and has published nothing for long. Gateways that share the store keep its log.
    Quiet,
    /// A restart was requested.
    Restarting,
    /// It ended by itself and is being restarted.
    RestartingByItself {
        /// The cause.
        exit: Exit,
    },
    /// It answered for the first time after a restart.
    Restarted,
    /// It is idle for the first time since it was connected to. Its own status answers a `kernel_info_request` and
    /// JupyterLab ignores it, so without this JupyterLab would show a starting kernel until the next cell runs.
    Idle {
        /// The kernel's session. JupyterLab drops queued messages when a message of another session arrives.
        session: String,
    },
    /// It is dead.
    Dead {
        /// The cause.
        exit: Exit,
    },
}

/// Why executions ended together with the kernel.
#[derive(Clone, Debug)]
pub(super) struct Death {
    /// The error name that clients receive.
    pub(super) ename: &'static str,
    pub(super) reason: String,
}

impl Lifecycle {
    /// The cause of death, if this event ends all unfinished executions.
    pub(super) fn death(&self) -> Option<Death> {
        // nbclient's name for it.
        let died = |reason| Death {
            ename: "DeadKernelError",
            reason,
        };
        match self {
            Self::Restarted => Some(Death {
                ename: "KernelRestarted",
                reason: "the kernel was restarted".to_owned(),
            }),
            // The previous kernel with the same id.
            Self::Started => Some(died("the kernel ended while nobody recorded it".to_owned())),
            Self::RestartingByItself { exit } | Self::Dead { exit } => Some(died(exit.cause.to_string())),
            _ => None,
        }
    }

    /// The message that the log keeps. For events that plain Jupyter clients know, it is a `status` as jupyter_server
    /// sends it: on iopub, without a parent. For [`Idle`](Self::Idle) the parent is a request of this library: no other
    /// server sends it unrequested, and clients take each such status for an answer.
    pub(super) fn message(&self, session: &str) -> WireMessage {
        let ours = session;
        let mut session = session;
        let (msg_type, content) = match self {
            Self::Started => (LIFECYCLE, json!({"event": "started"})),
            Self::Attached { unrecorded_ms } => {
                (LIFECYCLE, json!({"event": "attached", "unrecorded_ms": unrecorded_ms}))
            }
            Self::Lost { executions } => (LIFECYCLE, json!({"event": "lost", "executions": executions})),
            Self::Died { executions, reason } => (
                LIFECYCLE,
                json!({"event": "died", "executions": executions, "reason": reason}),
            ),
            Self::Disconnected => (LIFECYCLE, json!({"event": "disconnected"})),
            Self::Quiet => (LIFECYCLE, json!({"event": "quiet"})),
            Self::Restarting => (LIFECYCLE, json!({"event": "restarting"})),
            Self::Restarted => (LIFECYCLE, json!({"event": "restarted"})),
            Self::RestartingByItself { exit } => ("status", status("restarting", exit)),
            Self::Idle { session: kernel } => {
                session = kernel;
                ("status", json!({"execution_state": "idle"}))
            }
            Self::Dead { exit } => ("status", status("dead", exit)),
        };
        let content = Content::parse(msg_type, content.to_string().as_bytes());
        let message = Message::new(content, session);
        match self {
            Self::Idle { .. } => message.with_parent(Header::new(LIFECYCLE, ours)),
            _ => message,
        }
        .to_wire()
    }
}

/// Whether a life-cycle entry says that messages of the kernel may be missing.
pub(super) fn tells_of_a_hole(message: &WireMessage) -> bool {
    #[derive(serde::Deserialize)]
    struct Told<'a> {
        #[serde(borrow)]
        event: &'a str,
    }
    message.header_ref().is_ok_and(|header| header.msg_type == LIFECYCLE)
        && serde_json::from_slice::<Told<'_>>(message.content())
            .is_ok_and(|told| matches!(told.event, "attached" | "disconnected" | "not_recorded"))
}

fn status(state: &str, exit: &Exit) -> Value {
    json!({"execution_state": state, "reason": exit.cause.to_string(), "output": exit.output})
}
