//! Implementing a kernel.
//!
//! ```no_run
//! use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
//! use jupyter_protocol::kernel::{Context, Kernel, async_trait, serve};
//!
//! struct Echo;
//!
//! #[async_trait]
//! impl Kernel for Echo {
//!     fn info(&self) -> KernelInfoReply {
//!         KernelInfoReply { implementation: "echo".to_owned(), ..KernelInfoReply::default() }
//!     }
//!
//!     async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
//!         context.stdout(&request.code).await;
//!         Ok(ExecuteReply::default())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! serve(std::env::args().nth(1).ok_or("usage: echo CONNECTION_FILE")?, Echo).await?;
//! # Ok(())
//! # }
//! ```
//!
//! This module implements everything but the language: sockets, heartbeat, signatures, busy and idle status around each
//! request, `execute_input` and the execution count, replies in order, aborting after an error, control requests while
//! shell is busy, interrupts, the history of the session, open comms, input requests, subshells, shutdown, and the end
//! of the parent process. Messages that are malformed, signed with another key or replayed are rejected and logged.
//!
//! Messages on iopub are never dropped: the slowest subscriber applies backpressure to the kernel. A subscriber that
//! does not read for 30 seconds is disconnected, and so is a client that does not read its replies for ten seconds.

mod blocking;
mod comms;
mod context;
mod control;
mod dispatch;
mod error;
mod history;
mod interrupt;
mod iopub;
#[cfg(unix)]
mod parent;
mod request_queue;
mod server;
mod shell;
mod sockets;
mod state;
mod stdin;

use bytes::Bytes;

pub use async_trait::async_trait;
pub use blocking::BlockingContext;
pub use context::Context;
pub use error::{InputError, ServeError};
pub use server::{Server, ServerHandle, Shutdown, serve};

use crate::content::{
    CommClose, CommMsg, CommOpen, CompleteReply, CompleteRequest, Completeness, Content, DebugReply, DebugRequest,
    ExecuteReply, ExecuteRequest, HistoryReply, HistoryRequest, InspectReply, InspectRequest, IsCompleteReply,
    IsCompleteRequest, KernelInfoReply, Reply, ReplyError, UsageReply,
};
use crate::log_limiter::LogLimiter;
use crate::message::Message;

/// Implementation of a kernel for a language.
///
/// Only [`info`](Self::info) and [`execute`](Self::execute) are required. Requests on shell are handled one after the
/// other. Requests on control and on subshells run concurrently with them, so all methods take `&self`.
///
/// Run code that blocks its thread with [`Context::blocking`]. Otherwise, it delays the heartbeat and interrupts. If a
/// method that handles a request panics, the client receives an error reply.
#[async_trait]
pub trait Kernel: Send + Sync + 'static {
    /// Describes the kernel. An empty `protocol_version` is filled in.
    fn info(&self) -> KernelInfoReply;

    /// Runs code. Publishes outputs with the context. A missing `execution_count` in the reply is filled in.
    ///
    /// # Errors
    /// The error of the executed code, which becomes the reply and is published as `error`.
    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError>;

    /// Returns whether an interrupt drops the future of [`execute`](Self::execute) and replies `KeyboardInterrupt`.
    ///
    /// A kernel that returns `false` handles interrupts itself, with [`Context::interrupted`],
    /// [`Context::is_interrupted`] or [`interrupt`](Self::interrupt). Default: `true`.
    fn cancels_on_interrupt(&self) -> bool {
        true
    }

    /// Called on each interrupt, by message, SIGINT or [`ServerHandle::interrupt`], whether or not code runs. Must not
    /// block. Default: does nothing.
    fn interrupt(&self) {}

    /// Returns completions of code at a cursor position. Default: none.
    ///
    /// Cursor positions count code points: see [`CompleteRequest::byte_offset`] and [`CompleteReply::replacing`].
    async fn complete(&self, request: &CompleteRequest, _context: &Context) -> CompleteReply {
        CompleteReply {
            cursor_start: request.cursor_pos,
            cursor_end: request.cursor_pos,
            ..CompleteReply::default()
        }
    }

    /// Returns documentation of the name at a cursor position ([`InspectRequest::byte_offset`]). Default: not found.
    async fn inspect(&self, _request: &InspectRequest, _context: &Context) -> InspectReply {
        InspectReply::default()
    }

    /// Returns whether code is complete and can be run. Default: unknown.
    async fn is_complete(&self, _request: &IsCompleteRequest, _context: &Context) -> IsCompleteReply {
        IsCompleteReply::new(Completeness::Unknown)
    }

    /// Returns the execution history. Default: from the last 10,000 inputs of this session.
    async fn history(&self, request: &HistoryRequest, context: &Context) -> HistoryReply {
        context.history(request)
    }

    /// Called when a client opens a comm. Returning `false`, for example for an unknown target, closes the comm.
    /// Default: `false`.
    async fn comm_open(&self, _open: CommOpen, _buffers: Vec<Bytes>, _context: &Context) -> bool {
        false
    }

    /// Called when a client sends a message on a comm. Default: ignores the message.
    async fn comm_msg(&self, _message: CommMsg, _buffers: Vec<Bytes>, _context: &Context) {}

    /// Called when a client closes a comm. Default: does nothing.
    async fn comm_close(&self, _close: CommClose, _buffers: Vec<Bytes>, _context: &Context) {}

    /// Handles a request of the Debug Adapter Protocol. Default: an unsuccessful response.
    async fn debug(&self, request: DebugRequest, _context: &Context) -> DebugReply {
        let mut reply = serde_json::Map::new();
        reply.insert("type".to_owned(), "response".into());
        reply.insert("request_seq".to_owned(), request.seq().into());
        reply.insert("command".to_owned(), request.command().into());
        reply.insert("success".to_owned(), false.into());
        reply.insert("message".to_owned(), "this kernel has no debugger".into());
        DebugReply(reply)
    }

    /// Returns the memory and CPU usage of the kernel. Default: an error.
    async fn usage(&self, _context: &Context) -> Reply<UsageReply> {
        Reply::error("NotSupported", "this kernel does not report its usage")
    }

    /// Returns whether clients may create subshells (JEP 91), whose requests run concurrently with those of the main
    /// shell. Default: `false`.
    fn has_subshells(&self) -> bool {
        false
    }

    /// Handles a message that no other method handles. The returned content is sent as the reply. Default: logs the
    /// message.
    async fn other(&self, message: &Message, _context: &Context) -> Option<Content> {
        static UNKNOWN: LogLimiter = LogLimiter::new();
        if let Some(suppressed) = UNKNOWN.due() {
            tracing::warn!(
                msg_type = message.msg_type(),
                suppressed,
                "ignoring a message that this kernel does not support"
            );
        }
        None
    }

    /// Called before the kernel ends, with a deadline of ten seconds. `restart` is whether the kernel will be
    /// restarted. Default: does nothing.
    async fn shutdown(&self, _restart: bool) {}
}
