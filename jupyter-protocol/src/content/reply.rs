//! Replies, which have a status in common.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::lenient;

/// Content of a reply: the result of the request, or why there is none.
///
/// Parsing is lenient: content without a `status` is an error if it has an `ename`, else a result.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#request-reply>
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reply<T> {
    /// `status: ok`, with the result.
    Ok(T),
    /// `status: error`: the request failed.
    Error(ReplyError),
    /// `status: aborted`: the request was not run because an earlier one failed.
    Aborted(Map<String, Value>),
    /// A status that is not in the protocol, with the whole content.
    Other(Map<String, Value>),
}

/// Result type of a [`Reply`].
pub trait ReplyBody: Serialize + DeserializeOwned {
    /// Whether `status` is a field of the result, as in `is_complete_reply`, instead of `ok`.
    const STATUS_IS_RESULT: bool = false;
}

/// Error of a request, as an exception in the kernel's language.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyError {
    /// Name of the exception.
    #[serde(default, deserialize_with = "lenient::text")]
    pub ename: String,
    /// Value of the exception, as text.
    #[serde(default, deserialize_with = "lenient::text")]
    pub evalue: String,
    /// Lines of the traceback, which may have ANSI colours.
    #[serde(default, deserialize_with = "lenient::lines")]
    pub traceback: Vec<String>,
    /// Execution count, in an `execute_reply`.
    #[serde(
        default,
        deserialize_with = "lenient::optional_number",
        skip_serializing_if = "Option::is_none"
    )]
    pub execution_count: Option<u64>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ReplyError {
    /// Creates an error with a name and a value, without a traceback.
    pub fn new(ename: impl Into<String>, evalue: impl Into<String>) -> Self {
        Self {
            ename: ename.into(),
            evalue: evalue.into(),
            ..Self::default()
        }
    }
}

impl std::fmt::Display for ReplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.ename, self.evalue)
    }
}

impl std::error::Error for ReplyError {}

/// A reply without a result. Error of [`Reply::into_result`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoResult {
    /// The request failed.
    #[error("the kernel answered with an error: {0}")]
    Error(Box<ReplyError>),
    /// The request was not run because an earlier one failed.
    #[error("the kernel aborted the request because an earlier one failed; send it again")]
    Aborted,
    /// The kernel answered with a status that is not in the protocol.
    #[error("the kernel answered with status {0:?}, which is not in the protocol")]
    Other(String),
}

impl<T> Reply<T> {
    /// Creates an empty `aborted` reply.
    #[must_use]
    pub fn aborted() -> Self {
        Self::Aborted(Map::new())
    }

    /// Creates an `error` reply with a name and a value.
    pub fn error(ename: impl Into<String>, evalue: impl Into<String>) -> Self {
        Self::Error(ReplyError::new(ename, evalue))
    }

    /// Returns the result, if there is one.
    pub const fn ok(&self) -> Option<&T> {
        match self {
            Self::Ok(result) => Some(result),
            _ => None,
        }
    }

    /// Returns the status, such as `ok`.
    ///
    /// For an `is_complete_reply` with a result this is `ok`: the status that it has on the wire is in the result.
    #[must_use]
    pub fn status(&self) -> &str {
        match self {
            Self::Ok(_) => "ok",
            Self::Error(_) => "error",
            Self::Aborted(_) => "aborted",
            Self::Other(content) => content.get("status").and_then(Value::as_str).unwrap_or_default(),
        }
    }

    /// Converts the reply into its result.
    ///
    /// # Errors
    /// [`NoResult`] if the status is not `ok`.
    pub fn into_result(self) -> Result<T, NoResult> {
        match self {
            Self::Ok(result) => Ok(result),
            Self::Error(error) => Err(NoResult::Error(Box::new(error))),
            Self::Aborted(_) => Err(NoResult::Aborted),
            Self::Other(_) => Err(NoResult::Other(self.status().chars().take(64).collect())),
        }
    }
}

impl<T> From<T> for Reply<T> {
    fn from(result: T) -> Self {
        Self::Ok(result)
    }
}

#[derive(Serialize)]
struct WithStatus<'a, T> {
    status: &'static str,
    #[serde(flatten)]
    rest: &'a T,
}

impl<T: ReplyBody> Serialize for Reply<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ok(result) if T::STATUS_IS_RESULT => result.serialize(serializer),
            Self::Ok(rest) => WithStatus { status: "ok", rest }.serialize(serializer),
            Self::Error(rest) => WithStatus { status: "error", rest }.serialize(serializer),
            Self::Aborted(rest) => WithStatus {
                status: "aborted",
                rest,
            }
            .serialize(serializer),
            Self::Other(content) => content.serialize(serializer),
        }
    }
}

impl<'de, T: ReplyBody> Deserialize<'de> for Reply<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut content = Map::<String, Value>::deserialize(deserializer)?;
        let status = match content.get("status") {
            Some(Value::String(status)) => status.clone(),
            None | Some(Value::Null) if content.contains_key("ename") => "error".to_owned(),
            None | Some(Value::Null) => "ok".to_owned(),
            Some(_) => return Err(D::Error::custom("status is not a string")),
        };
        match status.as_str() {
            "error" => {
                content.shift_remove("status");
                serde_json::from_value(content.into()).map(Self::Error)
            }
            // Protocol 5.0 has `abort`.
            "aborted" | "abort" => {
                content.shift_remove("status");
                Ok(Self::Aborted(content))
            }
            "ok" if !T::STATUS_IS_RESULT => {
                content.shift_remove("status");
                serde_json::from_value(content.into()).map(Self::Ok)
            }
            _ if T::STATUS_IS_RESULT => serde_json::from_value(content.into()).map(Self::Ok),
            _ => Ok(Self::Other(content)),
        }
        .map_err(D::Error::custom)
    }
}
