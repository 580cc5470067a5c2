//! Code that blocks its thread.

use std::fmt;
use std::panic::resume_unwind;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::context::Context;
use super::error::InputError;
use crate::content::{
    CommClose, CommMsg, CommOpen, Content, DisplayData, HistoryReply, HistoryRequest, MimeBundle, UpdateDisplayData,
};
use crate::header::Header;
use crate::message::Message;

/// Maximum number of threads that run blocking code of one kernel.
pub(super) const MAX_THREADS: usize = 128;

impl Context {
    /// Runs code that blocks its thread, such as an interpreter, and returns its result.
    ///
    /// The code runs on a separate thread, so the heartbeat, control requests and interrupts do not wait for it. Its
    /// outputs are published in the order of its calls, after all earlier outputs and before the reply. At most 128
    /// threads run blocking code of a kernel; further code waits for one to end.
    ///
    /// A thread cannot be cancelled: if the future is dropped, the code continues to run. With the default of
    /// [`cancels_on_interrupt`](super::Kernel::cancels_on_interrupt), an interrupt drops the future. A kernel that runs
    /// blocking code should therefore return `false` there, and the code should check
    /// [`BlockingContext::is_interrupted`]. The code is also interrupted when the kernel shuts down, but the process
    /// does not wait for it to end.
    ///
    /// ```
    /// use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, ReplyError};
    /// use jupyter_protocol::kernel::Context;
    ///
    /// async fn execute(request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
    ///     let code = request.code.clone();
    ///     context
    ///         .blocking(move |context| {
    ///             for line in code.lines() {
    ///                 if context.is_interrupted() {
    ///                     return Err(ReplyError::new("KeyboardInterrupt", "interrupted"));
    ///                 }
    ///                 context.stdout(format!("{line}\n"));
    ///             }
    ///             Ok(ExecuteReply::default())
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # Panics
    /// If the code panics, or if the system cannot start a thread. The client of the request receives an error reply.
    pub async fn blocking<T: Send + 'static>(&self, code: impl FnOnce(BlockingContext) -> T + Send + 'static) -> T {
        // Fails only for a closed semaphore, and this one is never closed.
        let permit = self.state.blocking_threads.clone().acquire_owned().await;
        let context = BlockingContext {
            context: self.clone(),
            runtime: Handle::current(),
        };
        let (running, ended) = oneshot::channel::<()>();
        let run = move || {
            let _running = (running, permit);
            code(context)
        };
        let thread = match thread::Builder::new().name("kernel-blocking".to_owned()).spawn(run) {
            Ok(thread) => thread,
            Err(error) => panic!("cannot start a thread for blocking code: {error}"),
        };
        // Always returns an error: nothing is sent, and the sender is dropped when the code ends.
        let _ = ended.await;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// [`Context`] for code that blocks its thread, passed to the code by [`Context::blocking`].
///
/// The methods are those of [`Context`]. They block until the message is queued, or until the answer arrives, and panic
/// if they are called from asynchronous code. Once the kernel has shut down, messages are discarded.
#[derive(Clone)]
pub struct BlockingContext {
    context: Context,
    runtime: Handle,
}

impl fmt::Debug for BlockingContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingContext")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl BlockingContext {
    /// Returns the context for asynchronous code.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the header of the request.
    #[must_use]
    pub fn request(&self) -> &Header {
        self.context.request()
    }

    /// Returns the execution count, or `None` if the request is not an execution.
    #[must_use]
    pub fn execution_count(&self) -> Option<u64> {
        self.context.execution_count()
    }

    /// Publishes a message with the request as parent.
    pub fn publish(&self, content: impl Into<Content>) {
        self.runtime.block_on(self.context.publish(content));
    }

    /// Publishes a message that may have metadata or buffers, with the request as parent.
    pub fn publish_message(&self, message: Message) {
        self.runtime.block_on(self.context.publish_message(message));
    }

    /// Publishes text on standard output.
    pub fn stdout(&self, text: impl Into<String>) {
        self.runtime.block_on(self.context.stdout(text));
    }

    /// Publishes text on standard error.
    pub fn stderr(&self, text: impl Into<String>) {
        self.runtime.block_on(self.context.stderr(text));
    }

    /// Publishes `display_data`.
    pub fn display(&self, data: impl Into<DisplayData>) {
        self.runtime.block_on(self.context.display(data));
    }

    /// Updates the outputs that were displayed with the same `display_id`.
    pub fn update_display(&self, data: UpdateDisplayData) {
        self.runtime.block_on(self.context.update_display(data));
    }

    /// Publishes the value of the executed code, unless the request is silent, and stores its text in the history.
    pub fn result(&self, data: MimeBundle) {
        self.runtime.block_on(self.context.result(data));
    }

    /// Clears the outputs of the request. With `wait`, clients clear them when the next output arrives.
    pub fn clear_output(&self, wait: bool) {
        self.runtime.block_on(self.context.clear_output(wait));
    }

    /// Requests a line of input from the client that sent the request. With `password`, the client hides the input.
    ///
    /// # Errors
    /// [`InputError`], as [`Context::input`].
    pub fn input(&self, prompt: impl Into<String>, password: bool) -> Result<String, InputError> {
        self.runtime.block_on(self.context.input(prompt, password))
    }

    /// Returns whether the request was interrupted or the kernel is shutting down.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.context.is_interrupted()
    }

    /// Blocks until the request is interrupted or the kernel shuts down.
    pub fn wait_interrupted(&self) {
        self.runtime.block_on(self.context.interrupted());
    }

    /// Answers a history request from the inputs of this session.
    #[must_use]
    pub fn history(&self, request: &HistoryRequest) -> HistoryReply {
        self.context.history(request)
    }

    /// Opens a comm from the kernel.
    pub fn comm_open(&self, open: CommOpen) {
        self.runtime.block_on(self.context.comm_open(open));
    }

    /// Sends a message on a comm.
    pub fn comm_msg(&self, message: CommMsg) {
        self.runtime.block_on(self.context.comm_msg(message));
    }

    /// Closes a comm.
    pub fn comm_close(&self, close: CommClose) {
        self.runtime.block_on(self.context.comm_close(close));
    }
}
