//! TCP and Unix listeners.

use std::io::{self, ErrorKind};
#[cfg(unix)]
use std::path::PathBuf;

use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;

use super::socket::Socket;

pub(crate) enum Listener {
    Tcp(TcpListener),
    /// The listener and its socket file, which is removed on drop.
    #[cfg(unix)]
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds to `tcp://host:port` or `ipc://path`.
    ///
    /// The host `*` means all interfaces, port 0 any free port. Fails with [`ErrorKind::AddrInUse`] if the port or path
    /// is taken.
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

    /// Returns the bound TCP port.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            #[cfg(unix)]
            Self::Unix(..) => None,
        }
    }

    /// Accepts the next connection. Cancel-safe.
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
            // The file may already be gone.
            let _ = std::fs::remove_file(path);
        }
    }
}
