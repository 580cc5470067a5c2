#![doc = include_str!("../README.md")]
//! # Messages
//!
//! A [`WireMessage`] holds the frames as received. They are verified and forwarded without parsing. To read a message,
//! parse a [`HeaderRef`](header::HeaderRef) or a typed [`Message`] from it.
//!
//! ```
//! use bytes::Bytes;
//! use jupyter_protocol::codec::websocket_v1;
//! use jupyter_protocol::{Channel, Signer, WireMessage};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let signer = Signer::new("hmac-sha256", b"the connection file's key")?;
//! let parts = [r#"{"msg_id":"1","msg_type":"status"}"#, "{}", "{}", r#"{"execution_state":"idle"}"#];
//! let message = WireMessage::from_parts(parts.map(Bytes::from), []).signed(&signer);
//!
//! // Frames from a ZeroMQ socket are verified, then spliced into a WebSocket message.
//! let received = WireMessage::from_frames(message.into_frames())?;
//! received.verify(&signer)?;
//! assert_eq!(received.header_ref()?.msg_type, "status");
//! let data = websocket_v1::encode(Channel::Iopub, &received);
//! assert_eq!(websocket_v1::decode(&data)?.0, Channel::Iopub);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | Feature | Adds | Default |
//! |---|---|---|
//! | `client` | [`client`], a client of a running kernel | yes |
//! | `kernel` | [`kernel`], to implement a kernel | yes |
//! | `zmq` | [`zmq`], the ZeroMQ sockets that both use | yes |
//! | `zeromq` | conversions between [`WireMessage`] and the messages of the crate `zeromq` | no |
//!
//! Without features, the crate has messages, signing, codecs, connection files and kernelspecs, and does not depend on
//! tokio. That part also builds for WebAssembly (`wasm32-unknown-unknown` with a JavaScript host), without
//! `ConnectionInfo::write`, which needs files, and `LogLimiter`, which needs a monotonic clock. Functions that read
//! files or the environment of the process do not work there.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod bounded_read;
mod channel;
#[cfg(feature = "client")]
pub mod client;
pub mod codec;
pub mod connection_file;
pub mod content;

#[cfg(feature = "zmq")]
pub mod handshake;
pub mod header;
pub mod json;
#[cfg(feature = "kernel")]
pub mod kernel;
mod kernel_id;
pub mod kernelspec;
mod key;
#[cfg(not(target_family = "wasm"))]
mod log_limiter;
pub mod message;
pub mod paths;
pub mod signing;
pub mod wire;
#[cfg(feature = "zeromq")]
mod zeromq_message;
#[cfg(feature = "zmq")]
pub mod zmq;

pub use backoff::Backoff;
pub use channel::{Channel, UnknownChannel};
pub use connection_file::{ConnectionInfo, Transport};
pub use header::Header;
pub use kernel_id::{InvalidKernelId, KernelId};
pub use kernelspec::{InstalledKernelspec, Kernelspec};
pub use key::Key;
#[cfg(not(target_family = "wasm"))]
pub use log_limiter::LogLimiter;
pub use message::Message;
pub use signing::Signer;
pub use wire::WireMessage;
#[cfg(feature = "zeromq")]
pub use zeromq;
