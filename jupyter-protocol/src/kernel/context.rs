use std::sync::Arc;

use super::error::InputError;
use super::interrupt::Interrupt;
use super::shared::{Origin, Shared};
use crate::content::{
    ClearOutput, CommClose, CommMsg, CommOpen, Content, DisplayData, ExecuteResult, HistoryReply, HistoryRequest,
    MimeBundle, Stream, UpdateDisplayData,
};
use crate::header::Header;
use crate::message::Message;

/// What a kernel can do while it handles a request: publish, ask the user, see whether it was interrupted.
///
/// Cheap to clone. A clone may outlive the request, in a thread of the kernel, say: what it publishes still belongs to
/// the request that it is from. Publishing waits while too much waits to be published already, and drops nothing.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
    origin: Arc<Origin>,
    interrupt: Interrupt,
}

impl Context {
    pub(super) fn new(shared: Arc<Shared>, origin: Arc<Origin>) -> Self {
        let interrupt = shared.running.start();
        Self {
            shared,
            origin,
            interrupt,
        }
    }

    /// The header of the request.
    #[must_use]
    pub fn request(&self) -> &Header {
        &self.origin.header
    }

    /// The number of the execution, where the request is one.
    #[must_use]
    pub fn execution_count(&self) -> Option<u64> {
        self.origin.execution_count
    }

    /// Publishes any message as an effect of the request.
    pub async fn publish(&self, content: impl Into<Content>) {
        self.publish_message(Message::new(content, &self.shared.session)).await;
    }

    /// Publishes a message with metadata or buffers as an effect of the request.
    pub async fn publish_message(&self, message: Message) {
        self.shared.publish(message, &self.origin.header).await;
    }

    /// Writes to the standard output.
    pub async fn stdout(&self, text: impl Into<String>) {
        self.publish(Stream::stdout(text)).await;
    }

    /// Writes to the standard error.
    pub async fn stderr(&self, text: impl Into<String>) {
        self.publish(Stream::stderr(text)).await;
    }

    /// Shows an output.
    pub async fn display(&self, data: impl Into<DisplayData>) {
        self.publish(data.into()).await;
    }

    /// Changes an output that was shown with a `display_id`.
    pub async fn update_display(&self, data: UpdateDisplayData) {
        self.publish(data).await;
    }

    /// Shows the value of the code that was run, unless the request is silent; the history remembers its text.
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

    /// Removes the outputs shown so far; with `wait`, when the next one comes.
    pub async fn clear_output(&self, wait: bool) {
        let clear = ClearOutput {
            wait,
            ..ClearOutput::default()
        };
        self.publish(clear).await;
    }

    /// Asks the user who sent the request for a line of text; `password` hides what is typed.
    ///
    /// # Errors
    /// [`InputError::NotAllowed`] where the request says that its client cannot be asked, [`InputError::NoClient`] where
    /// the client is gone, [`InputError::Interrupted`] where an interrupt came before the answer.
    pub async fn input(&self, prompt: impl Into<String>, password: bool) -> Result<String, InputError> {
        tokio::select! {
            answer = self.shared.input.ask(&self.shared, &self.origin, prompt.into(), password) => answer,
            () = self.interrupt.wait() => Err(InputError::Interrupted),
        }
    }

    /// Waits until the request is interrupted.
    pub async fn interrupted(&self) {
        self.interrupt.wait().await;
    }

    /// Whether the request was interrupted: for code that runs long without waiting for anything.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.is_set()
    }

    /// What was run in this session, as a history request asks for it.
    #[must_use]
    pub fn history(&self, request: &HistoryRequest) -> HistoryReply {
        self.shared.history().answer(request)
    }

    /// Opens a comm from the kernel's side.
    pub async fn comm_open(&self, open: CommOpen) {
        self.shared.comms.add(&open.comm_id, &open.target_name);
        self.publish(open).await;
    }

    /// Sends a message on a comm.
    pub async fn comm_msg(&self, message: CommMsg) {
        self.publish(message).await;
    }

    /// Closes a comm.
    pub async fn comm_close(&self, close: CommClose) {
        self.shared.comms.remove(&close.comm_id);
        self.publish(close).await;
    }
}

impl From<MimeBundle> for DisplayData {
    fn from(data: MimeBundle) -> Self {
        Self::new(data)
    }
}
