//! Entries that the kernel does not write: what became of it.

use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Header, WireMessage};
use serde_json::{Value, json};

use crate::provider::Exit;

/// The `msg_type` of life-cycle entries that stock clients are not shown.
pub const LIFECYCLE: &str = "kernelmux_lifecycle";

/// What became of a kernel. Each is an entry of its log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Lifecycle {
    /// It has answered for the first time.
    Started,
    /// It was attached to: what it said since the last entry, in these milliseconds, nobody recorded.
    Attached {
        /// How long nobody recorded, where an entry says when that began.
        unrecorded_ms: Option<i64>,
    },
    /// It has answered since it was attached to, or a connection to it was lost: these executions, by the `msg_id` of
    /// their requests, ended while nobody recorded. For each of them follow a notice on stderr and, where the kernel's
    /// own were not heard, a reply and an idle status.
    Lost {
        /// The executions.
        executions: Vec<String>,
    },
    /// These executions, by the `msg_id` of their requests, ended with the kernel's process. For each of them follow, as
    /// far as the kernel's own were not heard, an error, a reply and an idle status.
    Died {
        /// The executions.
        executions: Vec<String>,
        /// What ended the kernel.
        reason: String,
    },
    /// The connection to its iopub was lost: what it publishes until it is back, nobody records. Where the kernel ended,
    /// the next entry says so.
    Disconnected,
    /// It runs, and has said nothing for long: told to whoever shares the store, so that they keep its log.
    Quiet,
    /// Somebody restarts it.
    Restarting,
    /// It ended by itself and is started anew.
    RestartingByItself {
        /// How it ended.
        exit: Exit,
    },
    /// It has answered for the first time after a restart.
    Restarted,
    /// It is idle for the first time since it was connected to. Its own word for that answers a `kernel_info_request`,
    /// of which JupyterLab takes no notice: it would show a kernel that starts until the next cell is run.
    Idle {
        /// The kernel's session. JupyterLab drops what waits to be handled when a message of another session arrives.
        session: String,
    },
    /// It is gone for good.
    Dead {
        /// How it ended.
        exit: Exit,
    },
}

/// What ended executions together with the kernel.
#[derive(Clone, Debug)]
pub(super) struct Death {
    /// The name of the error that clients are sent.
    pub(super) ename: &'static str,
    pub(super) reason: String,
}

impl Lifecycle {
    /// What ended all executions that the kernel had and has not ended.
    pub(super) fn death(&self) -> Option<Death> {
        // As nbclient calls it.
        let died = |reason| Death {
            ename: "DeadKernelError",
            reason,
        };
        match self {
            Self::Restarted => Some(Death {
                ename: "KernelRestarted",
                reason: "the kernel was restarted".to_owned(),
            }),
            // Of one of the same id, before it.
            Self::Started => Some(died("the kernel ended while nobody recorded it".to_owned())),
            Self::RestartingByItself { exit } | Self::Dead { exit } => Some(died(exit.cause.to_string())),
            _ => None,
        }
    }

    /// The message that the log keeps. Where stock clients are to know, it is a `status` as jupyter_server sends it: on
    /// iopub, without a parent. That the kernel is idle has one of ours: no peer says that unasked, and clients take each
    /// such message for an answer.
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

/// Whether a life-cycle entry says that there may have been messages of the kernel that nobody recorded.
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
