//! Legacy text format: one JSON object with `header`, `parent_header`, `metadata`, `content`, `channel`, an empty
//! `buffers`, and the header's `msg_id` and `msg_type`.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::CodecError;
use super::websocket_v1::message_channel;
use crate::channel::Channel;
use crate::header::HeaderRef;
use crate::json;
use crate::wire::WireMessage;

/// Parts of more bytes than this are not copied into a common piece.
const COPY_THRESHOLD: usize = 64 << 10;

/// Encodes a message as one JSON text, into which its parts are spliced without reserializing them.
///
/// Buffers are omitted; [`super::legacy_binary`] encodes them. `NaN` and the infinities, which Python's encoder writes,
/// become null. Kernels may send output in any encoding, so bytes that are not UTF-8 become replacement characters, as
/// in jupyter_server.
///
/// # Errors
/// [`CodecError::Json`] if a part is not JSON, or the header is not an object.
pub fn encode(channel: Channel, message: &WireMessage) -> Result<Bytes, CodecError> {
    encode_pieces(channel, message).map(super::concat)
}

/// Encodes a message as [`encode`] does, into pieces to be sent one after the other.
///
/// Each part of more than 64 KiB is a separate piece, which shares the memory of the message if the part is unchanged.
///
/// # Errors
/// As [`encode`].
pub fn encode_pieces(channel: Channel, message: &WireMessage) -> Result<Vec<Bytes>, CodecError> {
    const NAMES: [&str; 4] = ["header", "parent_header", "metadata", "content"];

    // Validating is much faster than searching for invalid bytes and numbers, which are rare.
    let mut parts = message
        .parts()
        .map(|part| str::from_utf8(part).map_or_else(|_| String::from_utf8_lossy(part), Cow::Borrowed));
    for (name, part) in NAMES.into_iter().zip(&mut parts) {
        if serde_json::from_str::<&RawValue>(part).is_err() {
            let finite = json::finite(part).into_owned();
            serde_json::from_str::<&RawValue>(&finite).map_err(|error| CodecError::json(name, &error))?;
            *part = Cow::Owned(finite);
        }
    }
    let header = HeaderRef::parse(parts[0].as_bytes()).map_err(|error| CodecError::Json {
        part: "header",
        reason: error.to_string(),
    })?;
    let id = serde_json::to_string(&header.msg_id).map_err(|error| CodecError::json("msg_id", &error))?;
    let msg_type = serde_json::to_string(&header.msg_type).map_err(|error| CodecError::json("msg_type", &error))?;
    drop(header);
    let copied = parts
        .iter()
        .map(|part| part.len())
        .filter(|length| *length <= COPY_THRESHOLD);
    let length = copied.sum::<usize>() + 4 * 20 + id.len() + msg_type.len() + 80;
    let mut pieces = Vec::new();
    let mut out = BytesMut::with_capacity(length);
    for (index, (name, part)) in NAMES.into_iter().zip(parts).enumerate() {
        out.put_slice(if index == 0 { b"{\"" } else { b",\"" });
        out.put_slice(name.as_bytes());
        out.put_slice(b"\":");
        if part.len() <= COPY_THRESHOLD {
            out.put_slice(part.as_bytes());
        } else {
            let part = match part {
                Cow::Borrowed(_) => message.parts()[index].clone(),
                Cow::Owned(part) => part.into(),
            };
            pieces.extend([out.split().freeze(), part]);
        }
    }
    out.put_slice(b",\"channel\":\"");
    out.put_slice(channel.as_str().as_bytes());
    out.put_slice(b"\",\"buffers\":[],\"msg_id\":");
    out.put_slice(id.as_bytes());
    out.put_slice(b",\"msg_type\":");
    out.put_slice(msg_type.as_bytes());
    out.put_u8(b'}');
    pieces.push(out.freeze());
    Ok(pieces)
}

#[derive(Deserialize)]
struct TextMessage<'a> {
    #[serde(borrow)]
    header: &'a RawValue,
    #[serde(borrow, default)]
    parent_header: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(default)]
    channel: Option<String>,
}

/// Decodes a JSON text. The frames share its memory, unless `NaN` or infinities in it had to become null.
///
/// A parent header, metadata or content that is absent or null becomes `{}`. An absent or null channel becomes shell.
///
/// # Errors
/// - [`CodecError::Json`] if the text is not a JSON object with a `header` object, or another part is not an object.
/// - [`CodecError::UnknownChannel`] if the channel does not exist or is the heartbeat, which carries no messages.
pub fn decode(text: &Bytes) -> Result<(Channel, WireMessage), CodecError> {
    decode_with_buffers(text, std::iter::empty())
}

pub(super) fn decode_with_buffers(
    text: &Bytes,
    buffers: impl Iterator<Item = Bytes>,
) -> Result<(Channel, WireMessage), CodecError> {
    let message: TextMessage<'_> = match serde_json::from_slice(text) {
        Ok(message) => message,
        Err(error) => match str::from_utf8(text).map(json::finite) {
            // Recurses at most once: the new text has no numbers that are not finite.
            Ok(Cow::Owned(finite)) => return decode_with_buffers(&finite.into(), buffers),
            _ => return Err(CodecError::json("the message", &error)),
        },
    };
    let channel = match &message.channel {
        None => Channel::Shell,
        Some(name) => message_channel(name)?,
    };
    let part = |name: &'static str, value: Option<&RawValue>| match value.map(RawValue::get) {
        None | Some("null") => Ok(Bytes::from_static(b"{}")),
        Some(json) if json.starts_with('{') => Ok(text.slice_ref(json.as_bytes())),
        Some(_) => Err(CodecError::Json {
            part: name,
            reason: "not an object".to_owned(),
        }),
    };
    if !message.header.get().starts_with('{') {
        return Err(CodecError::Json {
            part: "header",
            reason: "not an object".to_owned(),
        });
    }
    Ok((
        channel,
        WireMessage::from_parts(
            [
                text.slice_ref(message.header.get().as_bytes()),
                part("parent_header", message.parent_header)?,
                part("metadata", message.metadata)?,
                part("content", message.content)?,
            ],
            buffers,
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_spliced_unchanged() {
        let text = Bytes::from_static(
            br#" {"content": {"x" : 1.00}, "header":{"msg_id":"1","msg_type":"t"}, "metadata":null}"#,
        );
        let (channel, message) = decode(&text).unwrap();
        assert_eq!(channel, Channel::Shell);
        assert_eq!(message.content(), r#"{"x" : 1.00}"#);
        assert_eq!(message.metadata(), "{}");
        let again = encode(Channel::Iopub, &message).unwrap();
        let (channel, same) = decode(&again).unwrap();
        assert_eq!((channel, &same), (Channel::Iopub, &message));
        let value: serde_json::Value = serde_json::from_slice(&again).unwrap();
        assert_eq!(value["msg_type"], "t");
        assert_eq!(value["buffers"], serde_json::json!([]));
    }

    #[test]
    fn a_large_part_is_not_copied() {
        let object = || Bytes::from_static(b"{}");
        let content: Bytes = format!("{{\"text\":\"{}\"}}", "x".repeat(COPY_THRESHOLD)).into();
        let message = WireMessage::from_parts([object(), object(), object(), content.clone()], []);
        let pieces = encode_pieces(Channel::Iopub, &message).unwrap();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[1].as_ptr(), content.as_ptr());
        assert_eq!(decode(&encode(Channel::Iopub, &message).unwrap()).unwrap().1, message);
    }

    #[test]
    fn nan_and_infinity_become_null() {
        let text = Bytes::from_static(br#"{"header":{"msg_id":"1"},"content":{"a":NaN,"b":"NaN"}}"#);
        let (_, message) = decode(&text).unwrap();
        assert_eq!(message.content(), r#"{"a":null,"b":"NaN"}"#);
        let content = Bytes::from_static(br#"{"data":{"x":[Infinity,-Infinity]}}"#);
        let object = || Bytes::from_static(b"{}");
        let message = WireMessage::from_parts([object(), object(), object(), content], []);
        let encoded: serde_json::Value = serde_json::from_slice(&encode(Channel::Iopub, &message).unwrap()).unwrap();
        assert_eq!(encoded["content"]["data"]["x"], serde_json::json!([null, null]));
        let broken = WireMessage::from_parts([object(), object(), object(), Bytes::from_static(b"[NaN")], []);
        assert!(matches!(
            encode(Channel::Iopub, &broken),
            Err(CodecError::Json { part: "content", .. })
        ));
    }

    #[test]
    fn invalid_messages_are_typed_errors() {
        for text in [
            &b"[]"[..],
            b"{}",
            b"{\"header\":7}",
            b"{\"header\":{},\"content\":[]}",
            b"\xff{}",
            b"{\"header\":{}",
        ] {
            assert!(matches!(
                decode(&Bytes::copy_from_slice(text)),
                Err(CodecError::Json { .. })
            ));
        }
        let text = Bytes::from_static(br#"{"header":{},"channel":"hb"}"#);
        assert!(matches!(decode(&text), Err(CodecError::UnknownChannel(_))));
    }
}
