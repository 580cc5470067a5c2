//! The agent's socket: a Unix socket, or TLS on a TCP port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use kernel_provider::agent::{Listen, Stream};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

pub(crate) enum Listener {
    Unix(UnixListener),
    Tls(TcpListener, TlsAcceptor),
}

impl Listener {
    pub(crate) async fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Unix(path) => {
                // An agent that was killed leaves its socket.
                let _ = std::fs::remove_file(path);
                Ok(Self::Unix(UnixListener::bind(path)?))
            }
            Listen::Tls { port, identity } => {
                let acceptor = identity.acceptor()?;
                // An IPv6 socket also accepts IPv4 connections; the IPv4 socket is for systems without IPv6.
                let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).await {
                    Ok(listener) => listener,
                    Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).await?,
                };
                Ok(Self::Tls(listener, acceptor))
            }
            _ => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this agent is older than the gateway and does not know this kind of socket",
            )),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Handshake> {
        match self {
            Self::Unix(listener) => Ok(Handshake::Unix(listener.accept().await?.0)),
            Self::Tls(listener, acceptor) => Ok(Handshake::Tls(listener.accept().await?.0, acceptor.clone())),
        }
    }
}

/// A connection before its TLS handshake, if it has one.
pub(crate) enum Handshake {
    Unix(UnixStream),
    Tls(TcpStream, TlsAcceptor),
}

impl Handshake {
    pub(crate) async fn complete(self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(stream) => Ok(Box::new(stream)),
            Self::Tls(stream, acceptor) => {
                stream.set_nodelay(true)?;
                Ok(Box::new(acceptor.accept(stream).await?))
            }
        }
    }
}
