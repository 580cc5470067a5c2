use axum::http::{HeaderMap, header};
use bytes::Bytes;
use gateway_client::resume;
use jupyter_protocol::codec::{CodecError, legacy_binary, legacy_text, websocket_v1};
use jupyter_protocol::content::Stream;
use jupyter_protocol::{Channel, Header, LogLimiter, Message, WireMessage};
use kernel_log::Entry;
use tracing::warn;
use tungstenite::protocol::frame::coding::Data;

/// Largest message that jupyter_server's gateway client accepts. A larger one closes its socket.
const TORNADO_MAX_BYTES: usize = 10 << 20;

/// Limits log lines caused by kernels' outputs, for all clients together.
static WITHOUT_BUFFERS: LogLimiter = LogLimiter::new();
static TOO_LARGE: LogLimiter = LogLimiter::new();
static UNWRITABLE: LogLimiter = LogLimiter::new();

/// The kind of client, as far as the format depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A browser, or a client with the same abilities.
    Any,
    /// jupyter_server's gateway client: a binary frame ends its reader permanently.
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

/// A message in a client's format, in pieces that share memory with the log.
pub(super) struct Encoded {
    pub(super) kind: Data,
    pieces: Pieces,
}

/// A single piece needs no allocation.
enum Pieces {
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Encoded {
    fn binary(data: Bytes) -> Self {
        Self {
            kind: Data::Binary,
            pieces: Pieces::One(data),
        }
    }

    fn text(pieces: Vec<Bytes>) -> Self {
        Self {
            kind: Data::Text,
            pieces: Pieces::Many(pieces),
        }
    }

    pub(super) fn pieces(&self) -> &[Bytes] {
        match &self.pieces {
            Pieces::One(piece) => std::slice::from_ref(piece),
            Pieces::Many(pieces) => pieces,
        }
    }

    pub(super) fn length(&self) -> usize {
        self.pieces().iter().map(Bytes::len).sum()
    }
}

/// The message format of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The resume protocol.
    Resume,
    /// The subprotocol `v1.kernel.websocket.jupyter.org`.
    V1,
    /// No subprotocol: text, and binary for messages with buffers.
    Legacy,
    /// No subprotocol and never binary.
    LegacyText,
}

impl Format {
    pub(super) fn new(subprotocol: Option<&str>, peer: Peer) -> Self {
        match (subprotocol, peer) {
            (Some(resume::SUBPROTOCOL), _) => Self::Resume,
            (Some(_), _) => Self::V1,
            (None, Peer::Any) => Self::Legacy,
            (None, Peer::Tornado) => Self::LegacyText,
        }
    }

    /// Whether a session may have several connections of this kind, each of which receives everything.
    ///
    /// jupyter_server may have several for one browser: it keeps a connection for up to 90 s after its browser is gone,
    /// leaks one at each page load, and reopens those that are closed. If only the newest were kept, they would replace
    /// each other again and again, and the user's messages would be lost.
    pub(super) fn is_shared(self) -> bool {
        self == Self::LegacyText
    }

    /// The entry as one WebSocket message. `None`, with a line in the process's log, if the format cannot express it.
    pub(super) fn encode(self, entry: &Entry) -> Option<Encoded> {
        match self {
            Self::Resume => Some(Encoded::binary(entry.seq_and_v1())),
            Self::V1 => Some(Encoded::binary(entry.v1())),
            _ => self.encode_message(entry.channel(), &entry.message()),
        }
    }

    /// Like [`encode`](Self::encode), for a message that is not a log entry. The resume protocol has no such messages.
    pub(super) fn encode_message(self, channel: Channel, message: &WireMessage) -> Option<Encoded> {
        let encoded = match self {
            Self::V1 | Self::Resume => return Some(Encoded::binary(websocket_v1::encode(channel, message))),
            Self::Legacy if !message.buffers().is_empty() => {
                legacy_binary::encode_pieces(channel, message).map(|pieces| Encoded {
                    kind: Data::Binary,
                    pieces: Pieces::Many(pieces),
                })
            }
            _ => legacy_text::encode_pieces(channel, message).map(Encoded::text),
        };
        if self == Self::LegacyText
            && !message.buffers().is_empty()
            && let Some(suppressed) = WITHOUT_BUFFERS.due()
        {
            warn!(
                suppressed,
                buffers = message.buffers().len(),
                "a message is sent without its buffers: jupyter_server's gateway client cannot take binary frames"
            );
        }
        match encoded {
            Ok(encoded) if self == Self::LegacyText && encoded.length() > TORNADO_MAX_BYTES => {
                if let Some(suppressed) = TOO_LARGE.due() {
                    warn!(
                        suppressed,
                        bytes = encoded.length(),
                        "a message is larger than jupyter_server takes; a notice is sent in its place"
                    );
                }
                let notice = notice(message, encoded.length());
                legacy_text::encode_pieces(Channel::Iopub, &notice)
                    .ok()
                    .map(Encoded::text)
            }
            Ok(encoded) => Some(encoded),
            Err(error) => {
                if let Some(suppressed) = UNWRITABLE.due() {
                    warn!(%error, suppressed, "a message cannot be written in this client's format");
                }
                None
            }
        }
    }

    /// Empties a message's `buffer_paths` if this format loses its buffers, because clients fail on paths without
    /// buffers.
    pub(super) fn without_lost_buffers(self, message: WireMessage) -> WireMessage {
        if self != Self::LegacyText || message.buffers().is_empty() {
            return message;
        }
        let Ok(mut content) = serde_json::from_slice::<serde_json::Value>(message.content()) else {
            return message;
        };
        let Some(paths) = content.pointer_mut("/data/buffer_paths") else {
            return message;
        };
        *paths = serde_json::json!([]);
        let [header, parent, metadata] =
            [message.header(), message.parent_header(), message.metadata()].map(Bytes::clone);
        WireMessage::from_parts([header, parent, metadata, content.to_string().into()], [])
    }

    /// Decodes a client's message.
    pub(super) fn decode(self, kind: Data, data: &Bytes) -> Result<(Channel, WireMessage), CodecError> {
        match (self, kind) {
            (Self::V1 | Self::Resume, Data::Binary) => websocket_v1::decode(data),
            // jupyter_server forwards a browser's binary messages as text.
            (_, Data::Text) if std::str::from_utf8(data).is_err() => legacy_binary::decode(data),
            (_, Data::Text) => legacy_text::decode(data),
            (_, _) => legacy_binary::decode(data),
        }
    }
}

/// A notice in place of a message that cannot be sent.
fn notice(message: &WireMessage, bytes: usize) -> WireMessage {
    let text = format!(
        "[kernelmux] An output of {} MiB is not shown: jupyter_server takes {} MiB at most from a gateway. \
         It is kept in the kernel's log.\n",
        bytes >> 20,
        TORNADO_MAX_BYTES >> 20
    );
    // JupyterLab drops queued messages when a message of another session arrives.
    let header = message.header_ref();
    let session = header.as_ref().map_or("kernelmux", |header| &*header.session);
    let notice = Message::new(Stream::stderr(text), session);
    match Header::parse_parent(message.parent_header()) {
        Ok(Some(parent)) => notice.with_parent(parent),
        _ => notice,
    }
    .to_wire()
}
