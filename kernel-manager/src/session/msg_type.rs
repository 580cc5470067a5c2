//! Finds a message's type without parsing its header, which is cheaper in a flood.

use std::borrow::Cow;

use jupyter_protocol::WireMessage;
use memchr::memmem;

/// The message's type; empty if it has none.
pub(super) fn msg_type(message: &WireMessage) -> Cow<'_, str> {
    match plain_text_at(message.header(), b"\"msg_type\"") {
        Some(msg_type) => Cow::Borrowed(msg_type),
        // The header is written in a form that needs a parser.
        None => message
            .header_ref()
            .map_or(Cow::Borrowed(""), |header| Cow::Owned(header.msg_type.into_owned())),
    }
}

/// The string value of this key, if it has no escapes. The key cannot match inside another string, because quotes are
/// escaped there.
fn plain_text_at<'a>(json: &'a [u8], key: &[u8]) -> Option<&'a str> {
    let mut rest = json[memmem::find(json, key)? + key.len()..].trim_ascii_start();
    rest = rest.strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let text = &rest[..memchr::memchr2(b'"', b'\\', rest)?];
    (rest[text.len()] == b'"').then(|| std::str::from_utf8(text).ok())?
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_type_is_found_however_the_header_is_written() {
        for (header, expected) in [
            (r#"{"msg_id":"1","msg_type":"stream"}"#, "stream"),
            (r#"{ "msg_type" : "status" , "x": 1}"#, "status"),
            (r#"{"username":"\"msg_type\":\"a\"","msg_type":"b"}"#, "b"),
            (r#"{"msg_type":"a\u0062"}"#, "ab"),
            (r#"{"x":1}"#, ""),
            ("7", ""),
            (r#"{"msg_type":""#, ""),
        ] {
            let empty = || Bytes::from_static(b"{}");
            let header = Bytes::copy_from_slice(header.as_bytes());
            let message = WireMessage::from_parts([header.clone(), empty(), empty(), empty()], []);
            assert_eq!(msg_type(&message), expected, "{header:?}");
        }
    }
}
