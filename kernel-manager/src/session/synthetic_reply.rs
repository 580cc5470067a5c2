//! Messages that end an execution for plain Jupyter clients when the kernel's own were lost or never sent. Without a
//! reply, such clients wait forever.

use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::ExecutionStatus;
use serde_json::{Value, json};

use super::execution_record::ExecutionRecord;

/// Notice of an unknown amount of missing output.
pub(super) const MISSING: &str =
    "The connection to the kernel was lost while this code ran: some of its output may be missing.";
/// Notice of output that retention removed from the log or that the store refused.
pub(super) const NOT_KEPT: &str = "Some of this output is no longer in the log, and is missing here.";
/// Notice of a lost reply.
const UNKNOWN: &str = "This code has ended, and its result is unknown.";

/// A notice on stderr that output of the execution may be missing.
pub(super) fn notice(execution: &ExecutionRecord, text: &str, session: &str) -> WireMessage {
    let content = json!({"name": "stderr", "text": format!("{text}\n")}).to_string();
    let content = Content::parse("stream", content.as_bytes());
    Message::new(content, session)
        .with_parent(execution.header.clone())
        .to_wire()
}

/// A reply if `reply` is true, and an idle status if `idle` is true, in place of those that are no longer in the log.
/// The record says how the execution ended.
pub(super) fn trimmed_end(
    execution: &ExecutionRecord,
    reply: bool,
    idle: bool,
    session: &str,
) -> impl Iterator<Item = (Channel, WireMessage)> {
    let message = |channel, msg_type: &str, content: Value| {
        let content = Content::parse(msg_type, content.to_string().as_bytes());
        let message = Message::new(content, session).with_parent(execution.header.clone());
        (channel, message.to_wire())
    };
    let reply = reply.then(|| {
        let mut content = match execution.status {
            ExecutionStatus::Ok => json!({"status": "ok", "payload": [], "user_expressions": {}}),
            ExecutionStatus::Aborted => json!({"status": "aborted"}),
            _ => json!({"status": "error", "ename": "OutputNotKept", "evalue": NOT_KEPT, "traceback": []}),
        };
        content["execution_count"] = execution.execution_count.into();
        message(Channel::Shell, "execute_reply", content)
    });
    let idle = idle.then(|| message(Channel::Iopub, "status", json!({"execution_state": "idle"})));
    reply.into_iter().chain(idle)
}

/// Why the kernel's own reply is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LostReply<'a> {
    /// It was lost with the connection.
    OutputLost,
    /// The kernel ended or was restarted.
    KernelEnded {
        /// The error name.
        ename: &'a str,
        /// What ended it.
        reason: &'a str,
    },
}

/// The messages in sending order: usually a notice or an error, then a reply and an idle status unless the kernel's own
/// were recorded. `session` is the kernel's session, because JupyterLab drops queued messages when a message of another
/// session arrives.
pub(super) fn messages(
    execution: &ExecutionRecord,
    lost_reply: LostReply<'_>,
    session: &str,
) -> Vec<(Channel, WireMessage)> {
    let message = |channel, msg_type: &str, content: Value| {
        let content = Content::parse(msg_type, content.to_string().as_bytes());
        let message = Message::new(content, session).with_parent(execution.header.clone());
        (channel, message.to_wire())
    };
    let is_open = execution.reply.is_none();
    let mut messages = Vec::new();
    let (ename, evalue) = match lost_reply {
        LostReply::OutputLost => {
            let missing = (!execution.told_missing).then_some(MISSING);
            let text: Vec<_> = missing.into_iter().chain(is_open.then_some(UNKNOWN)).collect();
            if !text.is_empty() {
                messages.push((Channel::Iopub, notice(execution, &text.join(" "), session)));
            }
            ("OutputLost", format!("{MISSING} {UNKNOWN}"))
        }
        LostReply::KernelEnded { ename, reason } => (ename, reason.to_owned()),
    };
    let traceback = match lost_reply {
        LostReply::OutputLost => Vec::new(),
        LostReply::KernelEnded { .. } => vec![format!("{ename}: {evalue}")],
    };
    let mut error = json!({"ename": ename, "evalue": evalue, "traceback": traceback});
    if is_open {
        // A kernel sends an error for code that raises an exception. Code that had not started shows no error.
        if !traceback.is_empty() && execution.started.is_some() {
            messages.push(message(Channel::Iopub, "error", error.clone()));
        }
        // The reply is an error, so that a client that runs cells in sequence stops.
        error["status"] = "error".into();
        error["execution_count"] = execution.execution_count.into();
        messages.push(message(Channel::Shell, "execute_reply", error));
    }
    if execution.idle.is_none() {
        messages.push(message(Channel::Iopub, "status", json!({"execution_state": "idle"})));
    }
    messages
}
