//! What clients that know only the Jupyter protocol are told of an execution that ended unheard: without a reply they
//! would wait for ever, and without a word nobody would know that something is missing.

use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use serde_json::json;

use super::execution_record::ExecutionRecord;

/// Nobody knows how much there was.
const MISSING: &str = "The connection to the kernel was lost while this ran: some of its output may be missing.";
const UNKNOWN: &str = "It ended meanwhile; whether it succeeded is not known.";

/// In the order in which they are told: an output, for the eye; then, as far as the kernel's own were not heard, a reply
/// and an idle status. `session` is the kernel's: JupyterLab drops what waits to be handled when a message of another
/// session arrives.
pub(super) fn told(execution: &ExecutionRecord, session: &str) -> Vec<(Channel, WireMessage)> {
    let message = |channel, msg_type: &str, content: serde_json::Value| {
        let content = Content::parse(msg_type, content.to_string().as_bytes());
        let message = Message::new(content, session).with_parent(execution.header.clone());
        (channel, message.to_wire())
    };
    let notice = if execution.reply.is_none() {
        format!("{MISSING} {UNKNOWN}\n")
    } else {
        format!("{MISSING}\n")
    };
    let mut told = vec![message(
        Channel::Iopub,
        "stream",
        json!({"name": "stderr", "text": notice}),
    )];
    if execution.reply.is_none() {
        // A failure, so that nobody takes it for done who runs cells one after the other.
        let reply = json!({
            "status": "error",
            "execution_count": execution.execution_count,
            "ename": "OutputLost",
            "evalue": format!("{MISSING} {UNKNOWN}"),
            "traceback": [],
        });
        told.push(message(Channel::Shell, "execute_reply", reply));
    }
    if execution.idle.is_none() {
        told.push(message(Channel::Iopub, "status", json!({"execution_state": "idle"})));
    }
    told
}
