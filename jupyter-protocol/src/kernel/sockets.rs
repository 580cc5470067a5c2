//! Binds the five sockets of a kernel.

use super::error::ServeError;
use crate::channel::Channel;
use crate::connection_file::{ConnectionInfo, Transport};
use crate::zmq::{Listener, RouterReceiver, RouterSender, SocketServer, echo, router};

type Router = (RouterSender, RouterReceiver);

/// The bound sockets of a kernel.
pub(super) struct Sockets {
    pub(super) shell: Router,
    pub(super) control: Router,
    pub(super) stdin: Router,
    pub(super) iopub: Listener,
    /// Servers of all sockets but iopub. Dropping them closes the sockets.
    pub(super) servers: Vec<SocketServer>,
}

impl Sockets {
    /// Binds all sockets. Replaces ports in `info` that are 0 with free ones.
    pub(super) async fn bind(info: &mut ConnectionInfo) -> Result<Self, ServeError> {
        let (shell, shell_server) = bind_router(info, Channel::Shell).await?;
        let (control, control_server) = bind_router(info, Channel::Control).await?;
        let (stdin, stdin_server) = bind_router(info, Channel::Stdin).await?;
        let heartbeat = echo(bind(info, Channel::Heartbeat).await?);
        Ok(Self {
            shell,
            control,
            stdin,
            iopub: bind(info, Channel::Iopub).await?,
            servers: vec![shell_server, control_server, stdin_server, heartbeat],
        })
    }
}

async fn bind_router(info: &mut ConnectionInfo, channel: Channel) -> Result<(Router, SocketServer), ServeError> {
    let (sender, receiver, server) = router(bind(info, channel).await?);
    Ok(((sender, receiver), server))
}

async fn bind(info: &mut ConnectionInfo, channel: Channel) -> Result<Listener, ServeError> {
    if info.transport == Transport::Ipc {
        prepare_socket_path(info, channel);
    }
    let address = info.address(channel);
    let listener = match Listener::bind(&address).await {
        Ok(listener) => listener,
        Err(source) => {
            return Err(ServeError::Bind {
                channel,
                address,
                source,
            });
        }
    };
    if let Some(port) = listener.port() {
        info.set_port(channel, port);
    }
    Ok(listener)
}

/// Chooses a free socket path if none is given, or removes a stale socket that a killed kernel left at the given path.
fn prepare_socket_path(info: &mut ConnectionInfo, channel: Channel) {
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
        // If removing fails, binding reports the error.
        let _ = std::fs::remove_file(path);
    }
}
