//! Starts, restarts and ends the kernels of all providers, records everything they say in their logs, and attaches
//! clients that lose nothing over a disconnect.

pub mod fold;
mod kernel;
mod manager;
mod session;
#[cfg(feature = "testing")]
pub mod simulation;

pub use kernel::{
    Attachment, Client, Execution, ExecutionError, Kernel, KernelEvent, KernelEventKind, RestartError, Room,
};
pub use manager::{Culling, Manager, ManagerOptions, StartError, StartRequest};
pub use session::{
    ExecutionFilter, ExecutionOutputs, ExecutionPage, ExecutionRecord, ExecutionState, ExecutionStatus, Executions,
    RequestError, SendError,
};
