//! Message headers, owned and borrowed.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#message-header>

use std::borrow::Cow;
use std::fmt;

use chrono::{SecondsFormat, Utc};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::content::lenient::text;
use crate::json;

/// Protocol version that this crate writes into headers.
pub const PROTOCOL_VERSION: &str = "5.4";

/// Error of parsing a header that is not a JSON object.
#[derive(Debug, thiserror::Error)]
#[error("the header is not a JSON object: {0}")]
pub struct HeaderError(#[from] serde_json::Error);

/// Header of a message.
///
/// Parsing is lenient for each field: absent and null fields become empty, and values that are not strings become their
/// JSON, such as the `date` that jupyter_server's gateway client writes as a number. Fields that the protocol does not
/// name are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Unique id of the message.
    #[serde(default, deserialize_with = "text")]
    pub msg_id: String,
    /// Message type, such as `execute_request`.
    #[serde(default, deserialize_with = "text")]
    pub msg_type: String,
    /// Unique id of the sender's session.
    #[serde(default, deserialize_with = "text")]
    pub session: String,
    /// Username of the sender.
    #[serde(default, deserialize_with = "text")]
    pub username: String,
    /// Creation time in ISO 8601. Kept as text, because some kernels write no time zone.
    #[serde(default, deserialize_with = "text")]
    pub date: String,
    /// Protocol version, such as `5.4`.
    #[serde(default, deserialize_with = "text")]
    pub version: String,
    /// Subshell that a request is addressed to (JEP 91).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    pub subshell_id: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn optional_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    text(deserializer).map(|text| Some(text).filter(|text| !text.is_empty()))
}

impl Header {
    /// Creates a header with a new `msg_id`, the current time, the username `kernelmux` and [`PROTOCOL_VERSION`].
    #[must_use]
    pub fn new(msg_type: impl Into<String>, session: impl Into<String>) -> Self {
        Self {
            msg_id: uuid::Uuid::new_v4().to_string(),
            msg_type: msg_type.into(),
            session: session.into(),
            username: "kernelmux".to_owned(),
            date: Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
            version: PROTOCOL_VERSION.to_owned(),
            subshell_id: None,
            extra: Map::new(),
        }
    }

    /// Parses a header frame.
    ///
    /// # Errors
    /// [`HeaderError`] if the frame is not a JSON object.
    pub fn parse(json: &[u8]) -> Result<Self, HeaderError> {
        Ok(json::from_slice(json)?)
    }

    /// Parses a parent header frame. Returns `None` for `null`, or if both `msg_id` and `msg_type` are empty.
    ///
    /// # Errors
    /// [`HeaderError`] if the frame is neither a JSON object nor `null`.
    pub fn parse_parent(json: &[u8]) -> Result<Option<Self>, HeaderError> {
        let parent: Option<Self> = json::from_slice(json)?;
        Ok(parent.filter(|header| !header.msg_id.is_empty() || !header.msg_type.is_empty()))
    }
}

/// The header fields that routing needs, borrowed from the frame.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    /// Unique id of the message, empty in an absent parent header.
    pub msg_id: Cow<'a, str>,
    /// Message type, such as `execute_request`.
    pub msg_type: Cow<'a, str>,
    /// Unique id of the sender's session.
    pub session: Cow<'a, str>,
}

#[derive(Deserialize)]
struct HeaderFields<'a> {
    #[serde(borrow, default)]
    msg_id: Text<'a>,
    #[serde(borrow, default)]
    msg_type: Text<'a>,
    #[serde(borrow, default)]
    session: Text<'a>,
}

/// Lenient text that borrows strings without escapes, which `Option<Cow>` would always copy.
///
/// Numbers and booleans become their JSON. Null, arrays and objects become an empty string.
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Text::default())
            }

            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(value.to_string())))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(value.to_string())))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(value.to_string())))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(Value::from(value).to_string())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text::default())
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

impl<'a> HeaderRef<'a> {
    /// Parses the fields of a header or parent header frame. Absent and null fields become empty, and numbers
    /// and booleans become text.
    ///
    /// # Errors
    /// [`HeaderError`] if the frame is neither a JSON object nor `null`.
    pub fn parse(json: &'a [u8]) -> Result<Self, HeaderError> {
        // Fast path: an absent parent is very common.
        if json == b"{}" {
            return Ok(Self::default());
        }
        let fields: Option<HeaderFields<'a>> = match serde_json::from_slice(json) {
            Ok(fields) => fields,
            // The JSON may contain `NaN` or `Infinity`, which Python writes.
            Err(_) => return Header::parse_parent(json).map(|header| header.unwrap_or_default().into()),
        };
        let Some(fields) = fields else {
            return Ok(Self::default());
        };
        Ok(Self {
            msg_id: fields.msg_id.0,
            msg_type: fields.msg_type.0,
            session: fields.session.0,
        })
    }
}

impl From<Header> for HeaderRef<'_> {
    fn from(header: Header) -> Self {
        Self {
            msg_id: header.msg_id.into(),
            msg_type: header.msg_type.into(),
            session: header.session.into(),
        }
    }
}

/// Fills in the fields that the header of a client's request lacks, and keeps the others unchanged.
///
/// Returns `None` if no field is missing, or the header is not a JSON object.
///
/// Kernels of protocol 5 treat requests without `version` as version 4, and need the session, username and date. If
/// `msg_id` is empty, a unique additional field `kernelmux_request` is added: kernels reject a message whose signature
/// they have received before, and two requests without this field could be identical.
#[must_use]
pub fn completed(header: &[u8], session: &str) -> Option<Vec<u8>> {
    let mut fields: Map<String, Value> = json::from_slice(header).ok()?;
    let is_missing = |fields: &Map<String, Value>, name: &str| fields.get(name).is_none_or(Value::is_null);
    let is_empty = |fields: &Map<String, Value>, name: &str| fields.get(name).is_none_or(|value| value == "");
    let has_id = !is_missing(&fields, "msg_id") && !is_empty(&fields, "msg_id");
    let lacks_nothing = ["session", "username", "date", "version"]
        .iter()
        .all(|name| !is_missing(&fields, name));
    if has_id && lacks_nothing {
        return None;
    }
    let new = Header::new("", session);
    for (name, value) in [
        ("session", new.session),
        ("username", new.username),
        ("date", new.date),
        ("version", new.version),
    ] {
        if is_missing(&fields, name) {
            fields.insert(name.to_owned(), value.into());
        }
    }
    if !has_id {
        fields.insert("msg_id".to_owned(), "".into());
        fields.insert("kernelmux_request".to_owned(), new.msg_id.into());
    }
    serde_json::to_vec(&fields).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrowed_and_owned_headers_parse_the_same() {
        let json = br#"{"msg_id":"a\u0062","msg_type":"status","session":null,"date":"2020","x":1,"subshell_id":"s"}"#;
        let borrowed = HeaderRef::parse(json).unwrap();
        let owned = Header::parse(json).unwrap();
        assert_eq!(borrowed.msg_id, owned.msg_id);
        assert_eq!(borrowed.msg_id, "ab");
        assert!(matches!(borrowed.msg_type, Cow::Borrowed("status")));
        assert_eq!(owned.session, "");
        assert_eq!(owned.subshell_id.as_deref(), Some("s"));
        assert_eq!(owned.extra["x"], 1);
    }

    #[test]
    fn a_field_of_the_wrong_type_does_not_affect_other_fields() {
        let header =
            br#"{"msg_id":7,"msg_type":"execute_request","session":["x"],"date":1764.5,"version":{},"subshell_id":3}"#;
        let owned = Header::parse(header).unwrap();
        assert_eq!((&*owned.msg_id, &*owned.date, &*owned.version), ("7", "1764.5", "{}"));
        assert_eq!(owned.subshell_id.as_deref(), Some("3"));
        let borrowed = HeaderRef::parse(header).unwrap();
        assert_eq!((&*borrowed.msg_id, &*borrowed.msg_type), ("7", "execute_request"));
        let nan = br#"{"msg_id":"1","msg_type":"status","date":NaN}"#;
        assert_eq!(HeaderRef::parse(nan).unwrap().msg_type, "status");
        assert_eq!(Header::parse(nan).unwrap().msg_id, "1");
    }

    #[test]
    fn missing_fields_are_filled_in_and_others_kept() {
        let header = completed(br#"{"msg_id":"1","msg_type":"execute_request","x":1,"date":2}"#, "s").unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header["msg_id"], "1");
        assert_eq!((&header["x"], &header["date"]), (&1.into(), &2.into()));
        assert_eq!(
            (&header["session"], &header["version"]),
            (&"s".into(), &PROTOCOL_VERSION.into())
        );
        assert!(header["username"].is_string());
        let whole = serde_json::to_vec(&Header::new("execute_request", "s")).unwrap();
        assert_eq!(completed(&whole, "other"), None);
        assert_eq!(completed(b"7", "s"), None);
        let empty = |_| completed(br#"{"msg_id":"","msg_type":"execute_request"}"#, "s").unwrap();
        let [first, second] = [(); 2].map(empty);
        assert_ne!(first, second);
        assert_eq!(HeaderRef::parse(&first).unwrap().msg_id, "");
    }

    #[test]
    fn an_absent_parent_is_none() {
        for json in [&b"{}"[..], b"null", b"{ }"] {
            assert_eq!(Header::parse_parent(json).unwrap(), None);
            assert_eq!(HeaderRef::parse(json).unwrap().msg_id, "");
        }
        assert!(Header::parse_parent(b"[1]").is_err());
        assert!(HeaderRef::parse(b"7").is_err());
    }
}
