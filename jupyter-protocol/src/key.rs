//! Secrets that do not appear in logs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Key that signs the messages of a connection, or a CurveZMQ secret key.
///
/// The `Debug` output shows only whether there is a key. Serialization writes the key in plain text, as connection
/// files require: serialize a value that contains a key only into such a file.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// Creates a key from the text in a connection file.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// Creates a random key (a version 4 UUID, 122 random bits).
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }

    /// Returns the bytes of the key, which sign messages.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Returns the key as text. Take care not to log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns whether the key is empty, which means that messages are not signed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Key(none)" } else { "Key(…)" })
    }
}

impl From<String> for Key {
    fn from(key: String) -> Self {
        Self(key)
    }
}

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self(key.to_owned())
    }
}
