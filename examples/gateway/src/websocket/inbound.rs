use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use jupyter_protocol::{Channel, LogLimiter, WireMessage};
use kernel_manager::{Client, Room, SendError, is_follow_request};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, warn};
use tungstenite::Error;
use tungstenite::protocol::frame::coding::Data;

use super::acknowledgement::Acknowledgement;
use super::format::Format;
use super::messages::{Messages, Received};
use crate::audit::CodeAudit;

/// How many messages may wait for a kernel that does not read, such as a restarting kernel. Beyond that, the gateway
/// reads no further messages from the client.
const MAX_WAITING: usize = 64;
/// How long a disconnected client counts as attached while its messages wait for the kernel.
const LEAVE_AFTER: Duration = Duration::from_secs(10);

/// A message for the kernel, and its reservation of memory.
struct Waiting {
    channel: Channel,
    message: WireMessage,
    _room: Option<Room>,
}

/// Requests to the outbound half.
pub(super) enum Control {
    /// Answer a Ping.
    Pong(Bytes),
    /// The client answered a Ping.
    Acknowledged,
    /// Replay an execution that another session requested.
    Follow(WireMessage),
    /// Answer this request in place of the kernel.
    AnswerFromLog(WireMessage),
    /// Close with this code.
    Close(u16, &'static str),
}

/// Reads until the client disconnects or violates the protocol.
pub(super) async fn run(
    stream: impl AsyncRead + Unpin,
    client: Option<Client>,
    format: Format,
    acknowledgement: Arc<Acknowledgement>,
    control: mpsc::Sender<Control>,
    audit: Option<CodeAudit>,
) -> Result<&'static str, Error> {
    let (to_kernel, waiting) = mpsc::channel(MAX_WAITING);
    // The task outlives the connection: messages that a client sent before it left still reach the kernel. The task
    // ends when its queue is empty, at the latest when the kernel answers again or dies.
    let connected = CancellationToken::new();
    let _connected = connected.clone().drop_guard();
    tokio::spawn(forward(client.clone(), waiting, connected).in_current_span());
    read(stream, format, acknowledgement, control, client, to_kernel, audit).await
}

/// Sends messages to the kernel in order, while the reader continues to see Pongs and the end of the connection.
async fn forward(client: Option<Client>, mut waiting: mpsc::Receiver<Waiting>, connected: CancellationToken) {
    let leaving = async {
        connected.cancelled().await;
        sleep(LEAVE_AFTER).await;
    };
    let mut leaving = pin!(leaving.fuse());
    let unsendable = LogLimiter::new();
    while let Some(Waiting {
        channel,
        message,
        _room,
    }) = waiting.recv().await
    {
        let Some(client) = &client else {
            debug!(%channel, "a message for a kernel that is gone is dropped");
            continue;
        };
        let mut sending = pin!(client.send(channel, message));
        let sent = tokio::select! {
            sent = &mut sending => sent,
            () = &mut leaving => {
                client.leave();
                sending.await
            }
        };
        match sent {
            Ok(()) => {}
            Err(error @ (SendError::Dead | SendError::ShutDown | SendError::Restarted)) => {
                debug!(%channel, %error, "a message is dropped")
            }
            Err(error) => {
                if let Some(suppressed) = unsendable.due() {
                    warn!(%channel, %error, suppressed, "a message cannot be sent to the kernel");
                }
            }
        }
    }
}

async fn read(
    stream: impl AsyncRead + Unpin,
    format: Format,
    acknowledgement: Arc<Acknowledgement>,
    control: mpsc::Sender<Control>,
    client: Option<Client>,
    to_kernel: mpsc::Sender<Waiting>,
    audit: Option<CodeAudit>,
) -> Result<&'static str, Error> {
    let mut messages = Messages::new(stream, client.clone());
    let ignored = LogLimiter::new();
    loop {
        let received = match messages.next().await {
            Ok(received) => received,
            Err(error) => {
                // Send a Close to the client if possible, then end the connection.
                let (code, reason) = close_code(&error);
                let _ = control.send(Control::Close(code, reason)).await;
                control.closed().await;
                return Err(error);
            }
        };
        match received {
            // Reserved for later versions of the protocol.
            Received::Message(Data::Text, ..) if format == Format::Resume => {}
            Received::Message(kind, data, room) => match format.decode(kind, &data) {
                Ok((channel, message)) => {
                    if let Some(direct) = answered_here(format, client.as_ref(), channel, &message) {
                        if control.send(direct).await.is_err() {
                            return Ok("nothing more is written");
                        }
                        continue;
                    }
                    if let Some(audit) = &audit {
                        audit.message(channel, &message).await;
                    }
                    let waiting = Waiting {
                        channel,
                        message,
                        _room: room,
                    };
                    if to_kernel.send(waiting).await.is_err() {
                        return Ok("nothing more is forwarded");
                    }
                }
                Err(error) => {
                    if let Some(suppressed) = ignored.due() {
                        warn!(%error, suppressed, "a message from the client is ignored");
                    }
                }
            },
            Received::Ping(payload) => {
                if control.send(Control::Pong(payload)).await.is_err() {
                    return Ok("nothing more is written");
                }
            }
            Received::Pong(payload) => {
                acknowledgement.on_pong(&payload);
                // If the queue is full, the outbound half is awake anyway.
                let _ = control.try_send(Control::Acknowledged);
            }
            Received::Close => {
                let _ = control.send(Control::Close(1000, "")).await;
                control.closed().await;
                return Ok("closed by the client");
            }
        }
    }
}

/// The request to the outbound half for a message that is not for the kernel; `None` for other messages.
fn answered_here(format: Format, client: Option<&Client>, channel: Channel, message: &WireMessage) -> Option<Control> {
    if channel == Channel::Shell && is_follow_request(message) {
        return Some(Control::Follow(message.clone()));
    }
    // Clients of the resume protocol receive log entries only.
    let client = client.filter(|_| format != Format::Resume)?;
    client
        .is_answered_from_log(channel, message)
        .then(|| Control::AnswerFromLog(message.clone()))
}

fn close_code(error: &Error) -> (u16, &'static str) {
    match error {
        Error::Capacity(_) => (1009, "message too big"),
        Error::Io(error) if error.kind() == ErrorKind::TimedOut => (1013, "try again later"),
        Error::Io(_) => (1000, ""),
        _ => (1002, "protocol error"),
    }
}
