//! How a client that knows only the Jupyter protocol is brought up to date when it comes back: which of its executions'
//! messages it has is not known for sure, so what it shows of them is cleared and put anew.

use std::sync::Arc;

use bytes::Bytes;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};

use super::execution_record::ExecutionRecord;
use super::executions::{fold, message_at};
use super::msg_type::msg_type;
use super::parent_filter::ParentFilter;
use super::request_index::display_id;
use crate::fold::{answers, without_pages};
use crate::log::{Entry, Log, Origin, ReadError, Seq};

/// An execution put anew.
pub(super) struct Replay {
    /// What makes a client show it, whatever it showed before.
    pub(super) messages: Vec<(Channel, WireMessage)>,
    /// What of it is shown by that already, and is not to follow.
    pub(super) ahead: Option<Ahead>,
}

/// Entries of an execution that its client is sent as a part of its replay.
pub(super) struct Ahead {
    msg_id: String,
    pub(super) until: Seq,
    display_ids: Vec<Arc<str>>,
}

impl Ahead {
    pub(super) fn has(&self, entry: &Entry) -> bool {
        let message = entry.message();
        if entry.seq() > self.until || !ParentFilter::new(&self.msg_id).takes(&message) {
            return false;
        }
        // It may change what other executions show.
        let changed = display_id(message.content()).filter(|_| msg_type(&message) == "update_display_data");
        changed.is_none_or(|changed| self.display_ids.iter().any(|id| **id == *changed))
    }
}

/// Puts the execution anew as it was after entry `until`. What comes after that can follow as it is, but for what is
/// [ahead](Replay::ahead).
pub(super) async fn replay(log: &Log, execution: &ExecutionRecord, mut until: Seq) -> Result<Replay, ReadError> {
    // JupyterLab lets go of what it is handling when a message of another session arrives: the kernel is another then.
    let kernel_session = kernel_session(log, execution).await?;
    let session = kernel_session.as_deref().unwrap_or(&execution.session);
    let ours = |msg_type: &str, content: &[u8]| {
        let message = Message::new(Content::parse(msg_type, content), session);
        (Channel::Iopub, message.with_parent(execution.header.clone()).to_wire())
    };
    let mut messages = Vec::new();
    if execution.request > until {
        // All of it follows; what was received of that already goes.
        messages.push(ours("clear_output", br#"{"wait":false}"#));
        return Ok(Replay { messages, ahead: None });
    }
    // Nothing was said of one that waits for its turn, however much was of others.
    let is_queued = execution.last == execution.request;
    let end = if is_queued { execution.request } else { until };
    let mut folded = fold(log, execution, end).await?.fold;
    let mut ahead = None;
    if let Some(question) = folded.input_request()
        && execution.open_input.is_none_or(|open| open > until)
        && let Some(answer) = first_after(log, until, |entry| {
            entry.origin() == Origin::Client && entry.channel() == Channel::Stdin && answers(&entry.message(), question)
        })
        .await?
    {
        // The client wrote the answer beside the question itself: no message that follows has it. So it is put anew with
        // what the log has before it.
        until = answer.seq();
        folded = fold(log, execution, until).await?.fold;
        ahead = Some(Ahead {
            msg_id: execution.msg_id().to_owned(),
            until,
            display_ids: folded.display_ids(),
        });
    }
    messages.push(ours("status", br#"{"execution_state":"busy"}"#));
    for (msg_type, content) in folded.messages() {
        messages.push(ours(msg_type, &content));
    }
    for seq in [execution.open_input, execution.reply, execution.idle]
        .into_iter()
        .flatten()
    {
        if seq <= until
            && let Some((channel, message)) = message_at(log, seq).await?
        {
            messages.push((channel, again(message)));
        }
    }
    Ok(Replay { messages, ahead })
}

/// A message that is sent once more. The pages that a reply brings are among the outputs.
fn again(message: WireMessage) -> WireMessage {
    let content = without_pages(message.content());
    if content == *message.content() {
        return message;
    }
    let [header, parent, metadata] = [message.header(), message.parent_header(), message.metadata()].map(Bytes::clone);
    WireMessage::from_parts([header, parent, metadata, content], [])
}

/// The session that the kernel names in its messages; `None` where it has said nothing since the execution was asked.
pub(super) async fn kernel_session(log: &Log, execution: &ExecutionRecord) -> Result<Option<String>, ReadError> {
    let said = first_after(log, execution.request, |entry| entry.origin() == Origin::Kernel).await?;
    Ok(said.and_then(|entry| {
        let message = entry.message();
        message.header_ref().ok().map(|header| header.session.into_owned())
    }))
}

/// The first such entry after this one; `None` where there is none yet.
async fn first_after(log: &Log, after: Seq, is_it: impl Fn(&Entry) -> bool) -> Result<Option<Entry>, ReadError> {
    let mut reader = log.reader(after);
    let head = log.head();
    while reader.position() < head {
        let block = match reader.next().await {
            Ok(Some(block)) => block,
            Ok(None) => break,
            Err(ReadError::Gap { .. }) => continue,
            Err(error) => return Err(error),
        };
        if let Some(found) = block.entries().find(&is_it) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
