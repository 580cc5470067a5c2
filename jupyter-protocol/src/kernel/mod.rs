//! Be a kernel.
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
//! Everything but the language is done here: sockets, heartbeat, signatures, the states busy and idle around each
//! request, `execute_input` and the counter, replies in order, aborting after an error, control while shell is busy,
//! interrupts, the history of the session, open comms, input from the user, subshells, shutdown. What is malformed,
//! signed with another key or sent twice is refused and logged, and the kernel goes on.
//!
//! On iopub nothing is dropped: what is published waits for the slowest subscriber, which slows the kernel down. A
//! subscriber that takes nothing for 30 seconds is disconnected, as a client is that takes none of its replies for ten.

mod comms;
mod context;
mod control;
mod dispatch;
mod error;
mod history;
mod input;
mod interrupt;
mod iopub;
mod requests;
mod server;
mod shared;
mod shell;
mod sockets;

use bytes::Bytes;

pub use async_trait::async_trait;
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

/// What makes a language's kernel.
///
/// Only [`info`](Self::info) and [`execute`](Self::execute) have to be there. Requests on shell come one after the
/// other; those on control, and on each subshell, come at the same time, which is why all methods take `&self`. Code
/// that blocks its thread belongs into `tokio::task::spawn_blocking`, or heartbeat and interrupts wait for it. A panic
/// in any of them is told to the client as an error.
#[async_trait]
pub trait Kernel: Send + Sync + 'static {
    /// What the kernel is. An empty `protocol_version` is filled in.
    fn info(&self) -> KernelInfoReply;

    /// Runs code. Its outputs are published with the context; the reply's `execution_count` is filled in.
    ///
    /// # Errors
    /// What went wrong in the code that was run: it is published as `error` and is the reply.
    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError>;

    /// Whether an interrupt drops the future of [`execute`](Self::execute), which is then answered with a
    /// `KeyboardInterrupt`. A kernel that says no sees to interrupts itself: with
    /// [`Context::interrupted`], [`Context::is_interrupted`] or [`interrupt`](Self::interrupt). Default: yes.
    fn cancels_on_interrupt(&self) -> bool {
        true
    }

    /// An interrupt came, by message or as SIGINT, whether or not anything runs. Must not block.
    fn interrupt(&self) {}

    /// How code can be completed at a position. Default: not at all.
    async fn complete(&self, request: &CompleteRequest, _context: &Context) -> CompleteReply {
        CompleteReply {
            cursor_start: request.cursor_pos,
            cursor_end: request.cursor_pos,
            ..CompleteReply::default()
        }
    }

    /// What is known about the name at a position. Default: nothing.
    async fn inspect(&self, _request: &InspectRequest, _context: &Context) -> InspectReply {
        InspectReply::default()
    }

    /// Whether the code can be run as it is. Default: unknown.
    async fn is_complete(&self, _request: &IsCompleteRequest, _context: &Context) -> IsCompleteReply {
        IsCompleteReply::new(Completeness::Unknown)
    }

    /// What was run before. Default: the last 10,000 inputs of this session.
    async fn history(&self, request: &HistoryRequest, context: &Context) -> HistoryReply {
        context.history(request)
    }

    /// A client opened a comm; false closes it, as when nobody knows its target. Default: false.
    async fn comm_open(&self, _open: CommOpen, _buffers: Vec<Bytes>, _context: &Context) -> bool {
        false
    }

    /// A client sent a message on a comm.
    async fn comm_msg(&self, _message: CommMsg, _buffers: Vec<Bytes>, _context: &Context) {}

    /// A client closed a comm.
    async fn comm_close(&self, _close: CommClose, _buffers: Vec<Bytes>, _context: &Context) {}

    /// A request of the Debug Adapter Protocol. Default: refused.
    async fn debug(&self, request: DebugRequest, _context: &Context) -> DebugReply {
        let mut reply = serde_json::Map::new();
        reply.insert("type".to_owned(), "response".into());
        reply.insert("request_seq".to_owned(), request.seq().into());
        reply.insert("command".to_owned(), request.command().into());
        reply.insert("success".to_owned(), false.into());
        reply.insert("message".to_owned(), "this kernel has no debugger".into());
        DebugReply(reply)
    }

    /// What the kernel uses of memory and processor. Default: an error.
    async fn usage(&self, _context: &Context) -> Reply<UsageReply> {
        Reply::error("NotSupported", "this kernel does not know what it uses")
    }

    /// Whether clients may make subshells (JEP 91), in which requests run beside those of the main shell. Default: no.
    fn has_subshells(&self) -> bool {
        false
    }

    /// A message of a type that the protocol does not have; the answer is sent as its reply. Default: logged.
    async fn other(&self, message: &Message, _context: &Context) -> Option<Content> {
        static UNKNOWN: LogLimiter = LogLimiter::new();
        if let Some(left_out) = UNKNOWN.due() {
            tracing::warn!(
                msg_type = message.msg_type(),
                left_out,
                "a message that this kernel does not know"
            );
        }
        None
    }

    /// The kernel is about to end; with `restart`, another one will take its place. It has ten seconds.
    async fn shutdown(&self, _restart: bool) {}
}
