//! A client of the resume protocol: it follows a kernel through a gateway, connects again by itself, and hands on every
//! entry of the kernel's log exactly once and in order.
//!
//! ```no_run
//! use jupyter_protocol::KernelId;
//! use kernel_log::Cursor;
//! use gateway_client::resume::Start;
//! use gateway_client::resume::client::{Event, Options, ResumeClient};
//!
//! # fn load() -> Option<Cursor> { None }
//! # fn save(_: Option<Cursor>) {}
//! # async fn run(kernel: KernelId) -> Result<(), Box<dyn std::error::Error>> {
//! let start = load().map_or(Start::Earliest, Start::After);
//! let options = Options::new("http://127.0.0.1:8888", kernel).with_token("secret").with_start(start);
//! let mut client = ResumeClient::connect(options).await?;
//! while let Some(event) = client.next().await? {
//!     match event {
//!         Event::Entry(entry) => println!("{} {}", entry.seq, entry.message.header_ref()?.msg_type),
//!         Event::Gap { first, last } => println!("{first} to {last} are missing"),
//!         Event::NotRecovered(_) => println!("what was read before is of no use: from the beginning"),
//!         _ => {}
//!     }
//!     // Another process goes on from here.
//!     save(client.cursor());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! The client has no task and no queue of entries. [`next`](ResumeClient::next) reads the socket, and only as far as the
//! next frame; it also writes what was [sent](ResumeClient::send), answers Pings and connects again. So a program that
//! reads slowly holds up nobody, and what it has not read lies in the gateway's log. A program that does not read for
//! longer than the gateway waits for a Pong (90 s) loses the connection; the next `next` connects again and goes on with
//! the next entry, as after any disconnect.
//!
//! A connection on which an entry is not the next one, or anything else is not as it must be, is given up, and a new one
//! begins after the last entry that was handed on. Where that happens five times and nothing else came meanwhile, the
//! client gives up with [`Error::Broken`]. What else ends it for good: [`Error`]; what does not: [`Lost`].
//!
//! # TLS
//!
//! With the feature `tls` the address may begin with `https://` or `wss://`. The gateway's certificate must
//! be for the address's host, a name or an IP address, and of an issuer that the operating system trusts, or that
//! `Options::tls` names; that also holds a certificate of the client's own. A certificate that does not hold is
//! `Lost::Tls` with what is wrong with it, and the client tries again, as after any failure that somebody else may put
//! right; [`connect`](ResumeClient::connect) tries once. Without the feature, [`Options::dial`] can do TLS.
//!
//! `docs/resume-protocol.md` has the protocol.

mod address;
mod backoff;
mod connection;
mod error;
mod event;
mod execution;
mod options;
mod outbox;
#[cfg(feature = "tls")]
mod tls;
mod watchdog;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Cursor, Seq};
use tokio::time::{Sleep, sleep};

pub use error::{Error, ExecutionError, Lost, SendError};
pub use event::{Entry, Event};
pub use execution::Execution;
pub use options::{Dial, Options, Transport};
#[cfg(feature = "tls")]
pub use tokio_rustls::rustls;

use super::{Hello, Notice, Start, decode_entry};
use address::Address;
use backoff::Backoff;
use connection::{Connection, Received, violation};
use error::Failure;
use outbox::Outbox;

/// How often in a row the gateway may break the protocol.
const MAX_VIOLATIONS: u32 = 5;

/// Follows a kernel's log through a gateway: see the [module](self).
pub struct ResumeClient {
    options: Arc<Options>,
    address: Arc<Address>,
    state: State,
    /// Where to read on. `None` until the first `hello`.
    cursor: Option<Cursor>,
    /// The last entry that there is at least, as the last `hello` said.
    head: Seq,
    outbox: Outbox,
    backoff: Backoff,
    violations: u32,
    /// What [`connect`](Self::connect) read, and where the client was before it.
    first: Option<(Event, Option<Cursor>)>,
}

enum State {
    Unconnected,
    Pausing(Pin<Box<Sleep>>),
    Connecting(BoxFuture<'static, Result<(Connection, Hello), Failure>>),
    Connected(Box<Connection>),
    /// All of the log was read, and the kernel is gone.
    Ended,
    Failed(Error),
}

impl ResumeClient {
    /// A client that connects when it is first asked for the [`next`](Self::next) event, and tries until it succeeds.
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidToken`] where the options cannot be used; with the feature
    /// `resume-client-tls` also `Error::Tls`, where the system has no certificates that it trusts.
    pub fn new(options: Options) -> Result<Self, Error> {
        Ok(Self {
            address: Arc::new(Address::new(&options)?),
            state: State::Unconnected,
            cursor: match options.start {
                Start::After(cursor) => Some(cursor),
                Start::Earliest | Start::Head => None,
            },
            head: Seq::START,
            outbox: Outbox::new(options.max_unconfirmed),
            backoff: Backoff::new(&options),
            violations: 0,
            first: None,
            options: Arc::new(options),
        })
    }

    /// A client that is connected. Once it is there, no entry that is appended later is missed, also where it begins at
    /// the head.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); each that a connection can end with; [`Error::Unreachable`] where the first attempt
    /// fails, so that a wrong address is not tried forever.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let mut client = Self::new(options)?;
        let before = client.cursor;
        match client.next().await? {
            Some(Event::Disconnected { reason, .. }) => Err(Error::Unreachable(reason)),
            event => {
                client.first = event.map(|event| (event, before));
                Ok(client)
            }
        }
    }

    /// What comes next: every entry once, in order, and what the connection makes known. `None` once the kernel is gone
    /// and all entries were read.
    ///
    /// Cancel-safe: what was not returned comes the next time. Also writes what was [sent](Self::send): a program that
    /// sends must read on.
    ///
    /// # Errors
    /// [`Error`] where the client gives up; the same each time from then on.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Where to read on: after the last entry, or gap, that [`next`](Self::next) returned. A client with
    /// [`Start::After`] this goes on there, in this process or another one. `None` until it is connected, unless it began
    /// after a cursor.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        match self.first {
            Some((Event::NotRecovered(_), before)) => before,
            _ => self.cursor,
        }
    }

    /// The client's session.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.options.session
    }

    /// Sends a message on shell, control or stdin, as soon as and while [`next`](Self::next) is awaited; nothing is sent
    /// before the first `hello`.
    ///
    /// It is kept, and sent again over each new connection, until it is seen in the log, or an answer to it is. The
    /// gateway knows it by its `msg_id` and hands it to the kernel once. At most
    /// [`Options::max_unconfirmed`] are kept; where that is too few, read on.
    ///
    /// # Errors
    /// [`SendError`], and nothing was done.
    pub fn send(&mut self, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        if matches!(self.state, State::Ended | State::Failed(_)) {
            return Err(SendError::Ended);
        }
        self.outbox.push(channel, message)
    }

    /// The `msg_id`s of the messages that were sent and not seen in the log yet, in the order in which they were sent.
    /// Those that are left at the end may or may not have reached the kernel.
    pub fn unconfirmed(&self) -> impl ExactSizeIterator<Item = &str> {
        self.outbox.ids()
    }

    /// Does not send the message again, and no more waits to see it in the log; whether it was there. For one that was in
    /// flight at a [`Gap`](Event::Gap) or where the client was [not recovered](Event::NotRecovered): it may be among the
    /// entries that are gone, and so never be seen.
    pub fn forget(&mut self, msg_id: &str) -> bool {
        self.outbox.forget(msg_id)
    }

    /// Runs code, and follows it to its end.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn execute(&mut self, request: ExecuteRequest) -> Result<Execution<'_>, SendError> {
        Execution::start(self, request)
    }

    /// Drops the connection, or the attempt to make one; the [`next`](Self::next) one is made at once. For a program
    /// that knows that the network has changed, or that the machine slept.
    pub fn disconnect(&mut self) {
        if !matches!(self.state, State::Ended | State::Failed(_)) {
            self.backoff.reset();
            self.state = State::Unconnected;
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, Error>> {
        if let Some((event, _)) = self.first.take() {
            return Poll::Ready(Ok(Some(event)));
        }
        loop {
            let step = match &mut self.state {
                State::Unconnected => {
                    let start = self.cursor.map_or(self.options.start, Start::After);
                    let opening = Connection::open(self.options.clone(), self.address.clone(), start);
                    self.state = State::Connecting(opening.boxed());
                    continue;
                }
                State::Pausing(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    self.state = State::Unconnected;
                    continue;
                }
                State::Connecting(opening) => ready!(opening.as_mut().poll(cx))
                    .and_then(|(connection, hello)| self.begin(connection, hello).map(Some)),
                State::Connected(connection) => {
                    let received = ready!(connection.poll(cx, &mut self.outbox));
                    received.and_then(|received| self.take(received))
                }
                State::Ended => return Poll::Ready(Ok(None)),
                State::Failed(error) => return Poll::Ready(Err(error.clone())),
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

    /// Takes the connection, if the gateway begins where it says it does.
    fn begin(&mut self, connection: Connection, hello: Hello) -> Result<Event, Failure> {
        let first = Seq(hello.earliest.0.saturating_sub(1));
        if hello.from < first || hello.from > hello.head {
            return Err(violation("its hello begins where it has no entries"));
        }
        let from = Cursor {
            epoch: hello.epoch,
            seq: hello.from,
        };
        if hello.recovered && self.cursor.is_some_and(|cursor| cursor != from) {
            return Err(violation("its hello begins elsewhere than at the cursor"));
        }
        self.cursor = Some(from);
        self.head = hello.head;
        self.outbox.reconnected();
        self.state = State::Connected(Box::new(connection));
        Ok(if hello.recovered {
            Event::Connected(hello)
        } else {
            Event::NotRecovered(hello)
        })
    }

    fn take(&mut self, received: Received) -> Result<Option<Event>, Failure> {
        // There is one from the `hello` on.
        let Some(cursor) = &mut self.cursor else {
            return Err(violation("an entry came before the hello"));
        };
        let event = match received {
            Received::Entry(frame) => {
                let decoded = decode_entry(&frame);
                let (seq, channel, message) =
                    decoded.map_err(|error| violation(&format!("a frame is no entry: {error}")))?;
                if seq.0 == 0 || seq != cursor.seq.next() {
                    return Err(violation(&format!("entry {seq} came after {}", cursor.seq)));
                }
                cursor.seq = seq;
                self.outbox.confirm(channel, &message);
                Some(Event::Entry(Entry { seq, channel, message }))
            }
            Received::Notice(Notice::Gap { first, last }) => {
                if first != cursor.seq.next() || last < first {
                    return Err(violation(&format!(
                        "a gap of {first} to {last} came after {}",
                        cursor.seq
                    )));
                }
                cursor.seq = last;
                Some(Event::Gap { first, last })
            }
            Received::Notice(Notice::End {}) if cursor.seq < self.head => {
                return Err(violation(&format!(
                    "the end came after {} of {}",
                    cursor.seq, self.head
                )));
            }
            Received::Notice(Notice::End {}) => {
                self.state = State::Ended;
                None
            }
            Received::Notice(Notice::Hello(_)) => return Err(violation("a second hello came")),
            Received::Notice(_) => None,
        };
        self.backoff.reset();
        self.violations = 0;
        Ok(event)
    }

    /// What is to be told of it, if the client does not give up.
    fn failed(&mut self, failure: Failure) -> Option<Event> {
        let reason = match failure {
            Failure::Retry(reason) => reason,
            Failure::Final(error) => {
                self.state = State::Failed(error);
                return None;
            }
        };
        if let Lost::Violation(what) = &reason {
            self.violations += 1;
            if self.violations >= MAX_VIOLATIONS {
                self.state = State::Failed(Error::Broken { what: what.clone() });
                return None;
            }
        }
        let retry_in = self.backoff.pause();
        self.state = State::Pausing(Box::pin(sleep(retry_in)));
        Some(Event::Disconnected { reason, retry_in })
    }
}

/// As [`next`](ResumeClient::next); ends after an error.
impl Stream for ResumeClient {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.poll_event(cx));
        if event.is_err() {
            self.state = State::Ended;
        }
        Poll::Ready(event.transpose())
    }
}
