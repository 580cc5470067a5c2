//! Entries that the kernel does not write: what became of it.

use jupyter_protocol::WireMessage;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
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
    /// The connection to its iopub was lost: what it publishes until it is back, nobody records. Where the kernel ended,
    /// the next entry says so.
    Disconnected,
    /// Somebody restarts it.
    Restarting,
    /// It ended by itself and is started anew.
    RestartingByItself {
        /// How it ended.
        exit: Exit,
    },
    /// It has answered for the first time after a restart.
    Restarted,
    /// It is gone for good.
    Dead {
        /// How it ended.
        exit: Exit,
    },
}

impl Lifecycle {
    /// The message that the log keeps. Where stock clients are to know, it is a `status` as jupyter_server sends it: on
    /// iopub, without a parent.
    pub(super) fn message(&self, session: &str) -> WireMessage {
        let (msg_type, content) = match self {
            Self::Started => (LIFECYCLE, json!({"event": "started"})),
            Self::Attached { unrecorded_ms } => {
                (LIFECYCLE, json!({"event": "attached", "unrecorded_ms": unrecorded_ms}))
            }
            Self::Disconnected => (LIFECYCLE, json!({"event": "disconnected"})),
            Self::Restarting => (LIFECYCLE, json!({"event": "restarting"})),
            Self::Restarted => (LIFECYCLE, json!({"event": "restarted"})),
            Self::RestartingByItself { exit } => ("status", status("restarting", exit)),
            Self::Dead { exit } => ("status", status("dead", exit)),
        };
        let content = Content::parse(msg_type, content.to_string().as_bytes());
        Message::new(content, session).to_wire()
    }
}

fn status(state: &str, exit: &Exit) -> Value {
    json!({"execution_state": state, "reason": exit.cause.to_string(), "output": exit.output})
}
