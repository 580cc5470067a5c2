#![doc = include_str!("../README.md")]
//! Starts, restarts and ends the kernels of all providers, records all their messages in their logs, and attaches
//! clients that reconnect without losing output.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod fold;
mod kernel;
mod manager;
mod session;
#[cfg(feature = "testing")]
pub mod simulation;

pub use kernel_log::ExecutionStatus;

pub use kernel::{
    Attachment, Client, ExecuteOptions, Execution, ExecutionError, FollowError, Kernel, KernelEvent, KernelEventKind,
    Loss, RestartError, Room, RunResult,
};
pub use manager::{AtClose, Culling, Manager, ManagerBuilder, ManagerOptions, OpenError, StartError, StartRequest};
pub use session::{
    Comm, ExecutionFilter, ExecutionOutputs, ExecutionPage, ExecutionRecord, ExecutionState, Executions, RequestError,
    SendError, is_follow_request,
};
