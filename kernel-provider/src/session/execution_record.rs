use chrono::{DateTime, Utc};
use jupyter_protocol::Header;
use serde::{Deserialize, Serialize};

use crate::log::Seq;

/// How far an execution is, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ExecutionStatus {
    /// The kernel has it and has not begun.
    Queued,
    /// The kernel runs it.
    Running,
    /// Done.
    Ok,
    /// Done, with an error.
    Error,
    /// Not run, since one before it failed.
    Aborted,
    /// The kernel ended or was restarted before it was done.
    Died,
    /// It ended while nobody recorded; how is not known.
    Lost,
}

impl ExecutionStatus {
    /// The status as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Aborted => "aborted",
            Self::Died => "died",
            Self::Lost => "lost",
        }
    }

    /// Whether nothing but late output is to come.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// What is known of a piece of code that a client asked to be run, and where in the log it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecutionRecord {
    /// The header of the `execute_request`.
    pub header: Header,
    /// The session that asked.
    pub session: String,
    /// The notebook's cell, where the client said so: `cellId` in the request's metadata (JEP 95).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell_id: Option<String>,
    /// How far it is.
    pub status: ExecutionStatus,
    /// What ended the kernel, where the execution [died](ExecutionStatus::Died) with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The kernel's count, as soon as it says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_count: Option<u64>,
    /// The entry of the request.
    pub request: Seq,
    /// The entry of the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Seq>,
    /// The entry of the `status` that says that the kernel is done with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Seq>,
    /// The entry of a question to the user that is not answered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_input: Option<Seq>,
    /// Whether its client was told that output may be missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told_missing: bool,
    /// Its last entry. While it runs it may have later ones.
    pub last: Seq,
    /// When it was asked for.
    pub requested: DateTime<Utc>,
    /// When the kernel began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<DateTime<Utc>>,
    /// When it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<DateTime<Utc>>,
}

impl ExecutionRecord {
    /// The `msg_id` of the request.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.header.msg_id
    }
}
