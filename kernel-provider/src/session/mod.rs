//! The way between a kernel and its clients: the recorder on the kernel's sockets, and the clients' attachments, which
//! read the log.

mod askers;
mod attachment;
mod execution;
mod execution_state;
mod flood;
mod lifecycle;
mod recorder;
mod sessions;

pub use attachment::{Attachment, Client};
pub use execution::{Execution, ExecutionError};
pub use execution_state::ExecutionState;
pub use lifecycle::{LIFECYCLE, Lifecycle};
pub use recorder::{RequestError, SendError};

pub(crate) use recorder::Recorder;
pub(crate) use sessions::Sessions;
