//! The items that most programs need, for `use kernelmux::prelude::*;`.

pub use jupyter_protocol::content::{Content, ExecuteRequest};
pub use jupyter_protocol::{Channel, KernelId, Message};
pub use kernel_log::{Cursor, Lifecycle};
pub use kernel_manager::fold::Output;
pub use kernel_manager::{
    AtClose, Attachment, Culling, ExecuteOptions, Execution, ExecutionError, ExecutionStatus, Kernel, Loss, Manager,
    ManagerOptions, RunResult, StartRequest,
};
pub use kernel_provider::KernelProvider;

pub use crate::ManagerBuilderExt as _;
