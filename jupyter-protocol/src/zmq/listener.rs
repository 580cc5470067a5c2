//! Where who connects is waited for, over TCP or as a Unix socket.

use std::io::{self, ErrorKind};
#[cfg(unix)]
use std::path::PathBuf;

use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;

use super::socket::Socket;

pub(crate) enum Listener {
    Tcp(TcpListener),
    /// The socket's file goes with it.
    #[cfg(unix)]
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds to `tcp://host:port`, where the host `*` means all interfaces and port 0 any that is free, or to
    /// `ipc://path`. It fails with [`ErrorKind::AddrInUse`] where somebody has the port or the path.
    pub(crate) async fn bind(address: &str) -> io::Result<Self> {
        if let Some(address) = address.strip_prefix("tcp://") {
            let address = address.replacen("*:", "0.0.0.0:", 1);
            return Ok(Self::Tcp(TcpListener::bind(address).await?));
        }
        #[cfg(unix)]
        if let Some(path) = address.strip_prefix("ipc://") {
            return Ok(Self::Unix(UnixListener::bind(path)?, path.into()));
        }
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            "neither tcp://host:port nor ipc://path",
        ))
    }

    /// The TCP port.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            #[cfg(unix)]
            Self::Unix(..) => None,
        }
    }

    /// The next one who connects. Cancel-safe.
    pub(super) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => Socket::tcp(listener.accept().await?.0),
            #[cfg(unix)]
            Self::Unix(listener, _) => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }
}

#[cfg(unix)]
impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}
