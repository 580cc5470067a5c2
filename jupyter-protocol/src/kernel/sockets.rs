//! The five sockets of a kernel, bound.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use zeromq::{
    Endpoint, RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketRecv, SocketSend, XPubSocket, ZmqMessage,
};

use super::error::ServeError;
use crate::channel::Channel;
use crate::connection_file::{ConnectionInfo, Transport};
use crate::wire::WireMessage;

/// How long a client may take none of its replies before one is dropped.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Sockets {
    pub(super) shell: RouterSocket,
    pub(super) control: RouterSocket,
    pub(super) stdin: RouterSocket,
    pub(super) heartbeat: RouterSocket,
    pub(super) iopub: XPubSocket,
    pub(super) files: SocketFiles,
}

/// The files of Unix domain sockets, which are removed with the kernel.
#[derive(Default)]
pub(super) struct SocketFiles(Vec<PathBuf>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Sockets {
    /// Binds all sockets; ports that are 0 are chosen and entered.
    pub(super) async fn bind(info: &mut ConnectionInfo) -> Result<Self, ServeError> {
        let mut files = SocketFiles::default();
        Ok(Self {
            shell: bind(info, Channel::Shell, &mut files).await?,
            control: bind(info, Channel::Control, &mut files).await?,
            stdin: bind(info, Channel::Stdin, &mut files).await?,
            heartbeat: bind(info, Channel::Heartbeat, &mut files).await?,
            iopub: bind(info, Channel::Iopub, &mut files).await?,
            files,
        })
    }
}

async fn bind<S: Socket>(
    info: &mut ConnectionInfo,
    channel: Channel,
    files: &mut SocketFiles,
) -> Result<S, ServeError> {
    if info.transport == Transport::Ipc {
        make_room(info, channel);
    }
    // ZeroMQ's way to say all interfaces.
    let address = info.address(channel).replacen("tcp://*:", "tcp://0.0.0.0:", 1);
    let mut socket = S::new();
    let bound = socket.bind(&address).await.map_err(|error| ServeError::Bind {
        channel,
        address,
        reason: error.to_string(),
    })?;
    match bound {
        Endpoint::Tcp(_, port) => info.set_port(channel, port),
        _ => files.0.extend(info.socket_path(channel)),
    }
    Ok(socket)
}

/// Chooses a path that is free, or frees the one that was chosen of what a killed kernel left there.
fn make_room(info: &mut ConnectionInfo, channel: Channel) {
    if info.port(channel) == 0 {
        let free = (1..=u16::MAX).find(|port| {
            info.set_port(channel, *port);
            info.socket_path(channel).is_some_and(|path| !path.exists())
        });
        info.set_port(channel, free.unwrap_or(u16::MAX));
    }
    #[cfg(unix)]
    if let Some(path) = info.socket_path(channel)
        && std::os::unix::net::UnixStream::connect(&path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        // Where it cannot be removed, binding says why.
        let _ = std::fs::remove_file(path);
    }
}

/// Sends to the client that the message's first identity names.
pub(super) async fn send(socket: &RouterSendHalf, message: WireMessage) -> Result<(), String> {
    let Ok(message) = ZmqMessage::try_from(message.into_frames()) else {
        return Ok(());
    };
    let mut socket = socket.clone();
    match timeout(PATIENCE, socket.send(message)).await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the client took none of its messages for {PATIENCE:?}")),
    }
}

/// Receives frames. The socket outlives what one client does, so there is no error to go on from.
pub(super) async fn receive(socket: &mut RouterRecvHalf) -> Vec<Bytes> {
    loop {
        match socket.recv().await {
            Ok(message) => return message.into_vec(),
            Err(error) => tracing::warn!(%error, "a client's message could not be received"),
        }
        tokio::task::yield_now().await;
    }
}

/// Echoes what comes, for ever.
pub(super) async fn heartbeat(socket: RouterSocket) {
    let (mut sender, mut receiver) = socket.split();
    loop {
        let frames = receive(&mut receiver).await;
        if let Ok(message) = ZmqMessage::try_from(frames) {
            // It fails where the client has gone meanwhile.
            let _ = sender.send(message).await;
        }
    }
}
