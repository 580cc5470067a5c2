use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use jupyter_protocol::content::InputReply;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{
    Block, Cursor, Entry, ExecutionEvent, ExecutionStatus, ExecutionTracker, Lifecycle, Origin, ReadError, Seq,
    StoreError,
};
use memchr::memmem;
use tokio::runtime::Handle;
use tracing::warn;

use super::{Attachment, Client, ExecuteOptions, Kernel};
use crate::session::{ExecutionRecord, SendError};

/// Why an execution's next message cannot be returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutionError {
    /// The kernel died or was restarted. The output up to then is in the kernel's log.
    #[error("the kernel ended before the execution was done{}", because(reason.as_deref()))]
    KernelEnded {
        /// The known cause.
        reason: Option<String>,
    },
    /// The log does not contain the end of the execution: the end was never recorded, for example because the recording
    /// process restarted, or it has been removed from the log.
    #[error("the result of the execution is unknown, because its end is not in the log")]
    Lost,
    /// Messages of the execution may be missing here. Reading can continue.
    #[error("messages of the execution may be missing: {0}")]
    Loss(Lifecycle),
    /// A part of the log is missing or unreadable. Reading can continue.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The request could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}

/// Why an execution cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The log has no such execution.
    #[error("the kernel has no execution {0:?}, or its log no longer has it")]
    NoSuchExecution(String),
    /// The cursor belongs to another log.
    #[error("the cursor {0} does not belong to this kernel's log")]
    OtherLog(Cursor),
    /// The log's index cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A stream of the messages of one execution: statuses, outputs, input requests and the reply.
///
/// The messages are read from the kernel's log and returned in log order.
///
/// The stream ends once it has returned both the reply and the `idle` status, or an error that ends the execution.
/// After [`ExecutionError::Loss`] and [`ExecutionError::Read`], it continues.
///
/// Dropping the stream does not stop the code, whose output continues to go to the log. With
/// [`with_interrupt_on_drop`](ExecuteOptions::with_interrupt_on_drop), dropping the stream interrupts the kernel.
///
/// ```
/// use futures::StreamExt as _;
/// use jupyter_protocol::content::Content;
/// use kernel_manager::{Execution, ExecutionError};
///
/// async fn print(mut execution: Execution) -> Result<(), ExecutionError> {
///     while let Some(message) = execution.next().await {
///         if let Content::Stream(stream) = message?.content {
///             print!("{}", stream.text);
///         }
///     }
///     Ok(())
/// }
/// ```
pub struct Execution {
    client: Client,
    reading: Reading,
    tracker: ExecutionTracker,
    ready: VecDeque<Entry>,
    position: Seq,
    /// Whether the request has been read. Life-cycle entries before it concern earlier executions.
    has_request: bool,
    /// How the execution ended. Set if the execution had already ended when following began, or if, after a gap, its
    /// record is missing or says that it died or was lost.
    past: Option<Past>,
    /// Reads the execution's record from the index after a gap that may contain its end.
    lookup: Option<BoxFuture<'static, Result<Option<ExecutionRecord>, StoreError>>>,
    interrupt_on_drop: bool,
}

/// Reads the log, one block at a time.
enum Reading {
    Ready(Attachment),
    Waiting(BoxFuture<'static, (Attachment, Result<Option<Block>, ReadError>)>),
    /// The log has ended.
    Ended,
}

/// The end of an execution, from its record.
struct Past {
    last: Seq,
    status: ExecutionStatus,
    reason: Option<String>,
}

impl Execution {
    pub(super) async fn start(kernel: &Arc<Kernel>, options: ExecuteOptions) -> Result<Self, SendError> {
        let session = options.session.unwrap_or_else(new_session);
        let position = kernel.log().head();
        let message = Message::new(options.request, &session).with_metadata(options.metadata);
        let mut execution = Self::at(kernel, &session, message.header.msg_id.clone(), position);
        execution.interrupt_on_drop = options.interrupt_on_drop;
        // If the request was not sent, there is no code to interrupt.
        let sent = execution.client.send(Channel::Shell, message.to_wire()).await;
        sent.inspect_err(|_| execution.interrupt_on_drop = false)?;
        Ok(execution)
    }

    /// Follows an execution that was requested before, after the cursor or from its beginning.
    pub(super) fn follow(
        kernel: &Arc<Kernel>,
        record: &ExecutionRecord,
        after: Option<Cursor>,
    ) -> Result<Self, FollowError> {
        if let Some(other) = after.filter(|cursor| cursor.epoch != kernel.log().epoch()) {
            return Err(FollowError::OtherLog(other));
        }
        let before = Seq(record.request.0.saturating_sub(1));
        let position = after.map_or(before, |cursor| cursor.seq.max(before));
        let was_read = |seq: Option<Seq>| seq.is_some_and(|seq| seq <= position);
        let mut execution = Self::at(kernel, &new_session(), record.msg_id().to_owned(), position);
        execution.has_request = record.request <= position;
        execution.tracker = ExecutionTracker::resumed(record.msg_id(), was_read(record.reply), was_read(record.idle));
        execution.past = Past::of(record);
        Ok(execution)
    }

    fn at(kernel: &Arc<Kernel>, session: &str, msg_id: String, position: Seq) -> Self {
        let attachment = kernel.attach_at(session, position);
        Self {
            client: attachment.client(),
            reading: Reading::Ready(attachment),
            tracker: ExecutionTracker::new(msg_id),
            ready: VecDeque::new(),
            position,
            has_request: false,
            past: None,
            lookup: None,
            interrupt_on_drop: false,
        }
    }

    /// The `msg_id` of the request.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        self.tracker.msg_id()
    }

    /// The position up to which everything has been read. [`Kernel::follow`] continues from here, even in another
    /// process.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            epoch: self.client.kernel().log().epoch(),
            seq: self.position,
        }
    }

    /// The next message of the execution. `None` after its end. Cancel-safe.
    ///
    /// # Errors
    /// [`ExecutionError`]. After [`KernelEnded`](ExecutionError::KernelEnded) and [`Lost`](ExecutionError::Lost)
    /// nothing follows; after the others, reading continues.
    pub async fn next(&mut self) -> Option<Result<Message, ExecutionError>> {
        StreamExt::next(self).await
    }

    /// Answers the kernel's `input_request`.
    ///
    /// # Errors
    /// [`SendError`] if the kernel is dead or the answer cannot be sent.
    pub async fn answer(&mut self, value: impl Into<String>) -> Result<(), SendError> {
        let reply = Message::new(InputReply::new(value), self.client.session());
        self.client.send(Channel::Stdin, reply.to_wire()).await
    }

    /// The next message with its entry in the log.
    pub(super) async fn next_entry(&mut self) -> Option<Result<(Entry, Message), ExecutionError>> {
        std::future::poll_fn(|context| self.poll_entry(context)).await
    }

    fn poll_entry(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<(Entry, Message), ExecutionError>>> {
        loop {
            if self.tracker.has_ended() {
                return Poll::Ready(None);
            }
            if let Some(lookup) = &mut self.lookup {
                let record = ready!(lookup.poll_unpin(context));
                self.lookup = None;
                match record {
                    Ok(record) => self.skip_missing(record.as_ref()),
                    Err(error) => return Poll::Ready(Some(Err(ReadError::from(error).into()))),
                }
                continue;
            }
            if let Some(past) = &self.past
                && self.position >= past.last
            {
                let reason = past.reason.clone();
                let ended = match past.status {
                    ExecutionStatus::Died => Some(Err(ExecutionError::KernelEnded { reason })),
                    ExecutionStatus::Lost => Some(Err(ExecutionError::Lost)),
                    _ => None,
                };
                self.tracker.end();
                return Poll::Ready(ended);
            }
            if let Some(entry) = self.ready.pop_front() {
                if entry.origin() == Origin::Kernel
                    && let Some(loss) = self.tracker.loss_before(entry.channel())
                {
                    self.ready.push_front(entry);
                    return Poll::Ready(Some(Err(ExecutionError::Loss(loss))));
                }
                self.position = entry.seq();
                match self.on_entry(&entry) {
                    Some(Ok(message)) => return Poll::Ready(Some(Ok((entry, message)))),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => continue,
                }
            }
            match ready!(self.reading.poll_block(context)) {
                Ok(Some(block)) => self.ready.extend(block.entries()),
                Ok(None) => {
                    self.tracker.end();
                    return Poll::Ready(Some(Err(ExecutionError::KernelEnded { reason: None })));
                }
                Err(error) => {
                    if let ReadError::Gap { last, .. } = error {
                        self.position = self.position.max(last);
                        self.lookup = Some(self.record());
                    }
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }

    /// The execution's record in the index.
    pub(super) fn record(&self) -> BoxFuture<'static, Result<Option<ExecutionRecord>, StoreError>> {
        let (executions, id) = (self.client.kernel().executions(), self.msg_id().to_owned());
        async move { executions.get(&id).await }.boxed()
    }

    /// Applies what the record says about the missing entries up to the position.
    fn skip_missing(&mut self, record: Option<&ExecutionRecord>) {
        let Some(record) = record else {
            // A record is removed once its execution has ended and retention has dropped all its entries.
            self.past = Some(Past {
                last: self.position,
                status: ExecutionStatus::Lost,
                reason: None,
            });
            return;
        };
        let is_missing = |seq: Option<Seq>| seq.is_some_and(|seq| seq <= self.position);
        self.has_request |= record.request <= self.position;
        self.tracker.skip(is_missing(record.reply), is_missing(record.idle));
        if matches!(record.status, ExecutionStatus::Died | ExecutionStatus::Lost) {
            self.past = Past::of(record);
        }
    }

    fn on_entry(&mut self, entry: &Entry) -> Option<Result<Message, ExecutionError>> {
        match entry.origin() {
            Origin::Kernel => self.tracker.on_message(&entry.message()).map(Ok),
            Origin::Client => {
                self.has_request |= !self.has_request && self.is_request(&entry.message());
                None
            }
            Origin::Lifecycle if !self.has_request => None,
            Origin::Lifecycle => {
                let event = self.tracker.on_lifecycle(entry.lifecycle()?)?;
                Some(Err(event.into()))
            }
        }
    }

    fn is_request(&self, message: &WireMessage) -> bool {
        let id = self.msg_id();
        memmem::find(message.header(), id.as_bytes()).is_some()
            && message.header_ref().is_ok_and(|header| header.msg_id == id)
    }
}

impl Past {
    /// `None` if the execution has not ended.
    fn of(record: &ExecutionRecord) -> Option<Self> {
        record.status.has_ended().then(|| Self {
            last: record.last,
            status: record.status,
            reason: record.reason.clone(),
        })
    }
}

impl From<ExecutionEvent> for ExecutionError {
    fn from(event: ExecutionEvent) -> Self {
        match event {
            ExecutionEvent::Loss(event) => Self::Loss(event),
            ExecutionEvent::KernelEnded(reason) => Self::KernelEnded { reason: Some(reason) },
            _ => Self::Lost,
        }
    }
}

fn new_session() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl Reading {
    fn poll_block(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Block>, ReadError>> {
        if let Self::Ready(attachment) = self
            && let Some(block) = attachment.recent().transpose()
        {
            return Poll::Ready(block.map(Some));
        }
        let mut waiting = match std::mem::replace(self, Self::Ended) {
            Self::Ready(mut attachment) => async move {
                let block = attachment.next().await;
                (attachment, block)
            }
            .boxed(),
            Self::Waiting(waiting) => waiting,
            Self::Ended => return Poll::Ready(Ok(None)),
        };
        match waiting.poll_unpin(context) {
            Poll::Ready((_, Ok(None))) => Poll::Ready(Ok(None)),
            Poll::Ready((attachment, block)) => {
                *self = Self::Ready(attachment);
                Poll::Ready(block)
            }
            Poll::Pending => {
                *self = Self::Waiting(waiting);
                Poll::Pending
            }
        }
    }
}

impl Stream for Execution {
    type Item = Result<Message, ExecutionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.poll_entry(context));
        Poll::Ready(next.map(|next| next.map(|(_, message)| message)))
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if !self.interrupt_on_drop || self.tracker.has_ended() {
            return;
        }
        let kernel = self.client.kernel().clone();
        let Ok(runtime) = Handle::try_current() else {
            warn!(kernel_id = %kernel.id(), "the execution was dropped outside of a runtime, so its kernel is not interrupted");
            return;
        };
        // An interrupt has a deadline, so this task ends.
        runtime.spawn(async move {
            if let Err(error) = kernel.interrupt().await {
                warn!(kernel_id = %kernel.id(), %error, "the kernel of a dropped execution cannot be interrupted");
            }
        });
    }
}

impl std::fmt::Debug for Execution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Execution")
            .field("msg_id", &self.msg_id())
            .field("cursor", &self.cursor())
            .finish_non_exhaustive()
    }
}
