//! MIME bundles: one output in one or more representations.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Representations of one output, by MIME type.
///
/// The data of text types is a string, of binary types a base64 string, and of JSON types any JSON. Order and values
/// are preserved.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#display-data>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct MimeBundle(pub Map<String, Value>);

impl<'de> Deserialize<'de> for MimeBundle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Option::deserialize(deserializer)?.unwrap_or_default()))
    }
}

impl MimeBundle {
    /// Creates an empty bundle.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a bundle with a `text/plain` representation.
    #[must_use]
    pub fn from_text(text: impl Into<String>) -> Self {
        Self::new().with("text/plain", text.into())
    }

    /// Adds a representation.
    #[must_use]
    pub fn with(mut self, mime: impl Into<String>, data: impl Into<Value>) -> Self {
        self.0.insert(mime.into(), data.into());
        self
    }

    /// Returns the data of a MIME type.
    #[must_use]
    pub fn get(&self, mime: &str) -> Option<&Value> {
        self.0.get(mime)
    }

    /// Returns the data of a MIME type as text, or `None` if it is not text.
    ///
    /// A list of lines, as in notebook files, is joined.
    #[must_use]
    pub fn as_text(&self, mime: &str) -> Option<Cow<'_, str>> {
        match self.get(mime)? {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Array(lines) => {
                let lines: Option<Vec<&str>> = lines.iter().map(Value::as_str).collect();
                Some(Cow::Owned(lines?.concat()))
            }
            _ => None,
        }
    }

    /// Returns the text of `text/plain`.
    #[must_use]
    pub fn plain_text(&self) -> Option<Cow<'_, str>> {
        self.as_text("text/plain")
    }

    /// Returns whether the bundle is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for MimeBundle {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(representations: I) -> Self {
        Self(
            representations
                .into_iter()
                .map(|(mime, data)| (mime.into(), data.into()))
                .collect(),
        )
    }
}
