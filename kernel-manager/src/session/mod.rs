//! Connects kernels with clients: the recorder owns a kernel's sockets and writes the log, `sessions` tracks how far
//! each client has read the log, and `executions` looks executions up in the log's index.

mod agent_position;
mod coalesce;
mod comm_state;
mod comms;
mod content_fields;
mod death;
mod execution_record;
mod execution_state;
mod executions;
mod follow;
mod index_keys;
mod index_trim;
mod known_requests;
mod msg_type;
mod parent_filter;
mod pending_requests;
mod questions;
mod recorder;
mod replay;
mod request_index;
mod sessions;
mod synthetic_reply;

pub use comms::Comm;
pub use execution_record::ExecutionRecord;
pub use execution_state::ExecutionState;
pub use executions::{ExecutionFilter, ExecutionOutputs, ExecutionPage, Executions};
pub use follow::is_follow_request;
pub use recorder::{RequestError, SendError};

pub(crate) use execution_state::reported_state;
pub(crate) use follow::{Followed, refusal, wants_comms};
pub(crate) use index_trim::trim_index;
pub(crate) use questions::is_answered_notice;
pub use recorder::RefusedMessages;
pub(crate) use recorder::{Recorder, RecorderOptions};
pub(crate) use replay::{Audience, ReplayedEntries, replay};
pub(crate) use sessions::{Joining, Sessions};
