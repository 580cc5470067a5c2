//! Debugging: wrapped messages of the Debug Adapter Protocol (DAP).
//!
//! Replies have no `status`: the DAP response contains success or failure.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#debug-request>

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

macro_rules! carries_dap {
    ($($(#[$meta:meta])* $name:ident,)+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(
            /// The DAP message.
            pub Map<String, Value>,
        );

        impl $name {
            fn text(&self, field: &str) -> Option<&str> {
                self.0.get(field).and_then(Value::as_str)
            }

            /// Returns the sequence number of the message, unique per sender.
            #[must_use]
            pub fn seq(&self) -> Option<i64> {
                self.0.get("seq").and_then(Value::as_i64)
            }
        }
    )+};
}

carries_dap! {
    /// `debug_request`: a DAP request.
    DebugRequest,
    /// `debug_reply`: the DAP response.
    DebugReply,
    /// `debug_event`: a DAP event.
    DebugEvent,
}

impl DebugRequest {
    /// Creates a DAP request.
    pub fn new(seq: i64, command: impl Into<String>, arguments: impl Into<Value>) -> Self {
        Self(Map::from_iter([
            ("seq".to_owned(), seq.into()),
            ("type".to_owned(), "request".into()),
            ("command".to_owned(), command.into().into()),
            ("arguments".to_owned(), arguments.into()),
        ]))
    }

    /// Returns the command.
    #[must_use]
    pub fn command(&self) -> Option<&str> {
        self.text("command")
    }

    /// Returns the arguments of the command.
    #[must_use]
    pub fn arguments(&self) -> Option<&Value> {
        self.0.get("arguments")
    }
}

impl DebugReply {
    /// Returns the command of the request.
    #[must_use]
    pub fn command(&self) -> Option<&str> {
        self.text("command")
    }

    /// Returns whether the request succeeded, or `None` if the reply does not contain this, for example because the
    /// kernel has no debugger.
    #[must_use]
    pub fn success(&self) -> Option<bool> {
        self.0.get("success").and_then(Value::as_bool)
    }

    /// Returns the result.
    #[must_use]
    pub fn body(&self) -> Option<&Value> {
        self.0.get("body")
    }
}

impl DebugEvent {
    /// Returns the type of the event.
    #[must_use]
    pub fn event(&self) -> Option<&str> {
        self.text("event")
    }

    /// Returns details of the event.
    #[must_use]
    pub fn body(&self) -> Option<&Value> {
        self.0.get("body")
    }
}
