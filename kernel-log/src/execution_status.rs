use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The progress of an execution, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ExecutionStatus {
    /// Sent to the kernel, not started.
    Queued,
    /// The kernel runs it.
    Running,
    /// Completed.
    Ok,
    /// Completed with an error.
    Error,
    /// Not run, because an earlier execution failed.
    Aborted,
    /// The kernel died or was restarted first.
    Died,
    /// It ended while its messages were not recorded; the outcome is unknown.
    Lost,
    /// A status unknown to this version, from a newer gateway.
    #[serde(other)]
    Unknown,
}

impl ExecutionStatus {
    /// All statuses except [`Unknown`](Self::Unknown).
    pub const KNOWN: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Ok,
        Self::Error,
        Self::Aborted,
        Self::Died,
        Self::Lost,
    ];

    /// The status as it appears in JSON.
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
            Self::Unknown => "unknown",
        }
    }

    /// Whether the execution has ended. Late output may still follow.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Ok | Self::Error | Self::Aborted | Self::Died | Self::Lost)
    }
}

impl fmt::Display for ExecutionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown status {0:?}; use queued, running, ok, error, aborted, died or lost")]
pub struct InvalidExecutionStatus(String);

impl FromStr for ExecutionStatus {
    type Err = InvalidExecutionStatus;

    /// # Errors
    /// [`InvalidExecutionStatus`] if the text is not one of [`KNOWN`](Self::KNOWN).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::KNOWN.into_iter().find(|status| status.as_str() == text);
        found.ok_or_else(|| InvalidExecutionStatus(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_is_read_from_its_own_text() {
        for status in ExecutionStatus::KNOWN {
            assert_eq!(status.to_string().parse(), Ok(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        for text in ["unknown", "OK", ""] {
            let error = text.parse::<ExecutionStatus>().unwrap_err();
            let named = ExecutionStatus::KNOWN.map(ExecutionStatus::as_str);
            assert!(named.iter().all(|name| error.to_string().contains(name)), "{error}");
        }
    }

    #[test]
    fn a_status_of_a_newer_version_is_unknown_and_has_not_ended() {
        let status: ExecutionStatus = serde_json::from_str(r#""suspended""#).unwrap();
        assert_eq!(status, ExecutionStatus::Unknown);
        assert!(!status.has_ended());
    }
}
