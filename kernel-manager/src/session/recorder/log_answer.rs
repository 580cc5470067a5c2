//! Answers some requests from the log, because a busy kernel would answer them only after the running cell.

use bytes::Bytes;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, Header, WireMessage};
use serde::Deserialize;
use serde_json::json;
use tracing::warn;

use super::Recorder;
use crate::session::msg_type::msg_type;

impl Recorder {
    /// Whether [`answer_from_log`](Self::answer_from_log) can answer the request, and an execution keeps the kernel's
    /// main shell busy.
    pub(crate) fn is_answered_from_log(&self, channel: Channel, request: &WireMessage) -> bool {
        let msg_type = msg_type(request);
        if channel != Channel::Shell || !matches!(&*msg_type, "kernel_info_request" | "comm_info_request") {
            return false;
        }
        let on_main_shell = Header::parse(request.header()).is_ok_and(|header| header.subshell_id.is_none());
        let requests = self.recording.requests();
        // The kernel's own answer comes late but contains all comms.
        if msg_type == "comm_info_request" && requests.comms.is_incomplete() {
            return false;
        }
        on_main_shell && requests.kernel_info().is_some() && requests.busy_with().is_some()
    }

    /// Returns the reply between a busy and an idle status, and then the running execution's busy status, if any.
    pub(crate) async fn answer_from_log(&self, request: &WireMessage) -> Vec<(Channel, WireMessage)> {
        let Ok(header) = Header::parse(request.header()) else {
            return Vec::new();
        };
        let (reply_type, content) = match &*header.msg_type {
            "comm_info_request" => ("comm_info_reply", Some(self.comm_info(request).await)),
            _ => ("kernel_info_reply", self.recording.requests().kernel_info()),
        };
        let session = self.recording.kernel_session();
        let message = |channel, msg_type: &str, content: &[u8], parent: &Header| {
            let message = Message::new(Content::parse(msg_type, content), &session);
            (channel, message.with_parent(parent.clone()).to_wire())
        };
        let status = |state: &str, parent: &Header| {
            let content = format!(r#"{{"execution_state":"{state}"}}"#);
            message(Channel::Iopub, "status", content.as_bytes(), parent)
        };
        let mut messages = vec![
            status("busy", &header),
            message(Channel::Shell, reply_type, &content.unwrap_or_default(), &header),
            status("idle", &header),
        ];
        if let Some(running) = self.recording.requests().busy_with() {
            // Clients show the newest status, whatever its parent.
            messages.push(status("busy", &running));
        }
        messages
    }

    async fn comm_info(&self, request: &WireMessage) -> Bytes {
        #[derive(Deserialize)]
        struct Wanted {
            #[serde(default)]
            target_name: Option<String>,
        }
        let wanted = serde_json::from_slice::<Wanted>(request.content()).ok();
        let target_name = wanted.and_then(|wanted| wanted.target_name);
        let info = match self.recording.read_comms().await {
            Ok(comms) => comms.info(target_name.as_deref()),
            Err(error) => {
                warn!(kernel_id = %self.recording.id, %error, "the open comms cannot be read");
                json!({"status": "error", "ename": "UnreadableComms", "evalue": error.to_string(), "traceback": []})
            }
        };
        info.to_string().into()
    }
}
