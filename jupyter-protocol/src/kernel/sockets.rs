//! The five sockets of a kernel, bound.

use super::error::ServeError;
use crate::channel::Channel;
use crate::connection_file::{ConnectionInfo, Transport};
use crate::zmq::{Listener, Listening, RouterReceiver, RouterSender, echo, router};

type Router = (RouterSender, RouterReceiver);

pub(super) struct Sockets {
    pub(super) shell: Router,
    pub(super) control: Router,
    pub(super) stdin: Router,
    pub(super) iopub: Listener,
    /// What the three and the heartbeat are open by.
    pub(super) listening: Vec<Listening>,
}

impl Sockets {
    /// Binds all sockets; ports that are 0 are chosen and entered.
    pub(super) async fn bind(info: &mut ConnectionInfo) -> Result<Self, ServeError> {
        let (shell, shell_open) = bind_router(info, Channel::Shell).await?;
        let (control, control_open) = bind_router(info, Channel::Control).await?;
        let (stdin, stdin_open) = bind_router(info, Channel::Stdin).await?;
        let heartbeat = echo(bind(info, Channel::Heartbeat).await?);
        Ok(Self {
            shell,
            control,
            stdin,
            iopub: bind(info, Channel::Iopub).await?,
            listening: vec![shell_open, control_open, stdin_open, heartbeat],
        })
    }
}

async fn bind_router(info: &mut ConnectionInfo, channel: Channel) -> Result<(Router, Listening), ServeError> {
    let (sender, receiver, listening) = router(bind(info, channel).await?);
    Ok(((sender, receiver), listening))
}

async fn bind(info: &mut ConnectionInfo, channel: Channel) -> Result<Listener, ServeError> {
    if info.transport == Transport::Ipc {
        make_room(info, channel);
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
