//! How a client that knows only the Jupyter protocol is brought up to date when it comes back: which of its executions'
//! messages it has is not known for sure, so what it shows of them is cleared and put anew.

use bytes::Bytes;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};

use super::execution_record::ExecutionRecord;
use super::executions::{fold, message_at};
use crate::fold::without_pages;
use crate::log::{Log, Origin, ReadError, Seq};

/// The messages that make a client show the execution as it was after entry `until`, whatever it showed before. Those
/// after `until` can follow as they are.
pub(super) async fn replay(
    log: &Log,
    execution: &ExecutionRecord,
    until: Seq,
) -> Result<Vec<(Channel, WireMessage)>, ReadError> {
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
        return Ok(messages);
    }
    let folded = fold(log, execution, until).await?.fold;
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
    Ok(messages)
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
async fn kernel_session(log: &Log, execution: &ExecutionRecord) -> Result<Option<String>, ReadError> {
    let mut reader = log.reader(execution.request);
    while reader.position() < log.head() {
        let block = match reader.next().await {
            Ok(Some(block)) => block,
            Ok(None) => break,
            Err(ReadError::Gap { .. }) => continue,
            Err(error) => return Err(error),
        };
        let said = block.entries().find(|entry| entry.origin() == Origin::Kernel);
        if let Some(entry) = said {
            let message = entry.message();
            return Ok(message.header_ref().ok().map(|header| header.session.into_owned()));
        }
    }
    Ok(None)
}
