//! What a kernel publishes to all clients.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-iopub-pub-sub-channel>

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient::{self, open_enum};
use super::media::MimeBundle;

/// `iopub_welcome`: the subscription is in force, nothing published from now on is missed (JEP 65).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IopubWelcome {
    /// The topic that was subscribed to.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub subscription: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

open_enum! {
    /// Which stream text was written to.
    StreamName {
        /// Standard output.
        Stdout = "stdout",
        /// Standard error.
        Stderr = "stderr",
    }
}

/// `stream`: text was written to a standard stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Which stream.
    pub name: StreamName,
    /// The text.
    #[serde(default, deserialize_with = "lenient::text")]
    pub text: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Stream {
    /// Text on standard output.
    pub fn stdout(text: impl Into<String>) -> Self {
        Self {
            name: StreamName::Stdout,
            text: text.into(),
            extra: Map::new(),
        }
    }

    /// Text on standard error.
    pub fn stderr(text: impl Into<String>) -> Self {
        Self {
            name: StreamName::Stderr,
            ..Self::stdout(text)
        }
    }
}

/// What front ends must not store with an output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transient {
    /// The name by which `update_display_data` finds the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_id: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Transient {
    /// With the name by which `update_display_data` finds the output.
    pub fn display_id(display_id: impl Into<String>) -> Self {
        Self {
            display_id: Some(display_id.into()),
            extra: Map::new(),
        }
    }
}

/// `display_data`: an output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisplayData {
    /// The output in several representations.
    #[serde(default)]
    pub data: MimeBundle,
    /// More about the representations.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// What is not to be stored with the output.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub transient: Transient,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl DisplayData {
    /// An output without metadata.
    pub fn new(data: MimeBundle) -> Self {
        Self {
            data,
            ..Self::default()
        }
    }
}

/// `update_display_data`: an output with the same `display_id` changes, wherever it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateDisplayData {
    /// The output in several representations.
    #[serde(default)]
    pub data: MimeBundle,
    /// More about the representations.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// Which output it is.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub transient: Transient,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `execute_input`: code is about to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteInput {
    /// The code.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub code: String,
    /// The kernel's execution counter. Some kernels have none.
    #[serde(default, deserialize_with = "lenient::optional_number")]
    pub execution_count: Option<u64>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `execute_result`: the value of the code that was run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteResult {
    /// The kernel's execution counter. Some kernels have none.
    #[serde(default, deserialize_with = "lenient::optional_number")]
    pub execution_count: Option<u64>,
    /// The value in several representations.
    #[serde(default)]
    pub data: MimeBundle,
    /// More about the representations.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// What is not to be stored with the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transient: Option<Transient>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `error`: the code that was run failed, as an exception in the kernel's language.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorOutput {
    /// The exception's name.
    #[serde(default, deserialize_with = "lenient::text")]
    pub ename: String,
    /// The exception's value, as text.
    #[serde(default, deserialize_with = "lenient::text")]
    pub evalue: String,
    /// The traceback's lines, with terminal colours.
    #[serde(default, deserialize_with = "lenient::lines")]
    pub traceback: Vec<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

open_enum! {
    /// What a kernel does.
    ///
    /// Kernels publish the first three; the others come from whoever runs the kernel.
    ExecutionState {
        /// It starts; published once.
        Starting = "starting",
        /// It handles a request.
        Busy = "busy",
        /// It has handled a request.
        Idle = "idle",
        /// It is being started again.
        Restarting = "restarting",
        /// It died and is being started again.
        AutoRestarting = "autorestarting",
        /// It is being ended.
        Terminating = "terminating",
        /// It is no more.
        Dead = "dead",
    }
}

/// `status`: what the kernel does now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it does.
    pub execution_state: ExecutionState,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Status {
    /// A status with this state.
    #[must_use]
    pub fn new(execution_state: ExecutionState) -> Self {
        Self {
            execution_state,
            extra: Map::new(),
        }
    }
}

/// `clear_output`: the outputs shown so far go away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearOutput {
    /// Whether to wait for the next output, so that nothing flickers.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub wait: bool,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}
