//! Debugging: messages of the Debug Adapter Protocol, carried unchanged.
//!
//! Replies have no `status`: success and failure are the carried protocol's.
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
            /// The Debug Adapter Protocol's message.
            pub Map<String, Value>,
        );

        impl $name {
            fn text(&self, field: &str) -> Option<&str> {
                self.0.get(field).and_then(Value::as_str)
            }

            /// The message's number, unique to its sender.
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
    /// A DAP request.
    pub fn new(seq: i64, command: impl Into<String>, arguments: impl Into<Value>) -> Self {
        Self(Map::from_iter([
            ("seq".to_owned(), seq.into()),
            ("type".to_owned(), "request".into()),
            ("command".to_owned(), command.into().into()),
            ("arguments".to_owned(), arguments.into()),
        ]))
    }

    /// What is to be done.
    #[must_use]
    pub fn command(&self) -> Option<&str> {
        self.text("command")
    }

    /// The command's arguments.
    #[must_use]
    pub fn arguments(&self) -> Option<&Value> {
        self.0.get("arguments")
    }
}

impl DebugReply {
    /// The command that was done.
    #[must_use]
    pub fn command(&self) -> Option<&str> {
        self.text("command")
    }

    /// Whether it succeeded; `None` where the reply does not say, such as an empty one of a kernel without debugger.
    #[must_use]
    pub fn success(&self) -> Option<bool> {
        self.0.get("success").and_then(Value::as_bool)
    }

    /// The result.
    #[must_use]
    pub fn body(&self) -> Option<&Value> {
        self.0.get("body")
    }
}

impl DebugEvent {
    /// What happened.
    #[must_use]
    pub fn event(&self) -> Option<&str> {
        self.text("event")
    }

    /// More about it.
    #[must_use]
    pub fn body(&self) -> Option<&Value> {
        self.0.get("body")
    }
}
