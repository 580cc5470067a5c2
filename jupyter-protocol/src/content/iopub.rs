//! Messages that a kernel publishes to all clients.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-iopub-pub-sub-channel>

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient::{self, open_enum};
use super::media::MimeBundle;

/// `iopub_welcome`: confirms that a subscription is in effect, so that no later message is missed (JEP 65).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IopubWelcome {
    /// The subscribed topic.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub subscription: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

open_enum! {
    /// Standard stream that text was written to.
    StreamName {
        /// Standard output.
        Stdout = "stdout",
        /// Standard error.
        Stderr = "stderr",
    }
}

/// `stream`: text written to a standard stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The stream.
    pub name: StreamName,
    /// The text.
    #[serde(default, deserialize_with = "lenient::text")]
    pub text: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Stream {
    /// Creates a message with text on standard output.
    pub fn stdout(text: impl Into<String>) -> Self {
        Self {
            name: StreamName::Stdout,
            text: text.into(),
            extra: Map::new(),
        }
    }

    /// Creates a message with text on standard error.
    pub fn stderr(text: impl Into<String>) -> Self {
        Self {
            name: StreamName::Stderr,
            ..Self::stdout(text)
        }
    }
}

/// Data of an output that front ends do not store in the notebook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transient {
    /// Id by which `update_display_data` addresses the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_id: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Transient {
    /// Creates transient data with a `display_id`.
    pub fn display_id(display_id: impl Into<String>) -> Self {
        Self {
            display_id: Some(display_id.into()),
            extra: Map::new(),
        }
    }
}

/// `display_data`: an output to display.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisplayData {
    /// The output in one or more representations.
    #[serde(default)]
    pub data: MimeBundle,
    /// Metadata of the representations.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// Data that front ends do not store in the notebook.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub transient: Transient,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl DisplayData {
    /// Creates an output without metadata.
    pub fn new(data: MimeBundle) -> Self {
        Self {
            data,
            ..Self::default()
        }
    }
}

/// `update_display_data`: new data for all displayed outputs with the same `display_id`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateDisplayData {
    /// The output in one or more representations.
    #[serde(default)]
    pub data: MimeBundle,
    /// Metadata of the representations.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// The `display_id` of the outputs to update.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub transient: Transient,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `execute_input`: code that is about to be executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteInput {
    /// The code.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub code: String,
    /// Execution count. Some kernels do not have one.
    #[serde(default, deserialize_with = "lenient::optional_number")]
    pub execution_count: Option<u64>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `execute_result`: the value of the executed code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteResult {
    /// Execution count. Some kernels do not have one.
    #[serde(default, deserialize_with = "lenient::optional_number")]
    pub execution_count: Option<u64>,
    /// The value in one or more representations.
    #[serde(default)]
    pub data: MimeBundle,
    /// Metadata of the representations.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// Data that front ends do not store in the notebook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transient: Option<Transient>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `error`: the exception that the executed code raised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorOutput {
    /// Name of the exception.
    #[serde(default, deserialize_with = "lenient::text")]
    pub ename: String,
    /// Value of the exception, as text.
    #[serde(default, deserialize_with = "lenient::text")]
    pub evalue: String,
    /// Lines of the traceback, which may have ANSI colours.
    #[serde(default, deserialize_with = "lenient::lines")]
    pub traceback: Vec<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

open_enum! {
    /// Execution state of a kernel.
    ///
    /// Kernels publish the first three. The others come from the server that manages the kernel.
    ExecutionState {
        /// The kernel is starting. Published once.
        Starting = "starting",
        /// The kernel is handling a request.
        Busy = "busy",
        /// The kernel has handled a request.
        Idle = "idle",
        /// The kernel is being restarted.
        Restarting = "restarting",
        /// The kernel died and is being restarted automatically.
        AutoRestarting = "autorestarting",
        /// The kernel is being shut down.
        Terminating = "terminating",
        /// The kernel is dead.
        Dead = "dead",
    }
}

/// `status`: the execution state of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The state.
    pub execution_state: ExecutionState,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Status {
    /// Creates a status with this state.
    #[must_use]
    pub fn new(execution_state: ExecutionState) -> Self {
        Self {
            execution_state,
            extra: Map::new(),
        }
    }
}

/// `clear_output`: clears the outputs displayed so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearOutput {
    /// Whether to clear only when the next output arrives, which avoids flicker.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub wait: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}
