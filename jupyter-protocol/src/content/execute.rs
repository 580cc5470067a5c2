//! Running code.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#execute>

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use super::reply::ReplyBody;

/// `execute_request`: run code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteRequest {
    /// The code, one or more lines.
    pub code: String,
    /// Run as quietly as possible: no output of the result, no history, no counting.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub silent: bool,
    /// Whether the code goes into the kernel's history and counts. `silent` overrides it.
    #[serde(default = "lenient::yes", deserialize_with = "lenient::or_true")]
    pub store_history: bool,
    /// Expressions to evaluate after the code: name → expression.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub user_expressions: Map<String, Value>,
    /// Whether the kernel may ask for input on the stdin channel.
    #[serde(default = "lenient::yes", deserialize_with = "lenient::or_true")]
    pub allow_stdin: bool,
    /// Whether an error aborts the requests that are already waiting.
    #[serde(default = "lenient::yes", deserialize_with = "lenient::or_true")]
    pub stop_on_error: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ExecuteRequest {
    /// Runs `code` as a cell: not silent, with history, input allowed, stopping at an error.
    pub fn new(code: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            silent: false,
            store_history: true,
            user_expressions: Map::new(),
            allow_stdin: true,
            stop_on_error: true,
            extra: Map::new(),
        }
    }
}

/// The result in an `execute_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteReply {
    /// The kernel's execution counter. Some kernels have none.
    #[serde(default, deserialize_with = "lenient::optional_number")]
    pub execution_count: Option<u64>,
    /// The values of the request's `user_expressions`: name → MIME bundle with status, or error.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub user_expressions: Map<String, Value>,
    /// What the front end is to do: show a pager, set the next input, … Deprecated, and alive.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub payload: Vec<Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for ExecuteReply {}
