use chrono::{DateTime, SecondsFormat, Utc};
use jupyter_protocol::content::InputRequest;
use kernel_log::{Cursor, ExecutionStatus, Seq};
use percent_encoding::utf8_percent_encode;
use serde::{Deserialize, Serialize};

use super::output::Output;
use crate::endpoint::ESCAPED;

/// An execution.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ExecutionModel {
    /// The `msg_id` of its request.
    pub msg_id: String,
    /// The notebook's cell, if the client named it.
    #[serde(default, rename = "cellId")]
    pub cell_id: Option<String>,
    /// The session that requested it.
    pub session: String,
    /// Its status.
    pub status: ExecutionStatus,
    /// Why the kernel ended, if it ended before the execution.
    #[serde(default)]
    pub reason: Option<String>,
    /// The kernel's execution counter.
    #[serde(default)]
    pub execution_count: Option<u64>,
    /// When it was requested.
    #[serde(default)]
    pub requested: Option<DateTime<Utc>>,
    /// When it started.
    #[serde(default)]
    pub started: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<DateTime<Utc>>,
    /// The number of the request's entry in the log.
    #[serde(default)]
    pub seq: Option<Seq>,
}

/// A page of executions, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ExecutionPage {
    /// The executions.
    pub executions: Vec<ExecutionModel>,
    /// Where the next page begins, for [`ExecutionQuery::with_before`]; `None` on the last page.
    #[serde(default)]
    pub next: Option<Seq>,
}

/// An execution with its outputs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecutionOutputs {
    /// The execution.
    pub execution: ExecutionModel,
    /// The code; `None` if the log no longer has it.
    pub code: Option<String>,
    /// The input request that is not answered yet, if any.
    pub input_request: Option<InputRequest>,
    /// The log position after which later messages follow, for [`Start::After`](crate::resume::Start::After).
    pub cursor: Cursor,
    /// Whether the log has all messages of the execution so far.
    pub complete: bool,
    /// Whether outputs are left out because there are too many; the log has them.
    pub truncated: bool,
    /// The outputs in notebook format.
    pub outputs: Vec<Output>,
}

impl ExecutionOutputs {
    pub(super) fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Outputs {
            #[serde(default)]
            code: Option<String>,
            #[serde(default)]
            input_request: Option<InputRequest>,
            cursor: Cursor,
            complete: bool,
            truncated: bool,
            outputs: Vec<Output>,
        }
        // Two passes, because serde's `flatten` cannot keep the verbatim JSON of outputs.
        let execution = serde_json::from_slice(body)?;
        let Outputs {
            code,
            input_request,
            cursor,
            complete,
            truncated,
            outputs,
        } = serde_json::from_slice(body)?;
        Ok(Self {
            execution,
            code,
            input_request,
            cursor,
            complete,
            truncated,
            outputs,
        })
    }

    /// Returns the text of all outputs: standard streams, the plain text of displays and values, and errors.
    #[must_use]
    pub fn text(&self) -> String {
        self.outputs.iter().filter_map(Output::text).collect()
    }
}

/// Selects executions that match all of its filters.
///
/// ```
/// use gateway_client::rest::{ExecutionQuery, ExecutionStatus};
///
/// let failed = ExecutionQuery::new().with_cell_id("a1b2").with_status(ExecutionStatus::Error).with_limit(10);
/// # let _ = failed;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecutionQuery {
    /// The notebook cell.
    pub cell_id: Option<String>,
    /// The session that sent the request.
    pub session: Option<String>,
    /// Any of these statuses; all if empty.
    pub statuses: Vec<ExecutionStatus>,
    /// Requested at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Requested before this time.
    pub until: Option<DateTime<Utc>>,
    /// The previous page's [`next`](ExecutionPage::next); `None` for the first page.
    pub before: Option<Seq>,
    /// Page size; the gateway's default if `None`.
    pub limit: Option<usize>,
}

impl ExecutionQuery {
    /// Creates a query for all executions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Selects only executions of this cell.
    #[must_use]
    pub fn with_cell_id(mut self, cell_id: impl Into<String>) -> Self {
        self.cell_id = Some(cell_id.into());
        self
    }

    /// Selects only executions that this session requested.
    #[must_use]
    pub fn with_session(mut self, session: impl Into<String>) -> Self {
        self.session = Some(session.into());
        self
    }

    /// Selects only executions of this status, or of another status that was added.
    #[must_use]
    pub fn with_status(mut self, status: ExecutionStatus) -> Self {
        self.statuses.push(status);
        self
    }

    /// Selects only executions that were requested at this time or later.
    #[must_use]
    pub fn with_since(mut self, since: DateTime<Utc>) -> Self {
        self.since = Some(since);
        self
    }

    /// Selects only executions that were requested before this time.
    #[must_use]
    pub fn with_until(mut self, until: DateTime<Utc>) -> Self {
        self.until = Some(until);
        self
    }

    /// Selects the page that begins at the previous page's [`next`](ExecutionPage::next).
    #[must_use]
    pub fn with_before(mut self, before: Seq) -> Self {
        self.before = Some(before);
        self
    }

    /// Sets the page size.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Returns the query string with its question mark, or an empty string without filters.
    pub(super) fn to_query(&self) -> String {
        let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Nanos, true);
        let statuses: Vec<&str> = self.statuses.iter().map(|status| status.as_str()).collect();
        let parameters = [
            ("cellId", self.cell_id.clone()),
            ("session", self.session.clone()),
            ("status", (!statuses.is_empty()).then(|| statuses.join(","))),
            ("since", self.since.map(time)),
            ("until", self.until.map(time)),
            ("before", self.before.map(|seq| seq.0.to_string())),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        let mut query = String::new();
        for (name, value) in parameters {
            if let Some(value) = value {
                query.push(if query.is_empty() { '?' } else { '&' });
                query.extend([name, "="]);
                query.extend(utf8_percent_encode(&value, ESCAPED));
            }
        }
        query
    }
}

/// Code to run without a connected client.
///
/// ```
/// use gateway_client::rest::NewExecution;
/// // If this is sent twice, the code runs once.
/// let nightly = NewExecution::new("report()").with_msg_id("report-2026-01-02").with_cell_id("a1b2");
/// # let _ = nightly;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NewExecution {
    /// The code.
    pub code: String,
    /// The request's `msg_id`; a random one if `None`. A request that is sent again with the same `msg_id` runs once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<String>,
    /// The notebook's cell.
    #[serde(rename = "cellId", skip_serializing_if = "Option::is_none")]
    pub cell_id: Option<String>,
    /// The session; a random one if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Whether the code may request input. By default it may not, because no client is connected to answer.
    pub allow_stdin: bool,
    /// Whether an error aborts the executions that are queued after this one.
    pub stop_on_error: bool,
    /// Whether the kernel publishes neither the code nor a result and does not count the execution.
    pub silent: bool,
    /// Whether the code enters the kernel's history.
    pub store_history: bool,
}

impl NewExecution {
    /// Creates an execution of this code with the protocol's defaults, except that the code may not request input.
    #[must_use]
    pub fn new(code: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            msg_id: None,
            cell_id: None,
            session: None,
            allow_stdin: false,
            stop_on_error: true,
            silent: false,
            store_history: true,
        }
    }

    /// Sets the `msg_id`.
    #[must_use]
    pub fn with_msg_id(mut self, msg_id: impl Into<String>) -> Self {
        self.msg_id = Some(msg_id.into());
        self
    }

    /// Sets the notebook's cell.
    #[must_use]
    pub fn with_cell_id(mut self, cell_id: impl Into<String>) -> Self {
        self.cell_id = Some(cell_id.into());
        self
    }

    /// Sets the session.
    #[must_use]
    pub fn with_session(mut self, session: impl Into<String>) -> Self {
        self.session = Some(session.into());
        self
    }

    /// Sets whether the code may request input.
    #[must_use]
    pub fn with_allow_stdin(mut self, allow_stdin: bool) -> Self {
        self.allow_stdin = allow_stdin;
        self
    }

    /// Sets whether an error aborts the executions that are queued after this one.
    #[must_use]
    pub fn with_stop_on_error(mut self, stop_on_error: bool) -> Self {
        self.stop_on_error = stop_on_error;
        self
    }

    /// Sets whether the kernel publishes neither the code nor a result.
    #[must_use]
    pub fn with_silent(mut self, silent: bool) -> Self {
        self.silent = silent;
        self
    }

    /// Sets whether the code enters the kernel's history.
    #[must_use]
    pub fn with_store_history(mut self, store_history: bool) -> Self {
        self.store_history = store_history;
        self
    }
}

impl From<&str> for NewExecution {
    fn from(code: &str) -> Self {
        Self::new(code)
    }
}
