//! What all replies have in common: a status.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::lenient;

/// The content of a reply: the request's result, or why there is none.
///
/// Read leniently: without a `status` it is an error where there is an `ename`, else a result.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#request-reply>
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reply<T> {
    /// `status: ok` and the result.
    Ok(T),
    /// `status: error`: the request failed.
    Error(ReplyError),
    /// `status: aborted`: the request was not tried, because one before it failed.
    Aborted(Map<String, Value>),
    /// A status that the protocol does not have; the whole content is kept.
    Other(Map<String, Value>),
}

/// The result in a [`Reply`].
pub trait ReplyBody: Serialize + DeserializeOwned {
    /// Whether `status` is the result itself, as in `is_complete_reply`, so that it is not `ok`.
    const STATUS_IS_RESULT: bool = false;
}

/// Why a request failed, as an exception in the kernel's language.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyError {
    /// The exception's name.
    #[serde(default, deserialize_with = "lenient::text")]
    pub ename: String,
    /// The exception's value, as text.
    #[serde(default, deserialize_with = "lenient::text")]
    pub evalue: String,
    /// The traceback's lines, with terminal colours.
    #[serde(default, deserialize_with = "lenient::lines")]
    pub traceback: Vec<String>,
    /// The kernel's execution counter, in an `execute_reply`.
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
    /// An error with a name and a value, without a traceback.
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

/// A reply that brings no result. What [`Reply::into_result`] gives in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoResult {
    /// The request failed.
    #[error("the kernel answered with an error: {0}")]
    Error(Box<ReplyError>),
    /// The request was not tried, because one before it failed.
    #[error("the kernel aborted the request, because one before it failed; send it again")]
    Aborted,
    /// The kernel answered with a status that the protocol does not have.
    #[error("the kernel answered with status {0:?}, which is not in the protocol")]
    Other(String),
}

impl<T> Reply<T> {
    /// An empty `aborted` reply.
    #[must_use]
    pub fn aborted() -> Self {
        Self::Aborted(Map::new())
    }

    /// An `error` reply with a name and a value.
    pub fn error(ename: impl Into<String>, evalue: impl Into<String>) -> Self {
        Self::Error(ReplyError::new(ename, evalue))
    }

    /// The result, if there is one.
    pub const fn ok(&self) -> Option<&T> {
        match self {
            Self::Ok(result) => Some(result),
            _ => None,
        }
    }

    /// The status on the wire, such as `ok`; that of an `is_complete_reply` is in its result.
    #[must_use]
    pub fn status(&self) -> &str {
        match self {
            Self::Ok(_) => "ok",
            Self::Error(_) => "error",
            Self::Aborted(_) => "aborted",
            Self::Other(content) => content.get("status").and_then(Value::as_str).unwrap_or_default(),
        }
    }

    /// The result, or why there is none.
    ///
    /// # Errors
    /// [`NoResult`] says it.
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
            // Protocol 5.0 spelt it `abort`.
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
