//! Replays executions to a plain Jupyter client that reconnects or that follows an execution. It is uncertain which
//! messages the client has received, so each execution is cleared and shown again.

use std::sync::Arc;

use bytes::Bytes;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Entry, ExecutionStatus, Log, Origin, ReadError, Seq};
use serde_json::json;

use super::content_fields::display_id;
use super::execution_record::ExecutionRecord;
use super::executions::{ExecutionOutputs, code, fold, message_at};
use super::follow::replay_metadata;
use super::msg_type::msg_type;
use super::parent_filter::ParentFilter;
use super::synthetic_reply::{self, NOT_KEPT};
use crate::fold::{answers, without_pager};

/// The replay of one execution.
pub(crate) struct Replay {
    /// The messages that make the client show the execution, whatever it showed before.
    pub(crate) messages: Vec<(Channel, WireMessage)>,
    /// Entries that these messages cover and that must not be delivered again.
    pub(crate) replayed: Option<ReplayedEntries>,
}

/// Entries of an execution that the client received in its replay.
pub(crate) struct ReplayedEntries {
    msg_id: String,
    pub(crate) until: Seq,
    display_ids: Vec<Arc<str>>,
}

impl ReplayedEntries {
    pub(crate) fn contains(&self, entry: &Entry) -> bool {
        let message = entry.message();
        if entry.seq() > self.until || !ParentFilter::new(&self.msg_id).matches(&message) {
            return false;
        }
        // An update may change displays of other executions.
        let changed = display_id(message.content()).filter(|_| msg_type(&message) == "update_display_data");
        changed.is_none_or(|changed| self.display_ids.iter().any(|id| **id == *changed))
    }
}

/// The client to which an execution is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// It requested the execution, or followed it before.
    Reconnected,
    /// It has only the execution's id.
    New,
}

/// Replays the execution as it was after entry `until`. Later entries can follow unchanged, except those that are
/// [replayed](Replay::replayed).
pub(crate) async fn replay(
    log: &Log,
    execution: &ExecutionRecord,
    mut until: Seq,
    audience: Audience,
) -> Result<Replay, ReadError> {
    // The messages have the kernel's session: when a message of another session arrives, as after a restart, JupyterLab
    // drops the message that it is handling.
    let kernel_session = kernel_session(log, execution).await?;
    let session = kernel_session.as_deref().unwrap_or(&execution.session);
    let ours = |msg_type: &str, content: &[u8]| {
        let message = Message::new(Content::parse(msg_type, content), session);
        let message = message.with_parent(execution.header.clone());
        (Channel::Iopub, message.with_metadata(replay_metadata()).to_wire())
    };
    let mut messages = Vec::new();
    if execution.request > until {
        // The client receives the whole execution live, so clear the output that it received before.
        messages.push(ours("clear_output", br#"{"wait":false}"#));
        return Ok(Replay {
            messages,
            replayed: None,
        });
    }
    // The kernel has sent no messages of this execution yet, so nothing after its request needs to be read.
    let is_queued = execution.last == execution.request;
    let end = if is_queued { execution.request } else { until };
    let ExecutionOutputs {
        fold: mut folded,
        trimmed,
        ..
    } = fold(log, execution, end).await?;
    let mut replayed = None;
    // A client that reconnects gets notices of gaps separately.
    let mut has_notice = audience == Audience::Reconnected;
    if let Some(question) = folded.input_request()
        && execution.open_input.is_none_or(|open| open > until)
        && let Some(answer) = first_after(log, until, |entry| {
            entry.origin() == Origin::Client && entry.channel() == Channel::Stdin && answers(&entry.message(), question)
        })
        .await?
    {
        // The client itself displayed the answer next to the question, and no message of the kernel contains the
        // answer. So the replay adds it from the log.
        until = answer.seq();
        folded = fold(log, execution, until).await?.fold;
        replayed = Some(ReplayedEntries {
            msg_id: execution.msg_id().to_owned(),
            until,
            display_ids: folded.display_ids(),
        });
    }
    // A question and the busy status arrive on different sockets, and the question may arrive first.
    let is_waiting = execution.status == ExecutionStatus::Queued && execution.open_input.is_none();
    if audience == Audience::New && is_waiting && folded.bytes() == 0 {
        // The kernel is busy with another execution, so send no busy status.
        messages.push(ours("clear_output", br#"{"wait":false}"#));
        return Ok(Replay {
            messages,
            replayed: None,
        });
    }
    messages.push(ours("status", br#"{"execution_state":"busy"}"#));
    if audience == Audience::New
        && let Some(execution_count) = folded.execution_count()
    {
        let code = code(log, execution).await?.unwrap_or_default();
        let input = json!({"code": code, "execution_count": execution_count}).to_string();
        messages.push(ours("execute_input", input.as_bytes()));
    }
    for (msg_type, content) in folded.messages() {
        let is_clear = msg_type == "clear_output";
        messages.push(ours(msg_type, &content));
        // Retention drops the oldest entries, so the missing output came before the rest.
        if is_clear && trimmed && !std::mem::replace(&mut has_notice, true) {
            messages.push((Channel::Iopub, synthetic_reply::notice(execution, NOT_KEPT, session)));
        }
    }
    for seq in [execution.open_input, execution.reply, execution.idle] {
        let Some(seq) = seq.filter(|seq| *seq <= until) else {
            continue;
        };
        match message_at(log, seq).await? {
            Some((channel, message)) => messages.push((channel, to_resend(message))),
            None => {
                let (reply, idle) = (execution.reply == Some(seq), execution.idle == Some(seq));
                messages.extend(synthetic_reply::trimmed_end(execution, reply, idle, session));
            }
        }
    }
    Ok(Replay { messages, replayed })
}

/// Prepares a message to be sent again. Removes the pager output of a reply, which the replayed outputs contain.
fn to_resend(message: WireMessage) -> WireMessage {
    let content = without_pager(message.content());
    if content == *message.content() {
        return message;
    }
    let [header, parent, metadata] = [message.header(), message.parent_header(), message.metadata()].map(Bytes::clone);
    WireMessage::from_parts([header, parent, metadata, content], [])
}

/// The session that the kernel uses in its messages; `None` if the kernel has sent nothing since the request.
pub(crate) async fn kernel_session(log: &Log, execution: &ExecutionRecord) -> Result<Option<String>, ReadError> {
    let first = first_after(log, execution.request, |entry| entry.origin() == Origin::Kernel).await?;
    Ok(first.and_then(|entry| {
        let message = entry.message();
        message.header_ref().ok().map(|header| header.session.into_owned())
    }))
}

/// The first matching entry after `after`; `None` if there is none yet.
async fn first_after(log: &Log, after: Seq, matches: impl Fn(&Entry) -> bool) -> Result<Option<Entry>, ReadError> {
    let mut reader = log.reader(after);
    let head = log.head();
    while reader.position() < head {
        let block = match reader.next().await {
            Ok(Some(block)) => block,
            Ok(None) => break,
            Err(ReadError::Gap { .. }) => continue,
            Err(error) => return Err(error),
        };
        if let Some(found) = block.entries().find(&matches) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
