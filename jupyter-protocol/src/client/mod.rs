//! Client for a running kernel.
//!
//! ```no_run
//! use jupyter_protocol::client::{Client, ExecutionEvent};
//! use jupyter_protocol::content::{Content, ExecuteRequest};
//! use jupyter_protocol::ConnectionInfo;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(&ConnectionInfo::read("kernel.json")?).await?;
//! println!("{}", client.kernel_info().await?.banner);
//!
//! let mut execution = client.execute(ExecuteRequest::new("print('hello')")).await?;
//! while let Some(event) = execution.next().await {
//!     match event? {
//!         ExecutionEvent::Output(message) => {
//!             if let Content::Stream(stream) = message.content {
//!                 print!("{}", stream.text);
//!             }
//!         }
//!         ExecutionEvent::Input(_) => execution.answer("an answer").await?,
//!         ExecutionEvent::Reply(reply) => println!("{}", reply.status()),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A background task of the client reads the sockets, verifies signatures, rejects replays and routes messages to the
//! pending requests. The task ends when the last handle is dropped.
//!
//! Requests are cancel-safe: dropping one before its reply frees its state and affects no other request. The kernel
//! still handles it.

mod connect;
mod error;
mod execution;
mod execution_queue;
mod iopub;
mod options;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;

pub use error::ClientError;
pub use execution::{Execution, ExecutionEvent};
pub use iopub::Iopub;
pub use options::ClientOptions;

use self::execution_queue::ExecutionQueue;
use self::routes::Routes;
use crate::channel::Channel;
use crate::connection_file::ConnectionInfo;
use crate::content::{
    CommInfoReply, CommInfoRequest, CompleteReply, CompleteRequest, Content, CreateSubshellRequest, DebugReply,
    DebugRequest, DeleteSubshellRequest, ExecuteRequest, HistoryReply, HistoryRequest, InspectReply, InspectRequest,
    InterruptRequest, IsCompleteReply, IsCompleteRequest, KernelInfoReply, KernelInfoRequest, ListSubshellRequest,
    Request, ShutdownReply, ShutdownRequest, UsageReply, UsageRequest,
};
use crate::message::Message;
use crate::signing::Signer;
use crate::wire::WireMessage;
use crate::zmq::{self, DealerSender};

/// A connection to a running kernel. Cheap to clone: the clones share the connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    session: String,
    options: ClientOptions,
    signer: Signer,
    shell: Mutex<DealerSender>,
    /// `None` if the kernel has no control socket. Requests for control then go to shell.
    control: Option<Mutex<DealerSender>>,
    stdin: Option<Mutex<DealerSender>>,
    heartbeat: Option<String>,
    routes: Arc<Routes>,
    task: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
        self.routes.lose(&ClientError::Gone {
            reason: "the client was dropped".to_owned(),
        });
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.inner.session)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to a kernel and waits until the subscription to iopub is in effect, so that no output is missed.
    ///
    /// Kernels that implement JEP 65 confirm the subscription with `iopub_welcome`. Other kernels are sent
    /// `kernel_info_request`s until a message arrives on iopub.
    ///
    /// # Errors
    /// - [`ClientError::Connect`] if connecting to a socket fails.
    /// - [`ClientError::Deadline`] if no message arrives on iopub in time.
    /// - [`ClientError::Gone`] if the connection is lost before that.
    /// - [`ClientError::NoPort`] if the connection has no shell or iopub port.
    /// - [`ClientError::Encrypted`] if the connection requires CurveZMQ.
    /// - [`ClientError::Signing`] if the connection's signature scheme is not supported.
    pub async fn connect(info: &ConnectionInfo) -> Result<Self, ClientError> {
        Self::connect_with(info, ClientOptions::default()).await
    }

    /// Returns the session id that identifies this client to the kernel.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.inner.session
    }

    /// Creates a message of this client's session, for [`send`](Self::send) and
    /// [`request_message`](Self::request_message).
    pub fn message(&self, content: impl Into<Content>) -> Message {
        self.inner.message(content)
    }

    /// Runs code and returns the stream of its events. The execution has no deadline.
    ///
    /// # Errors
    /// [`ClientError::Gone`] if the connection is lost.
    pub async fn execute(&self, request: ExecuteRequest) -> Result<Execution, ClientError> {
        self.execute_message(&self.message(request)).await
    }

    /// Runs code like [`execute`](Self::execute), from a message that may name a subshell or carry metadata.
    ///
    /// # Errors
    /// [`ClientError::Gone`] if the connection is lost.
    pub async fn execute_message(&self, request: &Message) -> Result<Execution, ClientError> {
        let options = &self.inner.options;
        let queue = Arc::new(ExecutionQueue::new(options.queue, options.queue_bytes));
        let route = self.inner.routes.execution(&request.header.msg_id, queue.clone())?;
        let execution = Execution::new(self.inner.clone(), queue, route);
        self.inner.send(Channel::Shell, request).await?;
        Ok(execution)
    }

    /// Sends a request and waits for its reply, up to [`ClientOptions::request_deadline`].
    ///
    /// The methods for particular requests, such as [`complete`](Self::complete), are shorter to use: they convert
    /// replies without a result into errors.
    ///
    /// # Errors
    /// - [`ClientError::Deadline`] if no reply arrives in time.
    /// - [`ClientError::Gone`] if the connection is lost.
    /// - [`ClientError::BadReply`] if the reply is not a valid reply to the request.
    pub async fn request<R: Request>(&self, request: R) -> Result<R::Reply, ClientError> {
        self.request_within(request, self.inner.options.request_deadline).await
    }

    /// Sends a request and waits for its reply, up to `deadline`.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn request_within<R: Request>(&self, request: R, deadline: Duration) -> Result<R::Reply, ClientError> {
        let message = self.message(request);
        let msg_type = message.header.msg_type.clone();
        let reply = self.inner.request(R::CHANNEL, &message, deadline).await?;
        parse_reply(&reply, &msg_type)
    }

    /// Sends any message on shell or control and waits for its reply, up to [`ClientOptions::request_deadline`].
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn request_message(&self, channel: Channel, message: &Message) -> Result<Message, ClientError> {
        let reply = self
            .inner
            .request(channel, message, self.inner.options.request_deadline)
            .await?;
        Message::from_wire(&reply)
            .map_err(|error| bad_reply(&message.header.msg_type, String::new(), error.to_string()))
    }

    /// Sends a message that has no reply, such as a comm message.
    ///
    /// # Errors
    /// - [`ClientError::Gone`] if the connection is lost.
    /// - [`ClientError::NoPort`] if the client has no socket for the channel, or the channel is iopub or heartbeat.
    pub async fn send(&self, channel: Channel, message: &Message) -> Result<(), ClientError> {
        self.inner.send(channel, message).await
    }

    /// Requests information about the kernel.
    ///
    /// # Errors
    /// As [`request`](Self::request), and [`ClientError::NoResult`] if the kernel replies with an error.
    pub async fn kernel_info(&self) -> Result<KernelInfoReply, ClientError> {
        Ok(self.request(KernelInfoRequest::default()).await?.into_result()?)
    }

    /// Requests completions of code at a cursor position.
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn complete(&self, request: CompleteRequest) -> Result<CompleteReply, ClientError> {
        Ok(self.request(request).await?.into_result()?)
    }

    /// Requests documentation of the name at a cursor position.
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn inspect(&self, request: InspectRequest) -> Result<InspectReply, ClientError> {
        Ok(self.request(request).await?.into_result()?)
    }

    /// Requests the execution history.
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn history(&self, request: HistoryRequest) -> Result<HistoryReply, ClientError> {
        Ok(self.request(request).await?.into_result()?)
    }

    /// Asks whether code is complete and can be run.
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn is_complete(&self, request: IsCompleteRequest) -> Result<IsCompleteReply, ClientError> {
        Ok(self.request(request).await?.into_result()?)
    }

    /// Requests the open comms of one target, or all open comms.
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn comm_info(&self, request: CommInfoRequest) -> Result<CommInfoReply, ClientError> {
        Ok(self.request(request).await?.into_result()?)
    }

    /// Interrupts running code with an `interrupt_request`.
    ///
    /// A kernel whose kernelspec has `interrupt_mode: signal` may not support the message. Send SIGINT to its process
    /// instead.
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn interrupt(&self) -> Result<(), ClientError> {
        self.request(InterruptRequest::default()).await?.into_result()?;
        Ok(())
    }

    /// Shuts the kernel down. `restart` is whether the kernel will be restarted.
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info). Also returns [`ClientError::Gone`] if the kernel exits without a reply.
    pub async fn shutdown(&self, restart: bool) -> Result<ShutdownReply, ClientError> {
        Ok(self.request(ShutdownRequest::new(restart)).await?.into_result()?)
    }

    /// Sends a request of the Debug Adapter Protocol. The reply contains its success or failure.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn debug(&self, request: DebugRequest) -> Result<DebugReply, ClientError> {
        self.request(request).await
    }

    /// Creates a subshell (JEP 91) and returns its id, for [`Message::on_subshell`].
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn create_subshell(&self) -> Result<String, ClientError> {
        let reply = self.request(CreateSubshellRequest::default()).await?;
        Ok(reply.into_result()?.subshell_id)
    }

    /// Deletes a subshell (JEP 91).
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn delete_subshell(&self, subshell_id: impl Into<String>) -> Result<(), ClientError> {
        let request = DeleteSubshellRequest {
            subshell_id: subshell_id.into(),
            ..DeleteSubshellRequest::default()
        };
        self.request(request).await?.into_result()?;
        Ok(())
    }

    /// Requests the ids of the kernel's subshells (JEP 91).
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn list_subshells(&self) -> Result<Vec<String>, ClientError> {
        let reply = self.request(ListSubshellRequest::default()).await?;
        Ok(reply.into_result()?.subshell_id)
    }

    /// Requests the memory and CPU usage of the kernel.
    ///
    /// # Errors
    /// As [`kernel_info`](Self::kernel_info).
    pub async fn usage(&self) -> Result<UsageReply, ClientError> {
        Ok(self.request(UsageRequest::default()).await?.into_result()?)
    }

    /// Returns a receiver of all messages that the kernel publishes from now on, including those for requests of other
    /// clients.
    #[must_use]
    pub fn iopub(&self) -> Iopub {
        Iopub::new(self.inner.routes.clone())
    }

    /// Pings the kernel's heartbeat socket and returns the round-trip time.
    ///
    /// Most kernels answer while code runs; those with a single thread do not.
    ///
    /// # Errors
    /// - [`ClientError::Deadline`] if no echo arrives before `deadline`, or the connection breaks.
    /// - [`ClientError::Connect`] if connecting fails or the kernel sends something other than the echo.
    /// - [`ClientError::NoPort`] if the connection has no heartbeat port.
    pub async fn heartbeat(&self, deadline: Duration) -> Result<Duration, ClientError> {
        let address = self.inner.heartbeat.as_deref();
        let address = address.ok_or(ClientError::NoPort(Channel::Heartbeat))?;
        zmq::heartbeat(address, deadline).await.map_err(|error| match error {
            zmq::SocketError::Broken(_) => ClientError::Deadline {
                what: "heartbeat".to_owned(),
                after: deadline,
            },
            other => ClientError::Connect {
                channel: Channel::Heartbeat,
                reason: other.to_string(),
            },
        })
    }

    /// Returns why the connection is lost, or `None` while it is not.
    #[must_use]
    pub fn lost(&self) -> Option<ClientError> {
        self.inner.routes.lost()
    }
}

impl Inner {
    fn message(&self, content: impl Into<Content>) -> Message {
        let mut message = Message::new(content, &self.session);
        if let Some(username) = &self.options.username {
            message.header.username.clone_from(username);
        }
        message
    }

    async fn send(&self, channel: Channel, message: &Message) -> Result<(), ClientError> {
        let sender = match channel {
            Channel::Shell => &self.shell,
            Channel::Control => self.control.as_ref().unwrap_or(&self.shell),
            Channel::Stdin => self.stdin.as_ref().ok_or(ClientError::NoPort(channel))?,
            Channel::Iopub | Channel::Heartbeat => return Err(ClientError::NoPort(channel)),
        };
        let wire = message.to_wire().signed(&self.signer);
        let sent = sender.lock().await.send(wire).await;
        sent.map_err(|error| self.routes.lost().unwrap_or_else(|| ClientError::gone(&error)))
    }

    async fn request(&self, channel: Channel, message: &Message, after: Duration) -> Result<WireMessage, ClientError> {
        let (_route, reply) = self.routes.reply_to(&message.header.msg_id)?;
        let answered = timeout(after, async {
            self.send(channel, message).await?;
            reply.await.map_err(|_| {
                self.routes.lost().unwrap_or_else(|| ClientError::Gone {
                    reason: "the client was dropped".to_owned(),
                })
            })
        });
        answered.await.unwrap_or_else(|_| {
            Err(ClientError::Deadline {
                what: message.header.msg_type.replace("_request", "_reply"),
                after,
            })
        })
    }
}

/// Parses a reply to a request of this type.
fn parse_reply<R: TryFrom<Content, Error = Box<Content>>>(
    reply: &WireMessage,
    request: &str,
) -> Result<R, ClientError> {
    let message = Message::from_wire(reply).map_err(|error| bad_reply(request, String::new(), error.to_string()))?;
    R::try_from(message.content).map_err(|content| {
        let problem = match &*content {
            Content::Invalid(invalid) => invalid.problem.clone(),
            _ => "the message type does not belong to the request".to_owned(),
        };
        bad_reply(request, content.msg_type().to_owned(), problem)
    })
}

fn bad_reply(request: &str, msg_type: String, problem: String) -> ClientError {
    ClientError::BadReply {
        expected: request.to_owned(),
        msg_type,
        problem,
    }
}
