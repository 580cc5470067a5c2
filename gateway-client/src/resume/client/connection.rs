use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::{Sink, Stream, StreamExt};
use jupyter_protocol::codec::websocket_v1;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::error::{Error as WebSocketError, ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::address::Address;
use super::error::{ConnectionLost, Failure, ResumeError};
use super::options::ResumeOptions;
use super::outbox::Outbox;
use super::watchdog::{Silence, WatchedStream};
use crate::connector::Transport;
use crate::resume::{CLOSE_REPLACED, Hello, Notice, Start};

/// A WebSocket after the gateway's `hello`.
pub(super) struct Connection {
    socket: WebSocketStream<WatchedStream<Box<dyn Transport>>>,
    max_message_bytes: usize,
    /// Whether written messages may still be in the socket's buffer.
    unflushed: bool,
    /// Whether writing failed. Reading continues until the connection ends, because the gateway may still send the
    /// reason.
    write_failed: bool,
}

/// An entry or a notice, such as the `hello`, from the gateway.
pub(super) enum Received {
    Entry(Bytes),
    Notice(Notice),
}

impl Connection {
    /// Connects and waits for the `hello`.
    pub(super) async fn open(
        options: Arc<ResumeOptions>,
        address: Arc<Address>,
        start: Start,
    ) -> Result<(Self, Hello), Failure> {
        let limit = options.connect_timeout;
        timeout(limit, Self::handshake(&options, &address, start))
            .await
            .unwrap_or_else(|_| {
                let reason = format!("timed out after {} s", limit.as_secs());
                Err(ConnectionLost::Unreachable(reason).into())
            })
    }

    async fn handshake(options: &ResumeOptions, address: &Address, start: Start) -> Result<(Self, Hello), Failure> {
        let stream = address.connect().await?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(options.max_message_bytes))
            .max_frame_size(Some(options.max_message_bytes));
        let request = address.request(start).map_err(Failure::Final)?;
        let (socket, _) = client_async_with_config(request, WatchedStream::new(stream, options.silence), Some(config))
            .await
            .map_err(|error| failure(error, options.max_message_bytes))?;
        let mut connection = Self {
            socket,
            max_message_bytes: options.max_message_bytes,
            unflushed: false,
            write_failed: false,
        };
        let hello = connection.hello().await?;
        Ok((connection, hello))
    }

    async fn hello(&mut self) -> Result<Hello, Failure> {
        loop {
            let message = self.socket.next().await;
            match self.interpret(message)? {
                None | Some(Received::Notice(Notice::Unknown)) => {}
                Some(Received::Notice(Notice::Hello(hello))) => return Ok(hello),
                Some(_) => return Err(violation("the first frame is not a hello")),
            }
        }
    }

    /// Writes pending messages as far as possible and returns the next frame.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<Received, Failure>> {
        if !self.write_failed && (self.unflushed || outbox.has_unsent()) {
            self.write_failed = matches!(self.poll_write(cx, outbox), Poll::Ready(Err(_)));
        }
        loop {
            let message = ready!(Pin::new(&mut self.socket).poll_next(cx));
            if matches!(message, Some(Ok(Message::Close(_)))) {
                // Answers the gateway's Close, if that is possible without waiting.
                let _ = Pin::new(&mut self.socket).poll_flush(cx);
            }
            if let Some(received) = self.interpret(message)? {
                return Poll::Ready(Ok(received));
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), WebSocketError>> {
        let mut socket = Pin::new(&mut self.socket);
        while outbox.has_unsent() {
            // Waits while the connection accepts no bytes, so that the socket's buffer does not grow further.
            ready!(socket.as_mut().poll_ready(cx))?;
            if let Some((channel, message)) = outbox.next() {
                let frame = websocket_v1::encode(channel, message);
                socket.as_mut().start_send(Message::Binary(frame))?;
                self.unflushed = true;
            }
        }
        ready!(socket.poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Interprets a WebSocket message. Returns `None` if it only shows that the gateway is alive.
    fn interpret(&self, message: Option<Result<Message, WebSocketError>>) -> Result<Option<Received>, Failure> {
        match message {
            Some(Ok(Message::Binary(frame))) => Ok(Some(Received::Entry(frame))),
            Some(Ok(Message::Text(text))) => notice(&text).map(Some),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Ok(Message::Close(frame))) => Err(closed(frame)),
            Some(Err(error)) => Err(failure(error, self.max_message_bytes)),
            None => Err(ConnectionLost::Broke("it was closed".to_owned()).into()),
        }
    }
}

fn notice(text: &Utf8Bytes) -> Result<Received, Failure> {
    serde_json::from_str(text)
        .map(Received::Notice)
        .map_err(|error| violation(&format!("a text frame is not as documented: {error}")))
}

pub(super) fn violation(what: &str) -> Failure {
    ConnectionLost::Violation(what.to_owned()).into()
}

fn closed(frame: Option<CloseFrame>) -> Failure {
    // RFC 6455 section 7.1.5: 1005 stands for a Close frame without a code.
    let (code, reason) = frame.map_or((1005, String::new()), |frame| {
        (frame.code.into(), frame.reason.as_str().to_owned())
    });
    match code {
        1002 | 1009 => Failure::Final(ResumeError::Closed { code, reason }),
        CLOSE_REPLACED => Failure::Final(ResumeError::Replaced),
        _ => ConnectionLost::Closed { code, reason }.into(),
    }
}

fn failure(error: WebSocketError, max_message_bytes: usize) -> Failure {
    match error {
        WebSocketError::Http(response) => match response.status().as_u16() {
            status @ (400 | 401 | 403 | 404) => Failure::Final(ResumeError::Refused { status }),
            status => ConnectionLost::Status(status).into(),
        },
        WebSocketError::Protocol(ProtocolError::SecWebSocketSubProtocolError(
            SubProtocolError::NoSubProtocol | SubProtocolError::InvalidSubProtocol,
        )) => Failure::Final(ResumeError::Unsupported),
        WebSocketError::Capacity(_) => Failure::Final(ResumeError::TooLarge {
            limit: max_message_bytes,
        }),
        WebSocketError::Io(error) => broken(&error).into(),
        other => ConnectionLost::Broke(other.to_string()).into(),
    }
}

fn broken(error: &std::io::Error) -> ConnectionLost {
    if let Some(Silence(silence)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return ConnectionLost::Silent(*silence);
    }
    // In TLS 1.3, a gateway refuses a client certificate after the client has completed the handshake, so reading fails
    // (RFC 8446 section 4.4.2.4).
    #[cfg(feature = "tls")]
    if let Some(error) = crate::tls::tls_error(error) {
        return ConnectionLost::Tls(error.to_string());
    }
    ConnectionLost::Broke(error.to_string())
}
