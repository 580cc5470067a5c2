//! Messages that assist in writing code: introspection, completion, code completeness and history.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient::{self, open_enum};
use super::media::MimeBundle;
use super::reply::ReplyBody;

/// `inspect_request`: requests documentation of the name at the cursor.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#introspection>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectRequest {
    /// Code that contains the cursor.
    pub code: String,
    /// Cursor position in Unicode code points.
    #[serde(default, deserialize_with = "lenient::number")]
    pub cursor_pos: u64,
    /// Level of detail: 0, or 1 to include the source.
    #[serde(default, deserialize_with = "lenient::number")]
    pub detail_level: u64,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of an `inspect_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectReply {
    /// Whether the name was found.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub found: bool,
    /// Documentation in one or more representations.
    #[serde(default)]
    pub data: MimeBundle,
    /// Metadata of the representations.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for InspectReply {}

/// `complete_request`: requests completions at the cursor.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#completion>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteRequest {
    /// Code that contains the cursor.
    pub code: String,
    /// Cursor position in Unicode code points.
    #[serde(default, deserialize_with = "lenient::number")]
    pub cursor_pos: u64,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Result of a `complete_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteReply {
    /// Completions, each of which can replace the text from `cursor_start` to `cursor_end`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub matches: Vec<String>,
    /// Start of the text to replace, in Unicode code points.
    #[serde(default, deserialize_with = "lenient::number")]
    pub cursor_start: u64,
    /// End of the text to replace, in Unicode code points.
    #[serde(default, deserialize_with = "lenient::number")]
    pub cursor_end: u64,
    /// Metadata of the matches.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for CompleteReply {}

/// `is_complete_request`: asks whether code is complete and can be run.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#code-completeness>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsCompleteRequest {
    /// The code so far.
    pub code: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

open_enum! {
    /// Whether code is complete and can be run.
    Completeness {
        /// The code can be run.
        Complete = "complete",
        /// The code needs further lines.
        Incomplete = "incomplete",
        /// The code is invalid and no further lines can complete it.
        Invalid = "invalid",
        /// The kernel cannot decide.
        Unknown = "unknown",
    }
}

/// Result of an `is_complete_reply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsCompleteReply {
    /// Whether the code is complete and can be run.
    #[serde(default = "unknown")]
    pub status: Completeness,
    /// Indentation of the next line, if the code is incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indent: Option<String>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn unknown() -> Completeness {
    Completeness::Unknown
}

impl IsCompleteReply {
    /// Creates a reply with this status, and an empty `indent` if the code is incomplete.
    #[must_use]
    pub fn new(status: Completeness) -> Self {
        Self {
            indent: (status == Completeness::Incomplete).then(String::new),
            status,
            extra: Map::new(),
        }
    }
}

impl ReplyBody for IsCompleteReply {
    const STATUS_IS_RESULT: bool = true;
}

open_enum! {
    /// Part of the history that is requested.
    HistoryAccess {
        /// The inputs of a session from `start` to before `stop`.
        Range = "range",
        /// The last `n` inputs.
        Tail = "tail",
        /// The inputs that match `pattern`.
        Search = "search",
    }
}

/// `history_request`: requests the execution history.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#history>
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRequest {
    /// Whether to include outputs.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub output: bool,
    /// Whether to return inputs as entered, rather than as transformed before execution.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub raw: bool,
    /// Part of the history that is requested.
    pub hist_access_type: HistoryAccess,
    /// Session, for `range`. Negative numbers count back from the current session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<i64>,
    /// First line number, for `range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<i64>,
    /// Line number after the last, for `range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<i64>,
    /// Maximum number of inputs, for `tail` and `search`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// Glob pattern with `*` and `?`, for `search`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Whether to omit duplicate inputs, for `search`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<bool>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl HistoryRequest {
    /// Creates a request for the last `n` inputs as entered, without outputs.
    #[must_use]
    pub fn tail(n: i64) -> Self {
        Self {
            output: false,
            raw: true,
            hist_access_type: HistoryAccess::Tail,
            session: None,
            start: None,
            stop: None,
            n: Some(n),
            pattern: None,
            unique: None,
            extra: Map::new(),
        }
    }
}

/// Result of a `history_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReply {
    /// Entries, oldest first.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub history: Vec<HistoryEntry>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for HistoryReply {}

/// Entry of the history. On the wire: `[session, line, input]` or `[session, line, [input, output]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64, HistoryInput)", into = "(i64, i64, HistoryInput)")]
pub struct HistoryEntry {
    /// Session of the execution.
    pub session: i64,
    /// Line number in the session.
    pub line: i64,
    /// Input, with its output if requested.
    pub input: HistoryInput,
}

/// Input of a history entry, with its output if requested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HistoryInput {
    /// Input without output.
    Input(String),
    /// Input and its output, if it had one.
    WithOutput(String, Option<String>),
}

impl From<(i64, i64, HistoryInput)> for HistoryEntry {
    fn from((session, line, input): (i64, i64, HistoryInput)) -> Self {
        Self { session, line, input }
    }
}

impl From<HistoryEntry> for (i64, i64, HistoryInput) {
    fn from(entry: HistoryEntry) -> Self {
        (entry.session, entry.line, entry.input)
    }
}
