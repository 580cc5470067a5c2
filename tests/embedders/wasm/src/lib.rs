//! The core of a front end in the browser. It encodes requests as WebSocket frames, and extracts text from frames.
use bytes::Bytes;
use jupyter_protocol::codec::websocket_v1;
use jupyter_protocol::content::{Content, ExecuteRequest};
use jupyter_protocol::{Channel, Message};

/// Returns a frame that runs code, and the request's `msg_id`, which is the parent of its outputs.
pub fn run(code: &str, session: &str) -> (Vec<u8>, String) {
    let message = Message::new(ExecuteRequest::new(code), session);
    let frame = websocket_v1::encode(Channel::Shell, &message.to_wire());
    (frame.to_vec(), message.header.msg_id)
}

/// The text that a received frame shows; `None` for other messages and for frames that are not messages.
pub fn text(frame: Vec<u8>) -> Option<String> {
    let (channel, wire) = websocket_v1::decode(&Bytes::from(frame)).ok()?;
    match Message::from_wire(&wire).ok()?.content {
        Content::Stream(stream) if channel == Channel::Iopub => Some(stream.text),
        Content::ExecuteResult(result) => result.data.as_text("text/plain").map(Into::into),
        Content::Error(error) => Some(format!("{}: {}", error.ename, error.evalue)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use jupyter_protocol::content::Stream;

    use super::*;

    #[test]
    fn requests_are_encoded_and_outputs_decoded() {
        let (frame, msg_id) = run("1 + 1", "session");
        let (channel, wire) = websocket_v1::decode(&Bytes::from(frame.clone())).unwrap();
        assert_eq!(
            (channel, wire.header_ref().unwrap().msg_id.as_ref()),
            (Channel::Shell, &*msg_id)
        );
        assert_eq!(text(frame), None);
        let stream = Message::new(Stream::stdout("hello"), "kernel");
        let frame = websocket_v1::encode(Channel::Iopub, &stream.to_wire());
        assert_eq!(text(frame.to_vec()).as_deref(), Some("hello"));
        assert_eq!(text(b"no frame".to_vec()), None);
    }
}
