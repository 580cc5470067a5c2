//! Fully parsed messages.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::content::Content;
use crate::header::{Header, HeaderError};
use crate::wire::WireMessage;

/// A fully parsed message, for creating and reading messages.
///
/// To forward messages, keep the [`WireMessage`]: that is cheaper and preserves every byte.
///
/// ```
/// use jupyter_protocol::content::{Content, ExecuteRequest, Reply, ExecuteReply};
/// use jupyter_protocol::{Message, Signer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let signer = Signer::new("hmac-sha256", b"key")?;
/// let request = Message::new(ExecuteRequest::new("1 + 1"), "my-session");
/// let frames = request.to_wire().signed(&signer).into_frames();
///
/// // The other side:
/// let wire = jupyter_protocol::WireMessage::from_frames(frames)?;
/// wire.verify(&signer)?;
/// let received = Message::from_wire(&wire)?;
/// let Content::ExecuteRequest(request) = &received.content else { panic!() };
/// assert_eq!(request.code, "1 + 1");
/// let reply = Message::new(Reply::Ok(ExecuteReply::default()), "kernel's session").child_of(&received);
/// assert_eq!(reply.parent_id(), received.header.msg_id);
/// # Ok(())
/// # }
/// ```
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#general-message-format>
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Header that identifies the message.
    pub header: Header,
    /// Header of the request that caused the message, if any.
    pub parent_header: Option<Header>,
    /// Metadata, which the protocol does not specify.
    pub metadata: Map<String, Value>,
    /// Content.
    pub content: Content,
    /// Binary buffers that the content refers to.
    pub buffers: Vec<Bytes>,
}

/// Error of parsing a message whose header is invalid.
#[derive(Debug, thiserror::Error)]
#[error("cannot parse the message: {0}")]
pub struct MessageError(#[from] HeaderError);

impl Message {
    /// Creates a message with a new id and no parent.
    pub fn new(content: impl Into<Content>, session: &str) -> Self {
        let content = content.into();
        Self {
            header: Header::new(content.msg_type(), session),
            parent_header: None,
            metadata: Map::new(),
            content,
            buffers: Vec::new(),
        }
    }

    /// Makes the message a child of `parent`: a reply to that request, or one of its outputs.
    #[must_use]
    pub fn child_of(self, parent: &Self) -> Self {
        self.with_parent(parent.header.clone())
    }

    /// Sets the header of the parent.
    #[must_use]
    pub fn with_parent(mut self, parent: Header) -> Self {
        self.parent_header = Some(parent);
        self
    }

    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Map<String, Value>) -> Self {
        self.metadata = metadata;
        self
    }

    /// Sets the buffers.
    #[must_use]
    pub fn with_buffers(mut self, buffers: impl IntoIterator<Item = Bytes>) -> Self {
        self.buffers = buffers.into_iter().collect();
        self
    }

    /// Addresses the message to a subshell of the kernel (JEP 91).
    #[must_use]
    pub fn on_subshell(mut self, subshell_id: impl Into<String>) -> Self {
        self.header.subshell_id = Some(subshell_id.into());
        self
    }

    /// Returns the message type in the header, such as `execute_request`.
    #[must_use]
    pub fn msg_type(&self) -> &str {
        &self.header.msg_type
    }

    /// Returns the `msg_id` of the parent, empty if there is none.
    #[must_use]
    pub fn parent_id(&self) -> &str {
        self.parent_header.as_ref().map_or("", |parent| &parent.msg_id)
    }

    /// Parses a message without verifying its signature: see [`WireMessage::verify`].
    ///
    /// Content that does not fit its type becomes [`Content::Invalid`]. An invalid parent header or invalid metadata is
    /// treated as absent.
    ///
    /// # Errors
    /// [`MessageError`] if the header is not a JSON object.
    pub fn from_wire(wire: &WireMessage) -> Result<Self, MessageError> {
        let header = Header::parse(wire.header())?;
        Ok(Self {
            parent_header: Header::parse_parent(wire.parent_header()).unwrap_or_default(),
            metadata: serde_json::from_slice(wire.metadata()).unwrap_or_default(),
            content: Content::parse(&header.msg_type, wire.content()),
            header,
            buffers: wire.buffers().to_vec(),
        })
    }

    /// Serializes the message into frames, unsigned and without identities: see [`WireMessage::signed`].
    #[must_use]
    pub fn to_wire(&self) -> WireMessage {
        let parent = self.parent_header.as_ref().map_or_else(empty_object, json);
        let parts = [json(&self.header), parent, json(&self.metadata), self.content.to_json()];
        WireMessage::from_parts(parts, self.buffers.iter().cloned())
    }
}

fn empty_object() -> Bytes {
    Bytes::from_static(b"{}")
}

/// Serializes a header or metadata, which cannot fail because all keys are strings.
fn json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).map_or_else(|_| empty_object(), Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{ExecutionState, Status};

    fn wire(header: &str, parent: &str, metadata: &str, content: &str) -> WireMessage {
        let parts = [header, parent, metadata, content].map(|part| Bytes::copy_from_slice(part.as_bytes()));
        WireMessage::from_parts(parts, [])
    }

    #[test]
    fn messages_survive_a_round_trip() {
        let parent = Message::new(Status::new(ExecutionState::Idle), "a").on_subshell("s");
        let message = Message::new(Status::new("thinking".into()), "b")
            .child_of(&parent)
            .with_metadata(Map::from_iter([("z".to_owned(), 1.into()), ("a".to_owned(), 2.into())]))
            .with_buffers([Bytes::from_static(b"\0\xff"), Bytes::new()]);
        let wire = message.to_wire();
        assert_eq!(wire.metadata(), r#"{"z":1,"a":2}"#);
        assert_eq!(Message::from_wire(&wire).unwrap(), message);
        assert_eq!(message.parent_header.unwrap().subshell_id.as_deref(), Some("s"));
        assert_eq!(parent.to_wire().parent_header(), "{}");
    }

    #[test]
    fn only_an_invalid_header_is_an_error() {
        let header = r#"{"msg_id":"1","msg_type":"status"}"#;
        let message = Message::from_wire(&wire(header, "[", "null", "{\"execution_state\":")).unwrap();
        assert_eq!(message.parent_header, None);
        assert!(message.metadata.is_empty());
        assert!(matches!(message.content, Content::Invalid(_)));
        assert_eq!(message.to_wire().content(), "{\"execution_state\":");
        for header in ["", "[]", "null"] {
            assert!(Message::from_wire(&wire(header, "{}", "{}", "{}")).is_err(), "{header}");
        }
    }
}
