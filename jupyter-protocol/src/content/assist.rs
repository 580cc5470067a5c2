//! Helping to write code: inspect, complete, is it complete, history.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lenient::{self, open_enum};
use super::media::MimeBundle;
use super::reply::ReplyBody;

/// `inspect_request`: what is the object at the cursor?
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#introspection>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectRequest {
    /// The code around the cursor.
    pub code: String,
    /// Where the cursor is, in Unicode code points.
    #[serde(default, deserialize_with = "lenient::number")]
    pub cursor_pos: u64,
    /// 0 for what it is, 1 for its source too.
    #[serde(default, deserialize_with = "lenient::number")]
    pub detail_level: u64,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in an `inspect_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectReply {
    /// Whether there is such an object.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub found: bool,
    /// Its description.
    #[serde(default)]
    pub data: MimeBundle,
    /// More about the description.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for InspectReply {}

/// `complete_request`: how may the code at the cursor go on?
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#completion>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteRequest {
    /// The code around the cursor.
    pub code: String,
    /// Where the cursor is, in Unicode code points.
    #[serde(default, deserialize_with = "lenient::number")]
    pub cursor_pos: u64,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The result in a `complete_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteReply {
    /// What may stand between `cursor_start` and `cursor_end`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub matches: Vec<String>,
    /// Where the text to be replaced begins, in Unicode code points.
    #[serde(default, deserialize_with = "lenient::number")]
    pub cursor_start: u64,
    /// Where the text to be replaced ends, in Unicode code points.
    #[serde(default, deserialize_with = "lenient::number")]
    pub cursor_end: u64,
    /// More about the matches.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub metadata: Map<String, Value>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for CompleteReply {}

/// `is_complete_request`: may the code be run, or does it go on?
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
    /// Whether code may be run as it is.
    Completeness {
        /// It may be run.
        Complete = "complete",
        /// It goes on in the next line.
        Incomplete = "incomplete",
        /// Whatever follows, it cannot become right.
        Invalid = "invalid",
        /// The kernel cannot tell.
        Unknown = "unknown",
    }
}

/// The result in an `is_complete_reply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsCompleteReply {
    /// Whether the code may be run as it is.
    #[serde(default = "unknown")]
    pub status: Completeness,
    /// How the next line is to be indented, where the code is incomplete.
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
    /// A reply with this status and no indentation.
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
    /// Which part of the history is asked for.
    HistoryAccess {
        /// The lines `start` to `stop` of a session.
        Range = "range",
        /// The last `n` lines.
        Tail = "tail",
        /// The lines that match `pattern`.
        Search = "search",
    }
}

/// `history_request`: what was run before?
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#history>
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRequest {
    /// Whether outputs are asked for too.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub output: bool,
    /// Whether the code is asked for as it was typed, rather than as it was run.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub raw: bool,
    /// Which part of the history.
    pub hist_access_type: HistoryAccess,
    /// The session, for `range`; negative ones count back from this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<i64>,
    /// The first line, for `range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<i64>,
    /// The line after the last, for `range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<i64>,
    /// How many lines, for `tail` and `search`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// A pattern with `*` and `?`, for `search`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Whether equal lines count once, for `search`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<bool>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl HistoryRequest {
    /// Asks for the last `n` lines as they were typed, without outputs.
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

/// The result in a `history_reply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReply {
    /// The lines, the oldest first.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub history: Vec<HistoryEntry>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyBody for HistoryReply {}

/// One line of a history. On the wire: `[session, line, input]` or `[session, line, [input, output]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64, HistoryInput)", into = "(i64, i64, HistoryInput)")]
pub struct HistoryEntry {
    /// The session that it was run in.
    pub session: i64,
    /// Its number in the session.
    pub line: i64,
    /// The code, with its output where that was asked for.
    pub input: HistoryInput,
}

/// The code of a line of history, with its output where that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HistoryInput {
    /// The code alone.
    Input(String),
    /// The code and its output, where it had one.
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
