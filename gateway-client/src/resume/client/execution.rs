use jupyter_protocol::content::{Content, ExecuteRequest, ExecutionState, InputReply};
use jupyter_protocol::{Channel, Message, WireMessage};
use kernel_log::LIFECYCLE;
use memchr::memmem;

use super::{Entry, Event, ExecutionError, ResumeClient, SendError};

/// Code that runs in a kernel, followed over any disconnect. Made by [`ResumeClient::execute`].
///
/// Dropping it stops following; the code runs on, and what it puts out is in the log.
pub struct Execution<'a> {
    client: &'a mut ResumeClient,
    msg_id: String,
    replied: bool,
    idle: bool,
}

impl<'a> Execution<'a> {
    pub(super) fn start(client: &'a mut ResumeClient, request: ExecuteRequest) -> Result<Self, SendError> {
        let message = Message::new(request, client.session());
        client.send(Channel::Shell, message.to_wire())?;
        Ok(Self {
            client,
            msg_id: message.header.msg_id,
            replied: false,
            idle: false,
        })
    }

    /// The `msg_id` of the request.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.msg_id
    }

    /// The client: for its cursor, say. Entries that are read from it are not looked at here.
    pub fn client(&mut self) -> &mut ResumeClient {
        self.client
    }

    /// The next message that belongs to the execution, in the log's order: status, outputs, questions on stdin, the
    /// reply. `None` once both the reply and `idle` have come, in whichever order. Entries of others are read and passed
    /// over. Cancel-safe.
    ///
    /// # Errors
    /// [`ExecutionError::KernelEnded`] where the kernel ends or is restarted first; [`ExecutionError::Gap`] and
    /// [`ExecutionError::NotRecovered`] where messages may be missing, after which reading can go on;
    /// [`ExecutionError::Client`] where the client gives up.
    pub async fn next(&mut self) -> Result<Option<Message>, ExecutionError> {
        while !(self.replied && self.idle) {
            match self.client.next().await? {
                Some(Event::Entry(entry)) => {
                    if let Some(message) = self.take(&entry)? {
                        return Ok(Some(message));
                    }
                }
                Some(Event::Gap { first, last }) => {
                    return Err(ExecutionError::Gap {
                        first: first.0,
                        last: last.0,
                    });
                }
                Some(Event::NotRecovered(hello)) => return Err(ExecutionError::NotRecovered(hello.reason)),
                Some(Event::Connected(_) | Event::Disconnected { .. }) => {}
                None => return Err(ExecutionError::KernelEnded { reason: None }),
            }
        }
        Ok(None)
    }

    /// Answers the kernel's question (an `input_request`).
    ///
    /// # Errors
    /// As [`ResumeClient::send`].
    pub fn answer(&mut self, value: impl Into<String>) -> Result<(), SendError> {
        let reply = Message::new(InputReply::new(value), self.client.session());
        self.client.send(Channel::Stdin, reply.to_wire())
    }

    fn take(&mut self, entry: &Entry) -> Result<Option<Message>, ExecutionError> {
        let wire = &entry.message;
        let has_id = |json: &[u8]| memmem::find(json, self.msg_id.as_bytes()).is_some();
        if !has_id(wire.parent_header()) {
            // What became of the kernel before it had the request is of no concern.
            let begun = !self.client.outbox.contains(&self.msg_id);
            let end = (begun && entry.channel == Channel::Iopub).then(|| end_of_process(wire, &self.msg_id));
            return end.flatten().map_or(Ok(None), |reason| {
                (self.replied, self.idle) = (true, true);
                Err(ExecutionError::KernelEnded { reason })
            });
        }
        let Ok(message) = Message::from_wire(wire) else {
            return Ok(None);
        };
        if message.parent_id() != self.msg_id {
            return Ok(None);
        }
        match &message.content {
            Content::Status(status) if status.execution_state == ExecutionState::Idle => self.idle = true,
            Content::ExecuteReply(_) => self.replied = true,
            _ => {}
        }
        Ok(Some(message))
    }
}

/// What is known of the end of the process that ran the code, where this message is the news of it.
///
/// The synthetic reply that follows such news is for clients that do not know it.
fn end_of_process(message: &WireMessage, msg_id: &str) -> Option<Option<String>> {
    if message.parent_header() != "{}" {
        return None;
    }
    let msg_type = message.header_ref().ok()?.msg_type;
    let content: serde_json::Value = serde_json::from_slice(message.content()).ok()?;
    let text = |key: &str| content.get(key).and_then(serde_json::Value::as_str);
    let ended = match &*msg_type {
        "status" => matches!(text("execution_state"), Some("restarting" | "dead")),
        LIFECYCLE => match text("event") {
            Some("restarting") => true,
            Some("died") => content["executions"]
                .as_array()
                .is_some_and(|died| died.iter().any(|died| died == msg_id)),
            _ => false,
        },
        _ => false,
    };
    ended.then(|| text("reason").or_else(|| text("event")).map(str::to_owned))
}
