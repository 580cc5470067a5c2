//! A client of the gateway's REST API: kernelspecs, kernels, and executions with their outputs.
//!
//! ```no_run
//! use gateway_client::rest::{ExecutionQuery, ExecutionStatus, GatewayClientOptions};
//! use gateway_client::GatewayClient;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = GatewayClient::new(GatewayClientOptions::new("http://127.0.0.1:8888").with_token("secret"))?;
//! for kernel in client.find_kernels("python3").await? {
//!     let running = ExecutionQuery::new().with_status(ExecutionStatus::Running);
//!     for execution in client.list_executions(kernel.id, &running).await?.executions {
//!         println!("{}: {}", kernel.id, client.execution(kernel.id, &execution.msg_id).await?.text());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`GatewayClient::resume`] creates the options of a [`ResumeClient`](crate::resume::client::ResumeClient) that
//! follows a kernel of the same gateway.
//!
//! Each request has a timeout, and each response a maximum size. The client follows no redirects and does not repeat
//! requests that the gateway may have received. Unknown fields are ignored, so a newer gateway works with an older
//! client.

mod client;
mod error;
mod execution;
mod http;
mod kernel;
mod options;
mod output;

pub use client::GatewayClient;
pub use error::RestError;
pub use execution::{ExecutionModel, ExecutionOutputs, ExecutionPage, ExecutionQuery, NewExecution};
pub use kernel::{KernelModel, KernelState, KernelspecModel, Kernelspecs, NewKernel};
pub use kernel_log::ExecutionStatus;
pub use options::GatewayClientOptions;
pub use output::Output;
