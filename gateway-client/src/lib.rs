#![doc = include_str!("../README.md")]
//! [`rest`] contains the client of the gateway's REST API, which finds and starts kernels. [`resume`] contains the
//! resume protocol and its client, which follows a kernel's log across disconnects.
//!
//! # Features
//!
//! | Feature | What it adds |
//! |---|---|
//! | `client` (default) | the client of the resume protocol |
//! | `rest` (default) | the client of the REST API |
//! | `tls` | TLS for both clients: gateways behind `https://` and `wss://` |
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "client", feature = "rest"))]
mod connector;
#[cfg(any(feature = "client", feature = "rest"))]
mod endpoint;
#[cfg(feature = "rest")]
pub mod rest;
pub mod resume;
#[cfg(all(feature = "tls", any(feature = "client", feature = "rest")))]
mod tls;

#[cfg(any(feature = "client", feature = "rest"))]
pub use connector::{Dial, Transport};
#[cfg(feature = "rest")]
pub use rest::GatewayClient;
#[cfg(feature = "tls")]
pub use tokio_rustls::rustls;
