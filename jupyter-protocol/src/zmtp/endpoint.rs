use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

use super::ZmtpError;

/// How much the system may hold for us of what was not read yet, in bytes. A publisher drops messages once its own
/// queue is full, so what waits here is not lost.
const RECEIVE_BUFFER: u32 = 4 << 20;

/// A ZeroMQ address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `tcp://HOST:PORT`, an IPv6 address in brackets.
    Tcp {
        /// Address or name, without brackets.
        host: String,
        /// Port; 0 lets the system choose when bound.
        port: u16,
    },
    /// `ipc://PATH`, a Unix domain socket.
    Ipc(PathBuf),
}

impl FromStr for Endpoint {
    type Err = ZmtpError;

    fn from_str(text: &str) -> Result<Self, ZmtpError> {
        let invalid = |problem| ZmtpError::Endpoint {
            endpoint: text.to_owned(),
            problem,
        };
        if let Some(path) = text.strip_prefix("ipc://") {
            return if path.is_empty() {
                Err(invalid("the path is empty"))
            } else {
                Ok(Self::Ipc(path.into()))
            };
        }
        let address = text
            .strip_prefix("tcp://")
            .ok_or_else(|| invalid("the transport is neither tcp nor ipc"))?;
        let (host, port) = address
            .rsplit_once(':')
            .ok_or_else(|| invalid("there is no port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(invalid("there is no host"));
        }
        Ok(Self::Tcp {
            // ZeroMQ's way to say all interfaces.
            host: if host == "*" { "0.0.0.0" } else { host }.to_owned(),
            port: port
                .parse()
                .map_err(|_| invalid("the port is no number up to 65535"))?,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ipc(path) => write!(f, "ipc://{}", path.display()),
        }
    }
}

pub(super) type Reader = Box<dyn AsyncRead + Send + Sync + Unpin>;
pub(super) type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

fn split_tcp(stream: TcpStream) -> io::Result<(Reader, Writer)> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    Ok((Box::new(read), Box::new(write)))
}

#[cfg(unix)]
fn split_unix(stream: UnixStream) -> (Reader, Writer) {
    let (read, write) = stream.into_split();
    (Box::new(read), Box::new(write))
}

impl Endpoint {
    /// Connects once.
    pub(super) async fn connect_once(&self) -> io::Result<(Reader, Writer)> {
        match self {
            Self::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for address in lookup_host((host.as_str(), *port)).await? {
                    let socket = if address.is_ipv4() {
                        TcpSocket::new_v4()?
                    } else {
                        TcpSocket::new_v6()?
                    };
                    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
                    match socket.connect(address).await {
                        // A port of ours that nobody listens at can be given to the connecting side itself.
                        Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                            last = io::ErrorKind::ConnectionRefused.into();
                        }
                        Ok(stream) => return split_tcp(stream),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            #[cfg(unix)]
            Self::Ipc(path) => Ok(split_unix(UnixStream::connect(path).await?)),
            #[cfg(not(unix))]
            Self::Ipc(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Binds, and gives the address that was bound: with its real port.
    pub(super) async fn bind(&self) -> io::Result<(Listener, Self)> {
        match self {
            Self::Tcp { host, port } => {
                let listener = TcpListener::bind((host.as_str(), *port)).await?;
                let bound = Self::Tcp {
                    host: host.clone(),
                    port: listener.local_addr()?.port(),
                };
                Ok((Listener::Tcp(listener), bound))
            }
            #[cfg(unix)]
            Self::Ipc(path) => {
                let listener = match UnixListener::bind(path) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        // A socket file that nobody listens at is what a killed kernel left.
                        match UnixStream::connect(path).await {
                            Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                                std::fs::remove_file(path)?;
                                UnixListener::bind(path)?
                            }
                            _ => return Err(error),
                        }
                    }
                    other => other?,
                };
                Ok((Listener::Unix(listener, path.clone()), self.clone()))
            }
            #[cfg(not(unix))]
            Self::Ipc(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

pub(super) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener, PathBuf),
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<(Reader, Writer)> {
        match self {
            Self::Tcp(listener) => split_tcp(listener.accept().await?.0),
            #[cfg(unix)]
            Self::Unix(listener, _) => Ok(split_unix(listener.accept().await?.0)),
        }
    }
}

#[cfg(unix)]
impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Another process may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_write() {
        for text in [
            "tcp://127.0.0.1:5",
            "tcp://[::1]:65535",
            "tcp://localhost:0",
            "ipc:///a/b-1",
            "ipc://rel",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!(
            "tcp://*:1".parse::<Endpoint>().unwrap().to_string(),
            "tcp://0.0.0.0:1"
        );
        for text in [
            "",
            "tcp://",
            "tcp://:1",
            "tcp://h",
            "tcp://h:65536",
            "tcp://h:x",
            "ipc://",
            "udp://h:1",
        ] {
            assert!(
                matches!(text.parse::<Endpoint>(), Err(ZmtpError::Endpoint { .. })),
                "{text:?}"
            );
        }
    }
}
