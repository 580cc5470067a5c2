//! Message headers: owned, and borrowed from their frame.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#message-header>

use std::borrow::Cow;
use std::fmt;

use chrono::{SecondsFormat, Utc};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The version of the protocol that this crate writes into headers.
pub const PROTOCOL_VERSION: &str = "5.4";

/// The header frame is no JSON object, or one of its known fields has the wrong type.
#[derive(Debug, thiserror::Error)]
#[error("the header is not a JSON object with the protocol's fields: {0}")]
pub struct HeaderError(#[from] serde_json::Error);

/// What tells a message from others, owned.
///
/// Lenient when read: absent and null fields are empty. Fields that the protocol does not name are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Unique to this message.
    #[serde(default, deserialize_with = "null_as_default")]
    pub msg_id: String,
    /// Such as `execute_request`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub msg_type: String,
    /// Unique to the sender's session.
    #[serde(default, deserialize_with = "null_as_default")]
    pub session: String,
    /// The sender's user name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub username: String,
    /// When it was made, ISO 8601; kept as it was written, since not every kernel writes a zone.
    #[serde(default, deserialize_with = "null_as_default")]
    pub date: String,
    /// The protocol's version, such as `5.4`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub version: String,
    /// The subshell that a request is for (JEP 91).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subshell_id: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Header {
    /// A header of a new message: a fresh `msg_id`, the time now, this crate's protocol version.
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

    /// Reads a header frame.
    ///
    /// # Errors
    /// [`HeaderError`] where it is no JSON object.
    pub fn parse(json: &[u8]) -> Result<Self, HeaderError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// Reads a parent header frame: `None` where it is `{}` or `null`, or has no `msg_id`.
    ///
    /// # Errors
    /// [`HeaderError`] where it is neither a JSON object nor `null`.
    pub fn parse_parent(json: &[u8]) -> Result<Option<Self>, HeaderError> {
        let parent: Option<Self> = serde_json::from_slice(json)?;
        Ok(parent.filter(|header| !header.msg_id.is_empty() || !header.msg_type.is_empty()))
    }
}

/// The header's fields that routing needs, borrowed from the frame.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    /// Unique to this message; empty in an absent parent header.
    pub msg_id: Cow<'a, str>,
    /// Such as `execute_request`.
    pub msg_type: Cow<'a, str>,
    /// Unique to the sender's session.
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

/// A string borrowed where it has no escapes, empty where it is null. (`Option<Cow>` would always own.)
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
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
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

impl<'a> HeaderRef<'a> {
    /// Reads the fields from a header or parent header frame; absent and null ones are empty.
    ///
    /// # Errors
    /// [`HeaderError`] where it is no JSON object (`null` counts as an empty one).
    pub fn parse(json: &'a [u8]) -> Result<Self, HeaderError> {
        // An absent parent is so common that it is worth not asking the parser.
        if json == b"{}" {
            return Ok(Self::default());
        }
        let fields: Option<HeaderFields<'a>> = serde_json::from_slice(json)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrowed_and_owned_read_the_same_and_borrow_where_they_can() {
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
    fn an_absent_parent_is_none() {
        for json in [&b"{}"[..], b"null", b"{ }"] {
            assert_eq!(Header::parse_parent(json).unwrap(), None);
            assert_eq!(HeaderRef::parse(json).unwrap().msg_id, "");
        }
        assert!(Header::parse_parent(b"[1]").is_err());
        assert!(HeaderRef::parse(b"7").is_err());
    }
}
