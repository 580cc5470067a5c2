//! Connects kernels with clients: the recorder owns a kernel's sockets and writes the log; clients attach to the log.

mod attachment;
mod coalesce;
mod execution;
mod execution_record;
mod execution_state;
mod executions;
mod index_keys;
mod index_trim;
mod lifecycle;
mod msg_type;
mod parent_filter;
mod pending_requests;
mod recorder;
mod replay;
mod request_index;
mod sessions;
mod synthetic_reply;

pub use attachment::{Attachment, Client};
pub use execution::{Execution, ExecutionError};
pub use execution_record::{ExecutionRecord, ExecutionStatus};
pub use execution_state::ExecutionState;
pub use executions::{ExecutionFilter, ExecutionOutputs, ExecutionPage, Executions};
pub use lifecycle::{LIFECYCLE, Lifecycle};
pub use recorder::{RequestError, SendError};

pub(crate) use index_trim::trim_index;
pub(crate) use recorder::{Recorder, RecorderOptions};
pub(crate) use sessions::Sessions;
