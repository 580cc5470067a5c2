//! Messages with which a kernel requests input from the user.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-stdin-router-dealer-channel>

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;

/// `input_request`: requests a line of input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRequest {
    /// Prompt to display.
    #[serde(default, deserialize_with = "lenient::text")]
    pub prompt: String,
    /// Whether to hide the input.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub password: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `input_reply`: the line of input. Its `Debug` output hides the line, which may be a password.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputReply {
    /// The line, without its line ending.
    #[serde(default, deserialize_with = "lenient::text")]
    pub value: String,
    /// Fields that the protocol does not name for this message, such as the `status` that some clients send.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl InputReply {
    /// Creates a reply with a line of input, without its line ending.
    pub fn new(value: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            extra: Map::new(),
        }
    }
}

impl fmt::Debug for InputReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InputReply")
            .field("value", &format_args!("({} bytes)", self.value.len()))
            .field("extra", &self.extra)
            .finish()
    }
}
