//! The link to an agent: a small process that starts a kernel, records its messages, and outlives the gateway, or
//! whichever program uses the link.
//!
//! [`Link`] is the gateway's end. A link is a stream of [frames](frame) over any connection; docs/src/agent-link.md
//! documents each byte. A link reconnects automatically. A reconnect neither loses nor repeats a message, in either
//! direction, because both ends number their messages.

mod calls;
mod control;
mod event;
pub mod frame;
mod hello;
mod incoming;
mod kernel;
mod launch;
mod link;
mod placement;
mod session;
#[cfg(feature = "agent-tls")]
mod tls;

use std::io;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

pub use calls::{ANSWER_DEADLINE, CallError};
pub use control::{Answer, Control, Reply, Request};
pub use event::Event;
pub use hello::{Accepted, Hello, ProcessPhase, Refused, Welcome};
pub use incoming::{Acknowledger, Incoming, Received};
pub use launch::{Launch, Listen, TlsIdentity};
pub use link::{Link, LinkClosed, MessageSender};
pub use placement::{AgentKernels, Place, Placement};
#[cfg(feature = "agent-tls")]
pub use tls::PinnedConnector;

/// The version of the link. Both ends must have the same one.
pub const VERSION: u32 = 2;

/// A connection to an agent.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects and reconnects to one agent.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Connects once.
    ///
    /// # Errors
    /// [`io::Error`] if the agent cannot be reached; the link retries.
    async fn connect(&self) -> io::Result<Box<dyn Stream>>;

    /// The secret that the gateway sends so that the agent admits its connection.
    fn token(&self) -> &str;
}
