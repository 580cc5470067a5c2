use chrono::{DateTime, Utc};
use jupyter_protocol::Header;
use kernel_log::{ExecutionStatus, Seq};
use serde::{Deserialize, Serialize};

/// An execution's status, and the positions of its entries in the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecutionRecord {
    /// Header of the `execute_request`.
    pub header: Header,
    /// The session that sent the request.
    pub session: String,
    /// The notebook cell, if the client sent `cellId` in the request's metadata (JEP 95).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell_id: Option<String>,
    /// SHA-256 of the code, in hexadecimal; `None` if the request has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_hash: Option<String>,
    /// The execution's status.
    pub status: ExecutionStatus,
    /// What ended the kernel, if the execution [died](ExecutionStatus::Died). For a [lost](ExecutionStatus::Lost) one,
    /// the reason, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The kernel's execution counter, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_count: Option<u64>,
    /// Entry of the request.
    pub request: Seq,
    /// Entry of the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Seq>,
    /// Entry of the `idle` status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Seq>,
    /// Entry of an open `input_request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_input: Option<Seq>,
    /// Other sessions that receive the execution's replies and questions, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<String>,
    /// Whether the log has a notice to the client that an unknown amount of output may be missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told_missing: bool,
    /// The execution's last entry. While it runs, later entries may exist.
    pub last: Seq,
    /// When the execution was requested.
    pub requested: DateTime<Utc>,
    /// When the kernel started the execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<DateTime<Utc>>,
    /// When the execution ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<DateTime<Utc>>,
}

impl ExecutionRecord {
    /// The `msg_id` of the request.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.header.msg_id
    }

    /// Whether this session requested or follows the execution.
    #[must_use]
    pub fn concerns(&self, session: &str) -> bool {
        self.session == session || self.followers.iter().any(|follower| follower == session)
    }
}
