//! Execution of code.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#execute>

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient;
use super::reply::ReplyBody;

/// `execute_request`: executes code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteRequest {
    /// Code of one or more lines.
    pub code: String,
    /// Whether to run silently: without publishing the code or the result, storing history or increasing the execution
    /// count.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub silent: bool,
    /// Whether to store the code in the history and to increment the execution count. `silent` overrides it.
    #[serde(default = "lenient::yes", deserialize_with = "lenient::or_true")]
    pub store_history: bool,
    /// Expressions to evaluate after the code, by name.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub user_expressions: Map<String, Value>,
    /// Whether the kernel may request input on the stdin channel.
    #[serde(default = "lenient::yes", deserialize_with = "lenient::or_true")]
    pub allow_stdin: bool,
    /// Whether an error aborts the executions that are already queued.
    #[serde(default = "lenient::yes", deserialize_with = "lenient::or_true")]
    pub stop_on_error: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ExecuteRequest {
    /// Creates a request to run `code` as a cell: not silent, with history, input allowed, stopping on errors.
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

/// Result of an `execute_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteReply {
    /// Execution count. Some kernels do not have one.
    #[serde(default, deserialize_with = "lenient::optional_number")]
    pub execution_count: Option<u64>,
    /// Values of the request's `user_expressions` by name: a MIME bundle with a status, or an error.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub user_expressions: Map<String, Value>,
    /// Actions for the front end, such as showing a pager or setting the next input. Deprecated but in use.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub payload: Vec<Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for ExecuteReply {}
