//! A client of the resume protocol. It follows a kernel through a gateway, reconnects by itself, and returns every
//! entry of the kernel's log exactly once and in order.
//!
//! ```no_run
//! use jupyter_protocol::KernelId;
//! use kernel_log::Cursor;
//! use gateway_client::resume::Start;
//! use gateway_client::resume::client::{Event, ResumeOptions, ResumeClient};
//!
//! # fn load() -> Option<Cursor> { None }
//! # fn save(_: Option<Cursor>) {}
//! # async fn run(kernel: KernelId) -> Result<(), Box<dyn std::error::Error>> {
//! let start = load().map_or(Start::Earliest, Start::After);
//! let options = ResumeOptions::new("http://127.0.0.1:8888", kernel).with_token("secret").with_start(start);
//! let mut client = ResumeClient::connect(options).await?;
//! while let Some(event) = client.next().await? {
//!     match event {
//!         Event::Entry(entry) => println!("{} {}", entry.seq, entry.message.header_ref()?.msg_type),
//!         Event::Gap { first, last } => println!("{first} to {last} are missing"),
//!         Event::NotRecovered(_) => println!("earlier entries are obsolete: starting over"),
//!         _ => {}
//!     }
//!     // Another process can resume from here.
//!     save(client.cursor());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! The client has no task and no queue of entries. [`next`](ResumeClient::next) reads the socket, and only as far as
//! the next frame; it also writes [sent](ResumeClient::send) messages, answers Pings and reconnects. So a program that
//! reads slowly delays no other client, and unread entries stay in the gateway's log. If a program does not read for
//! longer than the gateway waits for a Pong (90 s), the connection is lost. The next call of `next` reconnects and
//! resumes with the next entry, as after any disconnect.
//!
//! If the gateway violates the protocol, for example with an entry that is not the next one, the client drops the
//! connection and resumes after the last entry that it returned. After five violations with only a `hello` in between,
//! it fails with [`ResumeError::Broken`]. [`ResumeError`] lists the other permanent failures; after a
//! [`ConnectionLost`], the client reconnects.
//!
//! # TLS
//!
//! With the feature `tls`, the address may begin with `https://` or `wss://`. The gateway's certificate must be valid
//! for the address's host, a name or an IP address, and issued by a CA that the operating system or
//! `ResumeOptions::tls` trusts. `ResumeOptions::tls` may also contain a client certificate. An invalid certificate
//! causes a `ConnectionLost::Tls` that names the problem, and the client retries, because an administrator may fix it;
//! [`connect`](ResumeClient::connect) tries only once. Without the feature, [`ResumeOptions::dial`] can do TLS.
//!
//! `docs/src/resume-protocol.md` specifies the protocol.

mod address;
mod connection;
mod error;
mod event;
mod execution;
mod options;
mod outbox;
mod watchdog;

use std::fmt;
use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::{Backoff, Channel, WireMessage};
use kernel_log::{Cursor, Seq};
use tokio::time::{Sleep, sleep};

pub use error::{ConnectionLost, ExecutionError, ResumeError, SendError};
pub use event::{Entry, Event};
pub use execution::Execution;
pub use options::ResumeOptions;

pub use crate::connector::{Dial, Transport};
#[cfg(feature = "tls")]
pub use crate::rustls;

use super::{Hello, Notice, Start, decode_entry};
use address::Address;
use connection::{Connection, Received, violation};
use error::Failure;
use outbox::Outbox;

/// Protocol violations in a row after which the client fails.
const MAX_VIOLATIONS: u32 = 5;

/// Follows a kernel's log through a gateway: see the [module](self).
pub struct ResumeClient {
    options: Arc<ResumeOptions>,
    address: Arc<Address>,
    state: ConnectionState,
    /// Position in the log. `None` until the first `hello`, unless the client starts after a cursor.
    cursor: Option<Cursor>,
    /// The log's last entry according to the latest `hello`.
    head: Seq,
    outbox: Outbox,
    backoff: Backoff,
    violations: u32,
    /// The event that [`connect`](Self::connect) read, and the cursor before it.
    first: Option<(Event, Option<Cursor>)>,
}

impl fmt::Debug for ResumeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumeClient")
            .field("kernel", &self.options.kernel)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

enum ConnectionState {
    Unconnected,
    Pausing(Pin<Box<Sleep>>),
    Connecting(BoxFuture<'static, Result<(Connection, Hello), Failure>>),
    Connected(Box<Connection>),
    /// The kernel has ended, and all of its log was read.
    Ended,
    Failed(ResumeError),
}

/// Returns the pauses between connection attempts. They differ between sessions, so that the clients of a gateway do
/// not all reconnect at once.
fn backoff(options: &ResumeOptions) -> Backoff {
    let mut seed = DefaultHasher::new();
    (options.kernel, &options.session).hash(&mut seed);
    Backoff::new(options.first_pause, options.longest_pause).with_jitter(seed.finish())
}

impl ResumeClient {
    /// Creates a client that connects on the first call of [`next`](Self::next) and retries until it succeeds.
    ///
    /// # Errors
    /// [`ResumeError::InvalidUrl`] or [`ResumeError::InvalidToken`] for invalid options; with the feature `tls` also
    /// `ResumeError::Tls` if the system has no trusted certificates.
    pub fn new(options: ResumeOptions) -> Result<Self, ResumeError> {
        Ok(Self {
            address: Arc::new(Address::new(&options)?),
            state: ConnectionState::Unconnected,
            cursor: match options.start {
                Start::After(cursor) => Some(cursor),
                Start::Earliest | Start::Head => None,
            },
            head: Seq::START,
            outbox: Outbox::new(options.max_unconfirmed),
            backoff: backoff(&options),
            violations: 0,
            first: None,
            options: Arc::new(options),
        })
    }

    /// Creates a client and connects it. The client receives every entry that is appended after this returns, even if
    /// it starts at the head.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); any permanent [`ResumeError`]; [`ResumeError::Unreachable`] if the first attempt
    /// fails, so that a wrong address is not retried forever.
    pub async fn connect(options: ResumeOptions) -> Result<Self, ResumeError> {
        let mut client = Self::new(options)?;
        let before = client.cursor;
        match client.next().await? {
            Some(Event::Disconnected { reason, .. }) => Err(ResumeError::Unreachable(reason)),
            event => {
                client.first = event.map(|event| (event, before));
                Ok(client)
            }
        }
    }

    /// Returns the next event: every entry once and in order, and changes of the connection. `None` once the kernel has
    /// ended and all entries were read.
    ///
    /// Cancel-safe: cancelling a call loses no event. Sent messages are written only during this call, so a program
    /// that [sends](Self::send) must keep reading.
    ///
    /// # Errors
    /// [`ResumeError`] if the client has failed permanently. Later calls return the same error.
    pub async fn next(&mut self) -> Result<Option<Event>, ResumeError> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Returns the position after the last entry or gap that [`next`](Self::next) returned. A client with this cursor
    /// as [`Start::After`] resumes there, in this process or another one. Returns `None` until the client is connected,
    /// unless it started after a cursor.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        match self.first {
            Some((Event::NotRecovered(_), before)) => before,
            _ => self.cursor,
        }
    }

    /// Returns the client's session id.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.options.session
    }

    /// Queues a message for shell, control or stdin. [`next`](Self::next) writes the message once the gateway has sent
    /// its `hello`.
    ///
    /// The client keeps the message and sends it again over each new connection, until the message or an answer to it
    /// appears in the log. The gateway recognizes repetitions by the `msg_id` and sends the message to the kernel once.
    /// The client keeps at most [`ResumeOptions::max_unconfirmed`] messages; reading confirms them.
    ///
    /// # Errors
    /// [`SendError`], without any effect.
    pub fn send(&mut self, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        if matches!(self.state, ConnectionState::Ended | ConnectionState::Failed(_)) {
            return Err(SendError::Ended);
        }
        self.outbox.push(channel, message)
    }

    /// Returns the `msg_id`s of messages that were sent and have not appeared in the log yet, in the order of sending.
    /// Messages that remain when the client ends may or may not have reached the kernel.
    pub fn unconfirmed(&self) -> impl ExactSizeIterator<Item = &str> {
        self.outbox.ids()
    }

    /// Stops resending a message and expecting it in the log, and returns whether the message was unconfirmed. Use this
    /// for messages that were in flight at a [`Gap`](Event::Gap) or when the client was
    /// [not recovered](Event::NotRecovered), because their entries may be among the missing ones.
    pub fn forget(&mut self, msg_id: &str) -> bool {
        self.outbox.forget(msg_id)
    }

    /// Executes code and follows the execution to its end.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn execute(&mut self, request: ExecuteRequest) -> Result<Execution<'_>, SendError> {
        Execution::start(self, request)
    }

    /// Drops the connection or the current attempt; [`next`](Self::next) reconnects without a pause. Call this when the
    /// network has changed or the machine was suspended.
    pub fn disconnect(&mut self) {
        if !matches!(self.state, ConnectionState::Ended | ConnectionState::Failed(_)) {
            self.backoff.reset();
            self.state = ConnectionState::Unconnected;
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, ResumeError>> {
        if let Some((event, _)) = self.first.take() {
            return Poll::Ready(Ok(Some(event)));
        }
        loop {
            let step = match &mut self.state {
                ConnectionState::Unconnected => {
                    let start = self.cursor.map_or(self.options.start, Start::After);
                    let opening = Connection::open(self.options.clone(), self.address.clone(), start);
                    self.state = ConnectionState::Connecting(opening.boxed());
                    continue;
                }
                ConnectionState::Pausing(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    self.state = ConnectionState::Unconnected;
                    continue;
                }
                ConnectionState::Connecting(opening) => ready!(opening.as_mut().poll(cx))
                    .and_then(|(connection, hello)| self.begin(connection, hello).map(Some)),
                ConnectionState::Connected(connection) => {
                    let received = ready!(connection.poll(cx, &mut self.outbox));
                    received.and_then(|received| self.on_received(received))
                }
                ConnectionState::Ended => return Poll::Ready(Ok(None)),
                ConnectionState::Failed(error) => return Poll::Ready(Err(error.clone())),
            };
            match step {
                Ok(None) => {}
                Ok(event) => return Poll::Ready(Ok(event)),
                Err(failure) => {
                    if let Some(event) = self.failed(failure) {
                        return Poll::Ready(Ok(Some(event)));
                    }
                }
            }
        }
    }

    /// Accepts the connection if its `hello` is valid.
    fn begin(&mut self, connection: Connection, hello: Hello) -> Result<Event, Failure> {
        let first = Seq(hello.earliest.0.saturating_sub(1));
        if hello.from < first || hello.from > hello.head {
            return Err(violation("the hello begins outside the log"));
        }
        let from = Cursor {
            epoch: hello.epoch,
            seq: hello.from,
        };
        if hello.recovered && self.cursor.is_some_and(|cursor| cursor != from) {
            return Err(violation("the hello does not begin at the cursor"));
        }
        self.cursor = Some(from);
        self.head = hello.head;
        self.outbox.reconnected();
        self.state = ConnectionState::Connected(Box::new(connection));
        Ok(if hello.recovered {
            Event::Connected(hello)
        } else {
            Event::NotRecovered(hello)
        })
    }

    /// Applies a frame and returns its event, if it has one.
    fn on_received(&mut self, received: Received) -> Result<Option<Event>, Failure> {
        // The `hello` has set the cursor.
        let Some(cursor) = &mut self.cursor else {
            return Err(violation("an entry came before the hello"));
        };
        let event = match received {
            Received::Entry(frame) => {
                let decoded = decode_entry(&frame);
                let (seq, channel, message) =
                    decoded.map_err(|error| violation(&format!("a frame is not an entry: {error}")))?;
                if seq.0 == 0 || seq != cursor.seq.next() {
                    return Err(violation(&format!("entry {seq} came after entry {}", cursor.seq)));
                }
                cursor.seq = seq;
                self.outbox.confirm(channel, &message);
                Some(Event::Entry(Entry { seq, channel, message }))
            }
            Received::Notice(Notice::Gap { first, last }) => {
                if first != cursor.seq.next() || last < first {
                    return Err(violation(&format!(
                        "a gap from {first} to {last} came after entry {}",
                        cursor.seq
                    )));
                }
                cursor.seq = last;
                Some(Event::Gap { first, last })
            }
            Received::Notice(Notice::End {}) if cursor.seq < self.head => {
                return Err(violation(&format!(
                    "the end came after entry {} of {}",
                    cursor.seq, self.head
                )));
            }
            Received::Notice(Notice::End {}) => {
                self.state = ConnectionState::Ended;
                None
            }
            Received::Notice(Notice::Hello(_)) => return Err(violation("a second hello came")),
            Received::Notice(_) => None,
        };
        self.backoff.reset();
        self.violations = 0;
        Ok(event)
    }

    /// Handles a failed connection. Returns the event to report, or `None` if the client has failed permanently.
    fn failed(&mut self, failure: Failure) -> Option<Event> {
        let reason = match failure {
            Failure::Retry(reason) => reason,
            Failure::Final(error) => {
                self.state = ConnectionState::Failed(error);
                return None;
            }
        };
        if let ConnectionLost::Violation(what) = &reason {
            self.violations += 1;
            if self.violations >= MAX_VIOLATIONS {
                self.state = ConnectionState::Failed(ResumeError::Broken { what: what.clone() });
                return None;
            }
        }
        let retry_in = self.backoff.next_pause();
        self.state = ConnectionState::Pausing(Box::pin(sleep(retry_in)));
        Some(Event::Disconnected { reason, retry_in })
    }
}

/// Yields the results of [`next`](ResumeClient::next), and ends after an error.
impl Stream for ResumeClient {
    type Item = Result<Event, ResumeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.poll_event(cx));
        if event.is_err() {
            self.state = ConnectionState::Ended;
        }
        Poll::Ready(event.transpose())
    }
}
