use std::fmt;
use std::sync::Arc;

use super::error::InputError;
use super::interrupt::Interrupt;
use super::state::{KernelState, Origin};
use crate::content::{
    ClearOutput, CommClose, CommMsg, CommOpen, Content, DisplayData, ExecuteResult, HistoryReply, HistoryRequest,
    MimeBundle, Stream, UpdateDisplayData,
};
use crate::header::Header;
use crate::message::Message;

/// Context of a request: publishes outputs, requests input and checks for interrupts.
///
/// Cheap to clone. A clone may outlive the request, for example in a thread of the kernel; its messages still have the
/// request as parent. Publishing applies backpressure: it waits while the iopub queue is full and drops nothing.
#[derive(Clone)]
pub struct Context {
    pub(super) state: Arc<KernelState>,
    origin: Arc<Origin>,
    interrupt: Interrupt,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Context {
    pub(super) fn new(state: Arc<KernelState>, origin: Arc<Origin>) -> Self {
        let interrupt = state.running.start();
        Self {
            state,
            origin,
            interrupt,
        }
    }

    /// Returns the header of the request.
    #[must_use]
    pub fn request(&self) -> &Header {
        &self.origin.header
    }

    /// Returns the execution count, or `None` if the request is not an execution.
    #[must_use]
    pub fn execution_count(&self) -> Option<u64> {
        self.origin.execution_count
    }

    /// Publishes a message with the request as parent.
    pub async fn publish(&self, content: impl Into<Content>) {
        self.publish_message(Message::new(content, &self.state.session)).await;
    }

    /// Publishes a message that may have metadata or buffers, with the request as parent.
    pub async fn publish_message(&self, message: Message) {
        self.state.publish(message, &self.origin.header).await;
    }

    /// Publishes text on standard output.
    pub async fn stdout(&self, text: impl Into<String>) {
        self.publish(Stream::stdout(text)).await;
    }

    /// Publishes text on standard error.
    pub async fn stderr(&self, text: impl Into<String>) {
        self.publish(Stream::stderr(text)).await;
    }

    /// Publishes `display_data`.
    pub async fn display(&self, data: impl Into<DisplayData>) {
        self.publish(data.into()).await;
    }

    /// Updates the outputs that were displayed with the same `display_id`.
    pub async fn update_display(&self, data: UpdateDisplayData) {
        self.publish(data).await;
    }

    /// Publishes the value of the executed code, unless the request is silent, and stores its text in the history.
    pub async fn result(&self, data: MimeBundle) {
        if self.origin.silent {
            return;
        }
        self.origin
            .remember_result(data.plain_text().map(std::borrow::Cow::into_owned));
        let result = ExecuteResult {
            execution_count: self.origin.execution_count,
            data,
            ..ExecuteResult::default()
        };
        self.publish(result).await;
    }

    /// Clears the outputs of the request. With `wait`, clients clear them when the next output arrives.
    pub async fn clear_output(&self, wait: bool) {
        let clear = ClearOutput {
            wait,
            ..ClearOutput::default()
        };
        self.publish(clear).await;
    }

    /// Requests a line of input from the client that sent the request. With `password`, the client hides the input.
    ///
    /// # Errors
    /// - [`InputError::NotAllowed`] if the request does not have `allow_stdin`.
    /// - [`InputError::NoClient`] if the client is not connected to the stdin socket and not back within 10 s.
    /// - [`InputError::Interrupted`] if the request is interrupted before the answer arrives.
    pub async fn input(&self, prompt: impl Into<String>, password: bool) -> Result<String, InputError> {
        tokio::select! {
            answer = self.state.stdin.request_input(&self.state, &self.origin, prompt.into(), password) => answer,
            () = self.interrupt.wait() => Err(InputError::Interrupted),
        }
    }

    /// Waits until the request is interrupted or the kernel shuts down.
    pub async fn interrupted(&self) {
        self.interrupt.wait().await;
    }

    /// Returns whether the request was interrupted or the kernel is shutting down.
    ///
    /// Code that runs for a long time without awaiting can check this.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.is_set()
    }

    /// Answers a history request from the inputs of this session.
    #[must_use]
    pub fn history(&self, request: &HistoryRequest) -> HistoryReply {
        self.state.history().answer(request)
    }

    /// Opens a comm from the kernel.
    pub async fn comm_open(&self, open: CommOpen) {
        self.state.comms.add(&open.comm_id, &open.target_name);
        self.publish(open).await;
    }

    /// Sends a message on a comm.
    pub async fn comm_msg(&self, message: CommMsg) {
        self.publish(message).await;
    }

    /// Closes a comm.
    pub async fn comm_close(&self, close: CommClose) {
        self.state.comms.remove(&close.comm_id);
        self.publish(close).await;
    }
}

impl From<MimeBundle> for DisplayData {
    fn from(data: MimeBundle) -> Self {
        Self::new(data)
    }
}
