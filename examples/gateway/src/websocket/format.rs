use axum::http::{HeaderMap, header};
use bytes::Bytes;
use fastwebsockets::OpCode;
use jupyter_protocol::codec::{CodecError, legacy_binary, legacy_text, websocket_v1};
use jupyter_protocol::content::Stream;
use jupyter_protocol::{Channel, Header, Message, WireMessage};
use kernel_provider::log::Entry;
use tracing::warn;

/// The largest message that jupyter_server's gateway client takes; a larger one closes its socket.
const TORNADO_MAX_BYTES: usize = 10 << 20;

/// Who is at the other end, as far as the format depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A browser, or a client that takes what a browser does.
    Any,
    /// jupyter_server's gateway client: a binary frame ends its reader for good.
    Tornado,
}

impl Peer {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let tornado = headers
            .get(header::USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(b"Tornado/"));
        if tornado && !headers.contains_key(header::ORIGIN) {
            Self::Tornado
        } else {
            Self::Any
        }
    }
}

/// How messages are written on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The subprotocol `v1.kernel.websocket.jupyter.org`.
    V1,
    /// No subprotocol: text, and binary for messages with buffers.
    Legacy,
    /// No subprotocol, and never binary.
    LegacyText,
}

impl Format {
    pub(super) fn new(v1: bool, peer: Peer) -> Self {
        match (v1, peer) {
            (true, _) => Self::V1,
            (false, Peer::Any) => Self::Legacy,
            (false, Peer::Tornado) => Self::LegacyText,
        }
    }

    /// The entry as one WebSocket message. `None` where it can pass in no form, which is told in the process's log.
    pub(super) fn encode(self, entry: &Entry) -> Option<(OpCode, Bytes)> {
        let channel = entry.channel();
        if self == Self::V1 {
            return Some((OpCode::Binary, entry.v1()));
        }
        let message = entry.message();
        let encoded = match self {
            Self::Legacy if !message.buffers().is_empty() => {
                legacy_binary::encode(channel, &message).map(|data| (OpCode::Binary, data))
            }
            _ => legacy_text::encode(channel, &message).map(|text| (OpCode::Text, text)),
        };
        if self == Self::LegacyText && !message.buffers().is_empty() {
            warn!(
                seq = %entry.seq(),
                buffers = message.buffers().len(),
                "a message is sent without its buffers: jupyter_server's gateway client cannot take binary frames"
            );
        }
        match encoded {
            Ok((_, data)) if self == Self::LegacyText && data.len() > TORNADO_MAX_BYTES => {
                warn!(seq = %entry.seq(), bytes = data.len(), "a message is larger than jupyter_server takes; a notice is sent in its place");
                let notice = notice(&message, data.len());
                legacy_text::encode(Channel::Iopub, &notice)
                    .ok()
                    .map(|text| (OpCode::Text, text))
            }
            Ok(encoded) => Some(encoded),
            Err(error) => {
                warn!(seq = %entry.seq(), %error, "a message cannot be written in this client's format");
                None
            }
        }
    }

    /// The message that the client sent.
    pub(super) fn decode(self, opcode: OpCode, data: &Bytes) -> Result<(Channel, WireMessage), CodecError> {
        match (self, opcode) {
            (Self::V1, OpCode::Binary) => websocket_v1::decode(data),
            // jupyter_server passes the browser's binary messages on as text.
            (_, OpCode::Text) if std::str::from_utf8(data).is_err() => legacy_binary::decode(data),
            (_, OpCode::Text) => legacy_text::decode(data),
            (_, _) => legacy_binary::decode(data),
        }
    }
}

/// What is shown to the user in place of a message that cannot pass.
fn notice(message: &WireMessage, bytes: usize) -> WireMessage {
    let text = format!(
        "[kernelmux] An output of {} MiB is not shown: jupyter_server takes {} MiB at most from a gateway. \
         It is kept in the kernel's log.\n",
        bytes >> 20,
        TORNADO_MAX_BYTES >> 20
    );
    let notice = Message::new(Stream::stderr(text), "kernelmux");
    match Header::parse_parent(message.parent_header()) {
        Ok(Some(parent)) => notice.with_parent(parent),
        _ => notice,
    }
    .to_wire()
}
