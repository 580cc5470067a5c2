//! Run Jupyter kernels anywhere; attach, detach, re-attach, lose nothing.
//!
//! A [`Manager`] starts kernels through providers, records all their messages in logs, and restarts and ends them. A
//! client reads a kernel's log from a position, so it can detach and later continue with the next message.
//!
//! ```no_run
//! use kernelmux::prelude::*;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let manager = Manager::builder().local("state").on_disk("logs").open().await?;
//!     let kernel = manager.start("python3").await?;
//!     let mut execution = kernel.execute("for n in range(3): print(n)").await?;
//!     while let Some(message) = execution.next().await {
//!         if let Content::Stream(stream) = message?.content {
//!             print!("{}", stream.text);
//!         }
//!     }
//!     println!("{}", kernel.run("6 * 7").await?.text());
//!     manager.close(AtClose::EndKernels).await?;
//!     Ok(())
//! }
//! ```
//!
//! # Layers
//!
//! Every item is at this crate's root, or in a module that is named after the layer: [`protocol`] (messages and their
//! transport), [`log`], `local` and `k8s` (providers), [`fold`] (turns messages into a notebook's outputs), `resume`
//! and `rest` (the clients of a gateway).
//!
//! # Features
//!
//! | Feature | What it adds |
//! |---|---|
//! | `local` (default) | kernels as processes of this machine |
//! | `disk` (default) | logs in files |
//! | `k8s` | kernels as pods of a Kubernetes cluster; needs a version feature of `k8s-openapi` |
//! | `nats` | logs in NATS JetStream, which several services can share |
//! | `resume-client` | the client that follows a kernel through a gateway and reconnects |
//! | `resume-client-tls` | the same, for gateways behind `https://` and `wss://` |
//! | `rest-client` | the client of a gateway's REST API: find and start kernels, read executions |
//! | `rest-client-tls` | the same, for gateways behind `https://` |
//!
//! With `k8s`, the program chooses the version of Kubernetes, as with every library that uses `k8s-openapi`:
//!
//! ```toml
//! k8s-openapi = { version = "0.29", features = ["v1_35"] }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod builder;
pub mod prelude;

pub use builder::ManagerBuilderExt;
#[cfg(feature = "resume-client")]
pub use gateway_client::resume;
#[cfg(feature = "rest-client")]
pub use gateway_client::{GatewayClient, rest};
pub use jupyter_protocol as protocol;
pub use jupyter_protocol::{Channel, Header, KernelId, Message, WireMessage};
pub use kernel_log as log;
pub use kernel_log::{Cursor, Entry, Lifecycle, Log, LogOptions, Logs, Seq, StoreError};
pub use kernel_manager::*;
pub use kernel_provider::*;
#[cfg(feature = "k8s")]
pub use provider_k8s as k8s;
#[cfg(feature = "local")]
pub use provider_local as local;

/// Compiles the program of the README.
#[cfg(all(doctest, feature = "disk", feature = "local"))]
#[doc = include_str!("../README.md")]
struct Readme;
