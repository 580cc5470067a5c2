//! The kernel asks its user for input.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-stdin-router-dealer-channel>

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;

/// `input_request`: ask for a line of input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRequest {
    /// What to show in front of the input.
    #[serde(default, deserialize_with = "lenient::text")]
    pub prompt: String,
    /// Whether the input must not be shown.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub password: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `input_reply`: the line of input. Its `Debug` output hides the line, which may be a password.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputReply {
    /// The line, without its end.
    #[serde(default, deserialize_with = "lenient::text")]
    pub value: String,
    /// Fields that the protocol does not name for this message; clients that send a `status` have it here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl InputReply {
    /// A line of input, without its end.
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
