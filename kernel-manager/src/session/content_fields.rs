//! The fields of messages that determine an execution's record.

use jupyter_protocol::json;
use memchr::memmem;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use kernel_log::ExecutionStatus;

use super::index_keys::MAX_ID;

/// The `cellId` of JupyterLab, or nbclient's `cell_id`.
pub(super) fn cell_id(metadata: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(alias = "cell_id", rename = "cellId")]
        cell_id: Option<String>,
    }
    if metadata == b"{}" {
        return None;
    }
    let metadata: Metadata = serde_json::from_slice(metadata).ok()?;
    metadata.cell_id.filter(|id| !id.is_empty() && id.len() <= MAX_ID)
}

/// The SHA-256 of the code of an `execute_request`, in hexadecimal.
pub(super) fn code_hash(content: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Request {
        code: String,
    }
    let request: Request = json::from_slice(content).ok()?;
    let hash = Sha256::digest(request.code.as_bytes());
    Some(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The `execution_state` of a `status`.
pub(super) fn kernel_state(content: &[u8]) -> Option<&str> {
    #[derive(Deserialize)]
    struct Status<'a> {
        #[serde(borrow)]
        execution_state: &'a str,
    }
    Some(serde_json::from_slice::<Status<'_>>(content).ok()?.execution_state)
}

/// The `execution_count` of an `execute_input`.
pub(super) fn execution_count(content: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Input {
        execution_count: Option<u64>,
    }
    serde_json::from_slice::<Input>(content).ok()?.execution_count
}

/// The status and the `execution_count` of an `execute_reply`. Some kernels send no `status`.
pub(super) fn outcome(content: &[u8]) -> (ExecutionStatus, Option<u64>) {
    #[derive(Default, Deserialize)]
    struct Reply {
        status: Option<String>,
        execution_count: Option<u64>,
    }
    let reply: Reply = json::from_slice(content).unwrap_or_default();
    let status = match reply.status.as_deref() {
        Some("error") => ExecutionStatus::Error,
        Some("aborted" | "abort") => ExecutionStatus::Aborted,
        _ => ExecutionStatus::Ok,
    };
    (status, reply.execution_count)
}

/// Whether a reply is not an error. Some kernels send no `status`.
pub(super) fn is_ok(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Reply {
        #[serde(default)]
        status: Option<String>,
    }
    json::from_slice::<Reply>(content).is_ok_and(|reply| reply.status.is_none_or(|status| status == "ok"))
}

/// The `display_id` in a display's content.
pub(super) fn display_id(content: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Display {
        transient: Transient,
    }
    #[derive(Deserialize)]
    struct Transient {
        display_id: String,
    }
    memmem::find(content, b"\"display_id\"")?;
    let display: Display = serde_json::from_slice(content).ok()?;
    Some(display.transient.display_id).filter(|id| id.len() <= MAX_ID)
}
