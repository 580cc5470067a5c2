#![doc = include_str!("../README.md")]
//! [`Manager`] starts kernels and finds running ones, [`Kernel`] runs code and attaches clients, and [`Executions`]
//! reads what was executed. [`fold`] computes the outputs that a notebook shows.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod fold;
mod groups;
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
pub use manager::{
    AtClose, Counted, Culling, CullingRules, GroupOptions, Manager, ManagerBuilder, ManagerOptions, OpenError,
    StartError, StartRequest,
};
pub use session::{
    Comm, ExecutionFilter, ExecutionOutputs, ExecutionPage, ExecutionRecord, ExecutionState, Executions,
    RefusedMessages, RequestError, SendError, is_follow_request,
};
